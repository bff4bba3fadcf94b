"""PyTorch's side of DreamerV3's joint update does the same work as ours."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import published_dreamer
from mbrl_jax.behaviours import actor_critic, dreamer
from mbrl_jax.types import Prediction
from tests.experiments.torch_sides import assert_close, assert_gradients_close, model_uniforms


def _as_ours(imagined):
    """Rollouts of torch, time first, as rollouts of ours."""
    numbers = lambda x: jnp.asarray(x.transpose(0, 1).numpy())  # noqa: E731
    with_start = lambda x: jnp.pad(numbers(x), ((0, 0), (1, 0)))  # noqa: E731
    return actor_critic.Imagined(
        numbers(imagined.features),
        # Row 0 of a prediction is not used.
        Prediction(with_start(imagined.rewards), with_start(imagined.discounts), {}),
        numbers(imagined.actions),
        jnp.asarray(imagined.weights.numpy()),
    )


def _our_gradients(problem, params, rows):
    """((of the model, of the behaviour), (metrics, loss of imagination, loss of replay))."""
    parts = problem.behaviour.representation_loss.args[0]
    stats = problem.behaviour_state.stats._replace(target_critic=params["critic"])

    def total(both):
        of_model, of_behaviour = both
        loss, (entries, _, metrics) = problem.model.loss(
            of_model, problem.model_state.stats, problem.key, problem.batch
        )
        more, (targets, after, _) = actor_critic.loss_and_targets(parts, of_behaviour, stats, rows)
        seen = jnp.concatenate(entries, -1)
        timestep = jax.tree.map(lambda x: x[:, :-1], problem.batch.timestep)
        returns = targets.live[:, 0].reshape(seen.shape[:2])
        last = dreamer.replay_loss(parts, of_behaviour, after, seen, timestep, returns)
        return loss + more + parts.config.replay_scale * last, (metrics, more, last)

    return jax.jit(jax.grad(total, has_aux=True))((problem.model_state.params, params))


def test_torch_has_our_losses_and_gradients(quick_compile):
    """The model's with the same draws, the behaviour's on rollouts that torch has drawn."""
    pytest.importorskip("torch")
    from experiments.benchmarks.pytorch import published_torch, torch_copy, torch_dreamer

    problem = published_dreamer.make_problem(published_dreamer.small_sizes())
    model, behaviour = published_torch.dreamer_nets(problem)
    sizes, batch = problem.sizes, torch_copy.to_vectors(problem.batch)
    # A critic that begins at 0 has no gradient for what is in front of its last layer.
    params = dict(problem.behaviour_state.params)
    params["critic"] = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params["critic"]
    )
    torch_copy.copy_behaviour(behaviour, params)
    shape = problem.batch.timestep.reward.shape
    uniform = torch_copy.tensor(model_uniforms(problem.key, shape, sizes.model.groups))
    terms, features = torch_dreamer.world_model_loss(model, batch, uniform)
    starts = features[:, :-1]
    weights = 1 - batch.terminals[:, :-1]
    imagined = torch_dreamer.imagine(
        model, behaviour, starts.detach().flatten(0, 1), weights.flatten()
    )
    loss, returns = torch_dreamer.imagination_loss(behaviour, imagined)
    replayed = torch_dreamer.replay_loss(behaviour, starts, batch, returns.view(starts.shape[:2]))
    (sum(terms.values()) + loss + sizes.behaviour.replay_scale * replayed).backward()

    grads, (metrics, more, last) = _our_gradients(problem, params, _as_ours(imagined))
    for name, term in terms.items():
        assert_close(term, metrics[f"model/{name}"][0])
    assert_close(loss, more)
    assert_close(replayed, last)
    wanted = published_torch.dreamer_nets(problem)
    torch_copy.copy_rssm(wanted[0], grads[0])
    torch_copy.copy_behaviour(wanted[1], grads[1])
    assert_gradients_close(model, wanted[0])
    for net in ("actor", "critic"):
        assert_gradients_close(getattr(behaviour, net), getattr(wanted[1], net))
