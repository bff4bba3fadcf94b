"""PyTorch's side of DreamerV3's joint update does the same work as ours."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import published_dreamer
from mbrl_jax.behaviours import actor_critic, dreamer
from mbrl_jax.types import Prediction
from tests.experiments.torch_sides import assert_close, assert_gradients_close, model_uniforms


def test_torch_has_our_losses_and_gradients(quick_compile):
    """The model's with the same draws, the behaviour's on rollouts that torch has drawn."""
    torch = pytest.importorskip("torch")
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
    (sum(terms.values()) + loss + 0.3 * replayed).backward()

    def numbers(x):  # time last, as ours
        return jnp.asarray(x.transpose(0, 1).numpy())

    def with_start(x):  # row 0 of a prediction is not used
        return jnp.pad(numbers(x), ((0, 0), (1, 0)))

    parts = problem.behaviour.representation_loss.args[0]
    stats = problem.behaviour_state.stats._replace(target_critic=params["critic"])
    prediction = Prediction(with_start(imagined.rewards), with_start(imagined.discounts), {})
    rows = actor_critic.Imagined(
        numbers(imagined.features),
        prediction,
        numbers(imagined.actions),
        jnp.asarray(imagined.weights.numpy()),
    )

    def total(both):
        of_model, of_behaviour = both
        model_loss, (entries, _, metrics) = problem.model.loss(
            of_model, problem.model_state.stats, problem.key, problem.batch
        )
        more, (targets, after, _) = actor_critic.loss_and_targets(parts, of_behaviour, stats, rows)
        seen = jnp.concatenate(entries, -1)
        timestep = jax.tree.map(lambda x: x[:, :-1], problem.batch.timestep)
        returns = targets.live[:, 0].reshape(seen.shape[:2])
        last = dreamer.replay_loss(parts, of_behaviour, after, seen, timestep, returns)
        return model_loss + more + 0.3 * last, (metrics, more, last)

    both = (problem.model_state.params, params)
    grads, (metrics, more, last) = jax.jit(jax.grad(total, has_aux=True))(both)
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
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, behaviour.actor)]
    assert counts[0] == sum(x.size for x in jax.tree.leaves(both[0]))
    assert torch.isfinite(loss)
