"""Environment specifications, actions as vectors, and the time convention, in one place.

Row t of a lane is (o_t, r_t, first_t, last_t, terminal_t, a_t), r_t having arrived with o_t. The
true last observation is emitted with `is_last`; the next step ignores its action and returns the
first row of a new episode with reward 0. Truncation is last without terminal.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import (
    Array,
    ArraySpec,
    BoundedSpec,
    DiscreteSpec,
    Environment,
    EnvSpec,
    Key,
    PyTree,
    Step,
    Timestep,
)

ActionSpec = DiscreteSpec | BoundedSpec


def action_size(spec: ActionSpec) -> int:
    """Length of an action written as a vector."""
    return spec.num_actions if isinstance(spec, DiscreteSpec) else spec.size


def action_vector(spec: ActionSpec, action: Array) -> Array:
    """One-hot [..., A] of discrete actions [...]; bounded actions [..., A] as they are."""
    if isinstance(spec, DiscreteSpec):
        return jax.nn.one_hot(action, spec.num_actions, dtype=jnp.float32)
    return action


def zero_action(spec: ActionSpec) -> Array:
    """The action that stands before the first one."""
    if isinstance(spec, DiscreteSpec):
        return jnp.zeros((), jnp.int32)
    return jnp.zeros((spec.size,), jnp.float32)


def random_action(spec: ActionSpec, key: Key) -> Array:
    """A uniform action."""
    if isinstance(spec, DiscreteSpec):
        return jax.random.randint(key, (), 0, spec.num_actions)
    return jax.random.uniform(key, (spec.size,), minval=-1.0, maxval=1.0)


def example_observation(spec: ArraySpec) -> Array:
    """Zeros in the shape and dtype of one observation."""
    return jnp.zeros(spec.shape, spec.dtype)


def first_timestep(observation: PyTree) -> Timestep:
    """The first row of an episode."""
    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    return Timestep(observation, jnp.zeros((), jnp.float32), yes, no, no)


def example_row(spec: EnvSpec) -> Step:
    """One row as the replay stores it, all zeros."""
    return Step(first_timestep(example_observation(spec.observation)), zero_action(spec.action))


class EpisodicState(NamedTuple):
    """State of an environment that resets itself one row after the last."""

    inner: PyTree
    is_last: Array  # []


def make_environment(
    action: ActionSpec, reset_inner: Callable, step_inner: Callable
) -> Environment:
    """Wrap plain dynamics into the time convention above.

    Args:
      action: the action spec.
      reset_inner: (key) -> (state, observation).
      step_inner: (key, state, action) -> (state, observation, reward, terminated, truncated).

    Returns:
      An `Environment` whose observation spec is read off `reset_inner` (what an environment
      announces and what it emits may differ).
    """
    state_shape, observed = jax.eval_shape(reset_inner, jax.random.key(0))
    spec = EnvSpec(ArraySpec(tuple(observed.shape), str(observed.dtype)), action)

    def reset(key):
        inner, observation = reset_inner(key)
        inner = jax.tree.map(lambda x, s: jnp.asarray(x, s.dtype), inner, state_shape)
        return EpisodicState(inner, jnp.zeros((), bool)), first_timestep(observation)

    def step(state, key, act):
        step_key, reset_key = jax.random.split(key)
        inner, observation, reward, terminated, truncated = step_inner(step_key, state.inner, act)
        # Dynamics may promote dtypes or shapes of their state; a loop's carry must not change.
        inner = jax.tree.map(
            lambda x, s: jnp.asarray(x, s.dtype).reshape(s.shape), inner, state_shape
        )
        terminated = jnp.asarray(terminated, bool)
        going_on = Timestep(
            jnp.asarray(observation, spec.observation.dtype),
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.zeros((), bool),
            terminated | truncated,
            terminated,
        )
        fresh, first = reset(reset_key)
        choose = lambda new, old: jnp.where(state.is_last, new, old)  # noqa: E731
        timestep = jax.tree.map(choose, first, going_on)
        inner = jax.tree.map(choose, fresh.inner, inner)
        return EpisodicState(inner, timestep.is_last), timestep

    return Environment(spec, reset, step)
