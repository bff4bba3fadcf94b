"""Rows to transitions: the off-by-one, the seams and the three flags."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import Step, Timestep


def _rows(reward, is_first, is_last, is_terminal):
    length = len(reward)
    flags = (jnp.asarray(x, bool) for x in (is_first, is_last, is_terminal))
    observation = {"x": jnp.arange(length)[:, None] * jnp.ones(2)}
    timestep = Timestep(observation, jnp.asarray(reward, jnp.float32), *flags)
    return Step(timestep, 10 * jnp.arange(length))


def test_follows_the_time_convention_across_episodes():
    # Rows: reset, step, terminal last | reset, step, truncated last | reset.
    rows = _rows(
        reward=[0, 1, 2, 0, 3, 4, 0],
        is_first=[1, 0, 0, 1, 0, 0, 1],
        is_last=[0, 0, 1, 0, 0, 1, 0],
        is_terminal=[0, 0, 1, 0, 0, 0, 0],
    )
    result = jax.jit(transitions)(rows)
    np.testing.assert_array_equal(result.observation["x"][:, 0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(result.action, [0, 10, 20, 30, 40, 50])
    np.testing.assert_array_equal(result.reward, [1, 2, 0, 3, 4, 0])
    np.testing.assert_array_equal(result.next_observation["x"][:, 0], [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(result.discount, [1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(result.valid, [1, 1, 0, 1, 1, 0])
    assert result.discount.dtype == result.valid.dtype == jnp.float32


def test_a_lost_life_ends_the_value_but_not_the_rows():
    rows = _rows(reward=[0, 1, 1], is_first=[1, 0, 0], is_last=[0, 0, 0], is_terminal=[0, 1, 0])
    result = transitions(rows)
    np.testing.assert_array_equal(result.discount, [0, 1])
    np.testing.assert_array_equal(result.valid, [1, 1])
