"""Rewards and ends of environments as functions of (o, a, o'), for models that are told them.

Actions are as agents choose them: in [-1, 1], or an index. For one row: `vmap` adds batches.
Ends of the MuJoCo tasks as in MBPO's code (https://arxiv.org/abs/1906.08253); public copies of it
write `abs(x[1:] < 100)`, which checks one side only.
"""

import jax.numpy as jnp

from mbrl_jax.types import Array

PENDULUM_TORQUE = 2.0  # of gymnax and Gymnasium
CARTPOLE_X, CARTPOLE_ANGLE = 2.4, 12 * 2 * jnp.pi / 360


def pendulum_reward(observation: Array, action: Array, next_observation: Array) -> Array:
    """-(θ² + 0.1 θ'² + 0.001 u²) of Pendulum-v1, before the step; o = (cos θ, sin θ, θ') `[3]`."""
    del next_observation
    cos, sin, speed = observation[0], observation[1], observation[2]
    torque = PENDULUM_TORQUE * jnp.clip(action[0], -1.0, 1.0)
    return -(jnp.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)


def never(observation: Array, action: Array, next_observation: Array) -> Array:
    """No row is terminal: Pendulum, HalfCheetah, Swimmer, Reacher."""
    del observation, action, next_observation
    return jnp.zeros((), bool)


def cartpole_ends(observation: Array, action: Array, next_observation: Array) -> Array:
    """The cart left the track or the pole fell; o = (x, x', θ, θ') `[4]`."""
    del observation, action
    out = jnp.abs(next_observation[0]) > CARTPOLE_X
    return out | (jnp.abs(next_observation[2]) > CARTPOLE_ANGLE)


def hopper_ends(observation: Array, action: Array, next_observation: Array) -> Array:
    """The hopper fell or ran out of bounds; o = (z, angle, …) `[11]`."""
    del observation, action
    height, angle = next_observation[0], next_observation[1]
    within = jnp.isfinite(next_observation).all() & (jnp.abs(next_observation[1:]) < 100.0).all()
    return ~(within & (height > 0.7) & (jnp.abs(angle) < 0.2))


def walker2d_ends(observation: Array, action: Array, next_observation: Array) -> Array:
    """The walker fell; o = (z, angle, …) `[17]`."""
    del observation, action
    height, angle = next_observation[0], next_observation[1]
    return ~((height > 0.8) & (height < 2.0) & (jnp.abs(angle) < 1.0))
