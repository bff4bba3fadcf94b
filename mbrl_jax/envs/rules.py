"""Rewards and ends of environments as functions of (o, a, o'), for models that are told them.

Actions are as agents choose them: in [-1, 1], or an index. For one row: `vmap` adds batches. `find`
looks one up by its name in a config; of inputs it finds functions of the observation alone.
Ends of the MuJoCo tasks as in MBPO's code (https://arxiv.org/abs/1906.08253); public copies of it
write `abs(x[1:] < 100)`, which checks one side only.
"""

import importlib
from collections.abc import Callable

import jax.numpy as jnp

from mbrl_jax.types import Array

PENDULUM_TORQUE = 2.0  # of gymnax and Gymnasium
CARTPOLE_X, CARTPOLE_ANGLE = 2.4, 12 * 2 * jnp.pi / 360
CARTPOLE_SWINGUP_CONTROL, CARTPOLE_SWINGUP_POLE = 3.0, 0.6  # largest control; metres


def find(name: str) -> Callable:
    """The function of a bare name here, or of module:function. Raises ValueError without one."""
    module, _, function = name.rpartition(":")
    try:
        return getattr(importlib.import_module(module or __name__), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name!r} is no known function: name one of {__name__}, or module:function ({error})"
        ) from error


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


def cartpole_swingup_reward(observation: Array, action: Array, next_observation: Array) -> Array:
    """exp(-|e - (0, 0.6)|² / 0.36) - 0.01 u² of PETS, after the step; o = (x, θ, x', θ') `[4]`.

    e is the pole's end, u the control in [-3, 3]: three times the action.
    """
    del observation
    x, angle = next_observation[0], next_observation[1]
    length = CARTPOLE_SWINGUP_POLE
    across, above = x - length * jnp.sin(angle), -length * jnp.cos(angle)
    far = (across**2 + (above - length) ** 2) / length**2
    control = CARTPOLE_SWINGUP_CONTROL * jnp.clip(action[0], -1.0, 1.0)
    return jnp.exp(-far) - 0.01 * control**2


def cartpole_swingup_inputs(observation: Array) -> Array:
    """(sin θ, cos θ, x, x', θ') `[5]`, which PETS' nets read instead of (x, θ, x', θ') `[4]`."""
    x, angle, speed, spin = observation
    return jnp.stack([jnp.sin(angle), jnp.cos(angle), x, speed, spin])


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
