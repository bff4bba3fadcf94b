"""DreamerV3's actor-critic: returns of replayed rows, targets, and how far the gradient goes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions, optim, testing
from mbrl_jax.behaviours import actor_critic, dreamer
from mbrl_jax.types import (
    ArraySpec,
    DiscreteSpec,
    EnvSpec,
    LearnerState,
    Prediction,
    Timestep,
    bind,
)
from tests.world_models.rssm_test import CONFIG as MODEL

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = dreamer.Config(
    horizon=2, actor_width=8, critic_width=8, layers=1, num_bins=9, gamma=0.9, lambda_=0.8
)
SPEC = EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2))
WINDOWS, ROWS = 4, 12
LENGTH = 6  # L; windows hold one row more


def test_the_law_of_behaviours():
    testing.check_behaviour(CONFIG, SPEC, batch=(2, LENGTH))


# ------------------------------------------------------------------------------- replayed returns


@pytest.fixture(scope="module")
def replayed():
    """([B, K] rows with time limits, terminals and lost lives, their values)."""
    draw = np.random.default_rng(0)
    shape = (WINDOWS, ROWS)
    is_last = draw.random(shape) < 0.25
    terminal = np.where(is_last, draw.random(shape) < 0.5, draw.random(shape) < 0.15)
    is_first = np.concatenate([np.ones((WINDOWS, 1), bool), is_last[:, :-1]], axis=1)
    reward = np.where(is_first, 0.0, draw.normal(size=shape)).astype(np.float32)
    assert (terminal & ~is_last).any() and (is_last & ~terminal).any()
    rows = Timestep(np.zeros((*shape, 1)), reward, is_first, is_last, terminal)
    return jax.tree.map(jnp.asarray, (rows, draw.normal(size=shape).astype(np.float32)))


def _brute_force(rows, value, gamma, lambda_):
    """Mixture of n-step returns, none of which goes beyond its episode or the window: [K-1]."""
    reward, last, terminal, value = (
        np.asarray(x, np.float64) for x in (rows.reward, rows.is_last, rows.is_terminal, value)
    )
    mixed = np.zeros(len(value) - 1)
    for t in range(len(mixed)):
        n_step, collected, alive = [], 0.0, 1.0
        for u in range(t + 1, len(value)):
            collected += alive * reward[u]
            alive *= gamma * (1.0 - terminal[u])
            n_step.append(collected + alive * value[u])
            if last[u]:
                break
        shares = [(1 - lambda_) * lambda_**n for n in range(len(n_step) - 1)]
        shares.append(1.0 - sum(shares))
        mixed[t] = np.dot(shares, n_step)
    return mixed


def test_replayed_returns_are_those_of_brute_force(replayed):
    rows, value = replayed
    found = jax.jit(jax.vmap(lambda r, v: dreamer.replay_return(r, v, 0.9, 0.8)))(rows, value)
    for b in range(WINDOWS):
        one = jax.tree.map(lambda x, b=b: np.asarray(x[b]), (rows, value))
        np.testing.assert_allclose(found[b], _brute_force(*one, 0.9, 0.8), rtol=1e-5, atol=1e-6)


class _Said:
    """A net that says what its parameters say beside the features."""

    def apply(self, variables, features):
        return variables["params"][:, : features.shape[1]]


def test_the_replay_loss_is_the_cross_entropy_with_both_targets_where_an_episode_goes_on(replayed):
    rows, value = replayed
    parts = dreamer.make(CONFIG, SPEC).apply.args[0]._replace(critic=_Said())
    logits, slow = jax.random.normal(jax.random.key(0), (2, WINDOWS, ROWS, 9))
    stats = actor_critic.Stats(slow, 0.0, 0.0, ())
    features = jnp.zeros((WINDOWS, ROWS, 1))
    found = jax.jit(functools.partial(dreamer.replay_loss, parts))(
        {"critic": logits}, stats, features, rows, value
    )
    pulls = distributions.two_hot_mean(slow, "symexp")
    code = jax.jit(lambda x: distributions.two_hot(x, 9, "symexp"))
    log_probs, errors = np.asarray(jax.nn.log_softmax(logits)), []
    for b in range(WINDOWS):
        one = jax.tree.map(lambda x, b=b: np.asarray(x[b]), (rows, value))
        target = _brute_force(*one, 0.9, 0.8)
        both = code(target.astype(np.float32)) + code(pulls[b, :-1])
        each = -(np.asarray(both) * log_probs[b, :-1]).sum(-1)
        errors += [each[t] for t in range(ROWS - 1) if not rows.is_last[b, t]]
    np.testing.assert_allclose(found, np.mean(errors), rtol=1e-5)


# --------------------------------------------------------------------------------- imagined targets


@pytest.fixture(scope="module")
def targets():
    return _targets()


def _targets(**settings):
    """(targets, new statistics, values and slow values [M, H+1]) of made-up rollouts."""
    values, slow = 3.0 * np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    codes = [jnp.log(distributions.two_hot(jnp.asarray(x), 63, "symexp")) for x in (values, slow)]
    config = dataclasses.replace(CONFIG, horizon=3, num_bins=63, **settings)
    parts = dreamer.make(config, SPEC).apply.args[0]._replace(critic=_Said())
    stats = actor_critic.Stats(codes[1], jnp.zeros(()), jnp.zeros(()), ())
    prediction = Prediction(jnp.ones((5, 4)), jnp.full((5, 4), 0.5), {})
    imagined = actor_critic.Imagined(
        jnp.zeros((5, 4, 1)), prediction, jnp.zeros((5, 3), jnp.int32), jnp.ones(5)
    )
    make = jax.jit(functools.partial(actor_critic.make_targets, parts))
    return *make(stats, imagined, codes[0]), values, slow


def test_returns_come_from_the_critic_and_the_second_term_pulls_to_the_slow_ones_values(targets):
    found, _, values, slow = targets
    expected = values.astype(np.float64)
    for t in reversed(range(3)):
        mixed = 0.2 * values[:, t + 1] + 0.8 * expected[:, t + 1]
        expected[:, t] = 1.0 + 0.9 * 0.5 * mixed
    np.testing.assert_allclose(found.live, expected[:, :-1], rtol=1e-4)
    np.testing.assert_allclose(found.slow, slow[:, :-1], rtol=1e-4)


def test_steps_weigh_that_they_are_reached_and_as_published_less_the_later_they_are(targets):
    """Discounts of 0.5 and γ = 0.9."""
    np.testing.assert_allclose(targets[0].weight, np.tile([1.0, 0.5, 0.25], (5, 1)))
    published = _targets(discounted_weights=True)[0]
    np.testing.assert_allclose(published.weight, np.tile([1.0, 0.45, 0.2025], (5, 1)), rtol=1e-6)
    np.testing.assert_array_equal(published.live, targets[0].live)


def test_the_range_of_returns_is_between_interpolated_percentiles(targets):
    found, stats, values, _ = targets
    low, high = np.percentile(found.live, [5, 95])
    np.testing.assert_allclose([stats.low, stats.high], [0.01 * low, 0.01 * high], rtol=1e-5)
    advantage = np.asarray(found.live) - values[:, :-1]  # the range is still below 1
    np.testing.assert_allclose(found.advantage, advantage, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("updates, close", [(458, False), (459, True)])
def test_the_range_is_within_one_percent_after_459_updates_golden(updates, close):
    reached = np.float64(0.0)  # it begins at 0, and nothing corrects for that
    for _ in range(updates):
        reached = optim.moving_average(reached, 1.0, CONFIG.range_decay)
    assert (reached >= 0.99) == close


# --------------------------------------------------------------------------------------- gradients

RESETS = ((3,), ())


@pytest.fixture(scope="module")
def gradients():
    """Function (config) -> gradients of the representation loss: (model, behaviour, entries)."""
    model, key = MODEL.make(SPEC), jax.random.key(0)
    windows = [
        testing.random_trajectory(SPEC, jax.random.fold_in(key, i), LENGTH + 1, resets)
        for i, resets in enumerate(RESETS)
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *windows)
    # Heads that start at 0 would pass nothing on.
    noise = lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape)  # noqa: E731
    state = jax.jit(model.init)(key)
    state = state._replace(params=jax.tree.map(noise, state.params))
    learner = jax.jit(dreamer.make(CONFIG, SPEC).init)(key, jnp.zeros(20))
    params = state.params, jax.tree.map(noise, learner.params)

    def of(config):
        def loss(params, beside, scale):
            behaviour = dreamer.make(dataclasses.replace(config, replay_scale=scale), SPEC)
            entries = model.loss(params[0], state.stats, key, batch)[1][0]
            entries = jax.tree.map(jnp.add, entries, beside)
            bound = bind(model, LearnerState(params[0], state.stats, ()))
            return behaviour.representation_loss(
                params[1], learner.stats, key, bound, entries, batch
            )[0]

        beside = jax.tree.map(
            lambda x: jnp.zeros((len(RESETS), LENGTH, *x.shape)), model.initial_latent()
        )
        found = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, None, 0)))(
            params, beside, jnp.array([0.0, 0.3])
        )
        largest = lambda tree: max(np.abs(x).max() for x in jax.tree.leaves(tree))  # noqa: E731
        rows = np.abs(np.concatenate(found[1], axis=-1)).max(-1) > 0

        def parts(scale, which):
            tree = jax.tree.map(lambda x: x[scale], found[0][which])
            return {name: largest(x) for name, x in tree.items()}

        return [(parts(i, 0), parts(i, 1), rows[i]) for i in (0, 1)]

    return of


@pytest.fixture(scope="module")
def all_rows(gradients):
    return gradients(CONFIG)


def test_the_loss_on_replayed_rows_reaches_what_makes_the_latents_and_nothing_else(all_rows):
    of_model, of_behaviour, _ = all_rows[1]
    reached = {name for name, slope in of_model.items() if slope > 1e-6}
    assert reached == {"encoder", "gru", "posterior"}
    assert not any(slope for name, slope in of_model.items() if name not in reached)
    assert min(of_behaviour.values()) > 1e-6


def test_imagination_alone_sends_nothing_into_the_model(all_rows):
    of_model, of_behaviour, rows = all_rows[0]
    assert max(of_model.values()) == 0.0 and not rows.any()
    assert min(of_behaviour.values()) > 1e-6


def test_rows_that_no_row_of_their_episode_follows_are_left_out(all_rows):
    followed = np.ones((len(RESETS), LENGTH), bool)
    followed[0, 2] = False  # the last of its episode
    followed[:, -1] = False  # the last of the window: only what others are judged by
    np.testing.assert_array_equal(all_rows[1][2], followed)


def test_with_last_rows_only_the_newest_are_learned_from(gradients):
    rows = gradients(dataclasses.replace(CONFIG, last_rows=3))[1][2]
    np.testing.assert_array_equal(np.flatnonzero(rows.any(0)), [3, 4])


def test_more_last_rows_than_a_window_has_are_refused(gradients):
    with pytest.raises(ValueError, match="behaviour.last_rows=7 exceeds replay.length=6"):
        gradients(dataclasses.replace(CONFIG, last_rows=7))


# ------------------------------------------------------------------------------------- other facts


def test_an_untrained_critic_says_exactly_zero_and_the_policy_is_nearly_uniform():
    behaviour = dreamer.make(CONFIG, SPEC)
    parts, features = behaviour.apply.args[0], jnp.linspace(-3.0, 3.0, 20)
    state = jax.jit(behaviour.init)(jax.random.key(0), features)
    logits = parts.critic.apply({"params": state.params["critic"]}, features)
    assert distributions.two_hot_mean(logits, "symexp") == 0.0
    log_probs = actor_critic.policy(parts, state.params["actor"], state.stats, features)
    assert 0.0 < np.abs(log_probs - np.log(0.5)).max() < 0.05


def test_a_merged_seam_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="seam=separate"):
        CONFIG.make(dataclasses.replace(SPEC, seam="merged"))
