"""Stacked critics against NumPy: shapes, two of them drawn anew, dropout, the slow copy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mbrl_jax.behaviours import critics, tdmpc
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

NUM, ROWS, FEATURES, ACTIONS, BINS, LIMIT = 4, 3, 5, 2, 7, 3.0


class Linear(nn.Module):
    """One layer, behind dropout of a half."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(BINS)(nn.Dropout(0.5, deterministic=not train)(x))


CRITICS = critics.Critics(Linear(), NUM, LIMIT)


@pytest.fixture(scope="module")
def made():
    """(parameters, features [N, F], actions [N, A], logits [C, N, bins] by NumPy)."""
    rng = np.random.default_rng(0)
    both = rng.normal(size=(ROWS, FEATURES + ACTIONS)).astype(np.float32)
    params = jax.jit(lambda key: critics.init(CRITICS, key, both[0]))(jax.random.key(0))
    params["Dense_0"]["kernel"] *= 5.0  # values that are far apart
    kernel, bias = (np.asarray(params["Dense_0"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (NUM, FEATURES + ACTIONS, BINS) and bias.shape == (NUM, BINS)
    return params, both[:, :FEATURES], both[:, FEATURES:], both @ kernel + bias[:, None]


def values_of(logits):
    """[..., bins] as the numbers that they stand for: symexp of the mean of even bins."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    mean = (shares * np.linspace(-LIMIT, LIMIT, BINS)).sum(-1) / shares.sum(-1)
    return np.sign(mean) * np.expm1(np.abs(mean))


def test_each_critic_reads_features_and_action_with_its_own_parameters(made):
    params, features, actions, wanted = made
    found = jax.jit(lambda params: critics.logits(CRITICS, params, features, actions))(params)
    assert found.shape == (NUM, ROWS, BINS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert np.ptp(found, axis=0).min() > 0  # no two are alike


def test_two_different_critics_are_drawn_anew_and_each_pair_as_often(made):
    params, features, actions, logits = made
    table = values_of(logits)  # [C, N]
    keys = jax.random.split(jax.random.key(1), 600)
    draw = lambda key: critics.two_values(CRITICS, params, key, features, actions)  # noqa: E731
    found = np.asarray(jax.jit(jax.vmap(draw))(keys))
    assert found.shape == (600, 2, ROWS)
    far = np.abs(found[:, :, None] - table).max(-1)  # [600, 2, C]
    assert far.min(-1).max() < 1e-3 * np.abs(table).max()
    pairs = np.sort(far.argmin(-1), axis=-1)
    every = list(itertools.combinations(range(NUM), 2))
    counts = [(pairs == pair).all(-1).sum() for pair in every]
    assert sum(counts) == 600 and min(counts) > 60  # 100 are expected, with a deviation of 9
    for reduce in (np.min, np.mean):  # what a target takes, and what a policy climbs
        wanted = reduce(table[pairs], axis=1)
        np.testing.assert_allclose(reduce(found, axis=1), wanted, rtol=1e-3, atol=1e-3)


def test_a_key_drops_numbers_out_for_each_critic_by_itself(made):
    params, features, actions, _ = made
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), params)
    run = jax.jit(lambda key: critics.logits(CRITICS, alike, features, actions, key))
    once, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    for a, b in itertools.combinations(once, 2):
        assert (a != b).any()


def test_the_slow_copy_takes_in_a_share_of_the_new_critics():
    spec = EnvSpec(ArraySpec((FEATURES,), "float32"), BoundedSpec(ACTIONS))
    config = tdmpc.Config(plan=False, num_critics=2, width=4, layers=0, num_bins=BINS)
    behaviour = config.make(spec)

    @jax.jit
    def step(key):
        state = behaviour.init(key, jnp.zeros((FEATURES,)))
        grads = jax.tree.map(jnp.ones_like, state.params)
        return state, behaviour.apply(state, grads, state.stats)[0]

    before, after = jax.tree.map(np.asarray, step(jax.random.key(0)))
    old, new = before.params["critics"], after.params["critics"]
    leaves = zip(
        *map(jax.tree.leaves, (before.stats.target_critics, old, new, after.stats.target_critics)),
        strict=True,
    )
    for target, was, now, slow in leaves:
        np.testing.assert_array_equal(target, was)  # a copy at first
        assert (was != now).any()
        rate = np.float32(config.target_decay)
        np.testing.assert_allclose(slow, (1 - rate) * was + rate * now, rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, before.params["policy"], after.params["policy"])
