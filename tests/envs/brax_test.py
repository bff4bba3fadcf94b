"""Brax in our convention, against its own functions; a fall apart from the time limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags
from mbrl_jax.envs import brax
from mbrl_jax.types import ArraySpec, BoundedSpec

envs = pytest.importorskip("brax.envs")


def _play(config, actions):
    """Our rows, and (observation, reward, done) of Brax's for the same actions and keys."""
    env, bare = config.make(), envs.get_environment(config.name, backend=config.backend)
    ours, theirs = jax.jit(env.step), jax.jit(bare.step)
    state, row = jax.jit(env.reset)(jax.random.key(0))
    there = jax.jit(bare.reset)(jax.random.key(0))
    rows, by_hand = [row], [(there.obs, 0.0, False)]
    for t, action in enumerate(actions):
        key = jax.random.key(1 + t)
        over = bool(row.is_last)
        state, row = ours(state, key, action)
        rows.append(row)
        if over:
            there = bare.reset(jax.random.split(key)[1])
            by_hand.append((there.obs, 0.0, False))
            continue
        total = 0.0
        for _ in range(config.action_repeat):
            there = theirs(there, action)
            total += there.reward
            if there.done:
                break
        by_hand.append((there.obs, total, bool(there.done)))
    return rows, by_hand


def _assert_same(rows, by_hand):
    for row, (seen, reward, done) in zip(rows, by_hand, strict=True):
        np.testing.assert_allclose(row.observation, seen, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row.reward, reward, rtol=1e-4, atol=1e-5)
        assert bool(row.is_terminal) == done
    firsts = [bool(row.is_first) for row in rows]
    assert firsts == [True, *[bool(row.is_last) for row in rows[:-1]]]


def test_its_test_environment_is_cut_by_our_limit_and_not_terminal(quick_compile):
    config = brax.Config("fast", max_steps=3, action_repeat=2)
    assert config.make().spec.observation == ArraySpec((2,), "float32")
    rows, by_hand = _play(config, jnp.ones((9, 1)))
    _assert_same(rows, by_hand)
    assert [t for t, row in enumerate(rows) if row.is_last] == [3, 7]


@pytest.mark.slow  # half a minute of compiling for each
@pytest.mark.parametrize("backend", ["spring", "mjx"])
@pytest.mark.filterwarnings("ignore:Brax System", "ignore:Accessing:DeprecationWarning")
def test_a_fall_is_terminal_and_the_next_row_is_first(backend, quick_compile):
    config = brax.Config("inverted_pendulum", backend, max_steps=50)
    assert config.make().spec.action == BoundedSpec(1)
    rows, by_hand = _play(config, jnp.ones((60, 1)))
    _assert_same(rows, by_hand)
    assert any(row.is_terminal for row in rows)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'inverted'; Brax has inverted_pendulum"):
        brax.Config("inverted").make()
    found = flags.load_environment("brax:inverted_pendulum")
    assert found == brax.Config("inverted_pendulum")
