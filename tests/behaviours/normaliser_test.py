"""What normalises the actor's input: running statistics, and which rows they take in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.behaviours import actor_critic, actors, ppo
from mbrl_jax.imagination import imagine_rollout, imagine_together
from mbrl_jax.networks import running
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, LearnerState, Starts, bind
from tests.behaviours import exact

pytestmark = pytest.mark.usefixtures("quick_compile")

HORIZON, EPOCHS = 3, 2
SIZES = {"actor_width": 8, "critic_width": 8, "layers": 1, "num_bins": 9, "output_gain": 1.0}


def test_running_statistics_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(3.0, 2.0, (3, 500, 4)).astype(np.float32)
    seen = functools.reduce(running.take_in, jnp.asarray(rows), running.fresh((4,)))
    everything = rows.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(seen.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen.variance, everything.var(0), rtol=1e-5)
    far = running.normalise(seen, everything.mean(0) + jnp.array([1e6, -1e6, 0, 2.0]))
    np.testing.assert_allclose(far[:3], (10, -10, 0), atol=1e-4)


def test_the_actor_sees_normalised_features_and_the_critic_does_not():
    spec = EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2))
    sizes = {"actor_width": 8, "critic_width": 8, "layers": 1, "num_bins": 9, "output_gain": 1.0}
    plain = actor_critic.Config(**sizes).make(spec)
    normal = actor_critic.Config(**sizes, normalise_input=True).make(spec)
    features = jnp.array([3.0, -2.0, 1.0])
    state = normal.init(jax.random.key(0), features)
    seen = running.take_in(state.stats.features, features + jnp.eye(3))
    state = state._replace(stats=state.stats._replace(features=seen))
    policy = functools.partial(
        actor_critic.log_policy, normal.update.args[0], state.params["actor"], state.stats
    )
    other = functools.partial(
        actor_critic.log_policy, plain.update.args[0], state.params["actor"], state.stats
    )
    np.testing.assert_allclose(policy(features), other(running.normalise(seen, features)))
    assert not np.allclose(policy(features), other(features))
    assert plain.init(jax.random.key(0), features).stats.features == ()


# --------------------------------------------------------------------------- which rows are counted


def _update(config):
    """(parts, state before, after, imagined) of one update on the probe "match"."""
    behaviour = config.make(exact.SPEC)
    parts = behaviour.update.args[0]
    model = bind(exact.EXACT, LearnerState(exact.PROBES.index("match"), (), ()))
    keys = jax.random.split(jax.random.key(1), exact.STARTS)

    @jax.jit
    def run(key):
        state = behaviour.init(key, jnp.zeros(1))
        starts = Starts(jax.vmap(exact.ENVIRONMENTS[-1].reset)(keys), jnp.ones(exact.STARTS))
        imagined = actor_critic.imagine(parts, state, key, model, starts)
        return state, behaviour.update(state, key, model, starts, None, 0)[0], imagined

    return parts, *run(jax.random.key(0))


def _config(module, **changes):
    changes |= {"epochs": EPOCHS} if module is ppo else {}
    return module.Config(horizon=HORIZON, **SIZES, normalise_input=True, **changes)


@pytest.mark.parametrize(
    "module, rows, expected",
    [
        (actor_critic, "once", HORIZON + 1),
        (actor_critic, "passes", HORIZON + (HORIZON + 1)),
        (ppo, "once", HORIZON + 1),
        (ppo, "passes", HORIZON + EPOCHS * HORIZON),
    ],
)
def test_rows_that_an_update_counts(module, rows, expected):
    _, before, after, _ = _update(_config(module, input_rows=rows))
    assert before.stats.features.count < 1
    np.testing.assert_allclose(after.stats.features.count, expected * exact.STARTS, rtol=1e-5)


def test_published_counts_are_those_of_the_authors():
    """48 starts and 16 steps: 1,584 rows in their code, 816 where each is counted once."""
    assert 48 * (16 + 17) == 1_584 and 48 * 17 == 816


def test_minibatches_are_passes_too():
    config = _config(ppo, input_rows="passes", num_minibatches=4)
    after = _update(config)[2]
    expected = (HORIZON + EPOCHS * HORIZON) * exact.STARTS
    np.testing.assert_allclose(after.stats.features.count, expected, rtol=1e-5)


def test_each_step_is_counted_before_its_actions_are_chosen():
    parts, before, _, (acted, imagined) = _update(_config(actor_critic, input_rows="passes"))
    stats = before.stats
    for t in range(HORIZON):
        stats = actors.take_in(parts, stats, imagined.features[:, t])
        log_probs = actors.log_policy(parts, before.params["actor"], stats, imagined.features[:, t])
        chosen = actors.log_prob_of(log_probs, imagined.actions[:, t])
        np.testing.assert_allclose(imagined.log_prob[:, t], chosen, rtol=1e-4, atol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        acted.stats.features,
        stats.features,
    )


def test_nothing_is_counted_where_nothing_is_normalised():
    config = dataclasses.replace(_config(actor_critic, input_rows="passes"), normalise_input=False)
    plain = dataclasses.replace(config, input_rows="once")
    jax.tree.map(np.testing.assert_array_equal, _update(config)[2], _update(plain)[2])


def test_starts_in_step_draw_what_each_draws_for_itself():
    model = bind(exact.EXACT, LearnerState(exact.PROBES.index("match"), (), ()))
    keys = jax.random.split(jax.random.key(1), 5)
    starts = jax.vmap(exact.ENVIRONMENTS[-1].reset)(keys)
    choose = lambda key: jax.random.categorical(key, jnp.zeros(2))  # noqa: E731

    def apart(key, start):
        policy = lambda key, carry, latent: (carry, choose(key))  # noqa: E731
        return imagine_rollout(model, policy, key, start, HORIZON)

    def in_step(keys):
        policy = lambda keys, carry, latents: (carry + 1, jax.vmap(choose)(keys), carry)  # noqa: E731
        return imagine_together(model, policy, keys, starts, HORIZON, jnp.zeros(5))

    carry, latents, (actions, more) = jax.jit(in_step)(keys)
    expected = jax.jit(jax.vmap(apart))(keys, starts)
    jax.tree.map(np.testing.assert_array_equal, (latents, actions), expected)
    np.testing.assert_array_equal(carry, np.full(5, HORIZON))
    np.testing.assert_array_equal(more, np.tile(np.arange(HORIZON), (5, 1)))
