"""From stored rows to transitions: the one place where the off-by-one of rewards is written."""

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.masks import clean
from mbrl_jax.types import Trajectory, Transition


def transitions(trajectory: Trajectory) -> Transition:
    """Turns `T` consecutive rows of one lane into `T - 1` transitions (single stream).

    Row t + 1 carries what arrived after the action of row t:

      transition(t) = (o_t, a_t, r_{t+1}, o_{t+1}, discount = 1 - terminal_{t+1}, valid = ~last_t)

    The row after an `is_last` row is a reset, so that pair is no transition and counts 0. A
    truncated episode (last without terminal) keeps discount 1; a lost life (terminal without
    last) has discount 0 and the rows go on. What is not finite in a pair that is no transition
    becomes 0.

    Args:
      trajectory: rows with leading `[T]`; it may cross episodes.

    Returns:
      Transitions with leading `[T - 1]`; `discount` and `valid` are float32.
    """
    timestep = trajectory.timestep
    flags = (timestep.reward, timestep.is_first, timestep.is_last, timestep.is_terminal)
    chex.assert_rank(flags, 1)
    chex.assert_tree_shape_prefix(trajectory, timestep.reward.shape)
    pairs = Transition(
        observation=jax.tree.map(lambda x: x[:-1], timestep.observation),
        action=jax.tree.map(lambda x: x[:-1], trajectory.action),
        reward=timestep.reward[1:],
        next_observation=jax.tree.map(lambda x: x[1:], timestep.observation),
        discount=1.0 - jnp.asarray(timestep.is_terminal[1:], jnp.float32),
        valid=1.0 - jnp.asarray(timestep.is_last[:-1], jnp.float32),
    )
    return clean(pairs, pairs.valid)
