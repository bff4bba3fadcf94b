"""Environment specifications, actions as vectors, and the time convention, in one place.

Row t of a lane is (o_t, r_t, first_t, last_t, terminal_t, a_t), r_t having arrived with o_t. The
true last observation is emitted with `is_last`; the next step ignores its action and returns the
first row of a new episode with reward 0. Truncation is last without terminal.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mbrl_jax import legal
from mbrl_jax.types import (
    ActionSpec,
    Array,
    ArraySpec,
    BoundedSpec,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    Environment,
    EnvSpec,
    Key,
    MultiDiscreteSpec,
    ObservationSpec,
    OneActionSpec,
    PyTree,
    Step,
    Timestep,
)


def action_tree(spec: ActionSpec) -> PyTree:
    """Specs of the parts, in the structure of an action: a dict, or the spec itself."""
    return dict(spec.leaves) if isinstance(spec, DictActionSpec) else spec


def is_real(spec: ActionSpec) -> bool:
    """Whether all numbers of an action are real ones, so that gradients flow through them."""
    return all(isinstance(leaf, BoundedSpec) for leaf in jax.tree.leaves(action_tree(spec)))


def action_size(spec: ActionSpec) -> int:
    """Length of an action written as a vector."""
    return sum(map(_size, jax.tree.leaves(action_tree(spec))))


def _size(leaf: OneActionSpec) -> int:
    if isinstance(leaf, MultiDiscreteSpec):
        return sum(leaf.num_actions)
    return leaf.num_actions if isinstance(leaf, DiscreteSpec) else leaf.size


def action_vector(spec: ActionSpec, action: PyTree) -> Array:
    """One-hot [..., A] of discrete actions [...]; bounded actions [..., A] as they are.

    Of several discrete choices [..., k] the one-hot vectors stand one behind the other, and so do
    the vectors of a dictionary, in the order of its names.
    """
    vectors = jax.tree.leaves(jax.tree.map(_vector, action_tree(spec), action))
    return vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors, axis=-1)


def _vector(leaf: OneActionSpec, action: Array) -> Array:
    if isinstance(leaf, MultiDiscreteSpec):
        chex.assert_axis_dimension(action, -1, len(leaf.num_actions))
        choices = [
            jax.nn.one_hot(action[..., i], num, dtype=jnp.float32)
            for i, num in enumerate(leaf.num_actions)
        ]
        return jnp.concatenate(choices, axis=-1)
    if isinstance(leaf, DiscreteSpec):
        chex.assert_type(action, int)
        return jax.nn.one_hot(action, leaf.num_actions, dtype=jnp.float32)
    chex.assert_axis_dimension(action, -1, leaf.size)
    return action


def action_of_vector(spec: ActionSpec, vector: Array) -> PyTree:
    """An action of any vector [A]: undoes `action_vector`, and takes the largest of each choice."""
    leaves, structure = jax.tree.flatten(action_tree(spec))
    pieces = jnp.split(vector, list(itertools.accumulate(map(_size, leaves)))[:-1])
    return jax.tree.unflatten(structure, map(_of_vector, leaves, pieces))


def _of_vector(leaf: OneActionSpec, vector: Array) -> Array:
    if isinstance(leaf, MultiDiscreteSpec):
        bounds = list(itertools.accumulate(leaf.num_actions))[:-1]
        return jnp.stack([jnp.argmax(x) for x in jnp.split(vector, bounds)]).astype(jnp.int32)
    if isinstance(leaf, DiscreteSpec):
        return jnp.argmax(vector).astype(jnp.int32)
    return vector


def zero_action(spec: ActionSpec) -> PyTree:
    """The action that stands before the first one."""
    return jax.tree.map(_zero, action_tree(spec))


def _zero(leaf: OneActionSpec) -> Array:
    if isinstance(leaf, MultiDiscreteSpec):
        return jnp.zeros((len(leaf.num_actions),), jnp.int32)
    if isinstance(leaf, DiscreteSpec):
        return jnp.zeros((), jnp.int32)
    return jnp.zeros((leaf.size,), jnp.float32)


def random_action(spec: ActionSpec, key: Key, mask: Array | None = None) -> PyTree:
    """A uniform action, among those that a mask [A] allows."""
    leaves, structure = jax.tree.flatten(action_tree(spec))
    keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, map(_random, leaves, keys, legal.of_parts(spec, mask)))


def _random(leaf: OneActionSpec, key: Key, mask: Array | None) -> Array:
    if mask is not None:
        return legal.uniform(leaf, key, mask)
    if isinstance(leaf, MultiDiscreteSpec):
        shape = (len(leaf.num_actions),)
        return jax.random.randint(key, shape, 0, jnp.asarray(leaf.num_actions))
    if isinstance(leaf, DiscreteSpec):
        return jax.random.randint(key, (), 0, leaf.num_actions)
    return jax.random.uniform(key, (leaf.size,), minval=-1.0, maxval=1.0)


# ----------------------------------------------------------------------------------- observations


def observation_spec(observation: PyTree) -> ObservationSpec:
    """The spec of one observation: an array, or a dictionary of arrays.

    Raises ValueError for any other structure.
    """
    if isinstance(observation, dict):
        if nested := [name for name, leaf in observation.items() if not hasattr(leaf, "dtype")]:
            raise ValueError(
                f"observation {nested[0]!r} is no array: write a dictionary without others inside"
            )
        return DictSpec(
            tuple((name, _leaf_spec(observation[name])) for name in sorted(observation))
        )
    if not hasattr(observation, "dtype"):
        kind = type(observation).__name__
        raise ValueError(f"an observation is an array or a dictionary of arrays, not {kind}")
    return _leaf_spec(observation)


def _leaf_spec(leaf: Array) -> ArraySpec:
    return ArraySpec(tuple(leaf.shape), str(leaf.dtype))


def spec_tree(spec: ObservationSpec) -> PyTree:
    """Specs of the leaves, in the structure of an observation."""
    return dict(spec.leaves) if isinstance(spec, DictSpec) else spec


def example_observation(spec: ObservationSpec) -> PyTree:
    """Zeros in the shape and dtype of one observation."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec_tree(spec))


def flat_size(spec: ObservationSpec) -> int:
    """D: numbers in one observation."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(spec_tree(spec)))


def flat_observation(spec: ObservationSpec, observation: PyTree) -> Array:
    """All leaves [..., *leaf] as one float32 vector [..., D], in the order of the names."""

    def flat(leaf, x):
        lead = x.shape[: x.ndim - len(leaf.shape)]
        return x.reshape(*lead, -1).astype(jnp.float32)

    leaves = jax.tree.leaves(jax.tree.map(flat, spec_tree(spec), observation))
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)


def from_flat(spec: ObservationSpec, vector: Array) -> PyTree:
    """An observation of float32 leaves from a vector [D]; undoes `flat_observation`."""
    leaves, structure = jax.tree.flatten(spec_tree(spec))
    ends = itertools.accumulate(math.prod(leaf.shape) for leaf in leaves)
    pieces = jnp.split(vector, list(ends)[:-1])
    shaped = [piece.reshape(leaf.shape) for leaf, piece in zip(leaves, pieces, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def only_array(spec: EnvSpec, who: str) -> ArraySpec:
    """The spec of an observation that is one array. Raises ValueError for a dictionary."""
    if isinstance(spec.observation, DictSpec):
        names = ", ".join(name for name, _ in spec.observation.leaves)
        raise ValueError(
            f"{who} sees one array, and observations here are a dictionary of {names}: "
            "concatenate them in the environment, or use model=ensemble, which takes all of them"
        )
    return spec.observation


def require_sized(spec: EnvSpec) -> None:
    """Raise ValueError for observations or actions without a single number or choice in them."""
    leaves = spec_tree(spec.observation)
    for name, leaf in (leaves if isinstance(leaves, dict) else {"": leaves}).items():
        if math.prod(leaf.shape) < 1:
            raise ValueError(
                f"the environment's observation {name + ' ' * bool(name)}has the shape "
                f"{leaf.shape}, which holds no number: there is nothing to learn from"
            )
    for part in jax.tree.leaves(action_tree(spec.action)):
        choices = getattr(part, "num_actions", None) or (_size(part),)
        if min(choices if isinstance(choices, tuple) else (choices,)) < 1:
            raise ValueError(
                f"the environment's action is {spec.action}: there is nothing to choose"
            )


def require_observation(spec: EnvSpec, observation: PyTree) -> None:
    """Raise ValueError for an observation of another structure, shape or dtype than the spec's."""
    wanted, found = jax.tree.leaves(spec_tree(spec.observation)), jax.tree.leaves(observation)
    structure: Any = jax.tree.structure(spec_tree(spec.observation))
    if structure != (given := jax.tree.structure(observation)):
        raise ValueError(f"the observation has the structure {given}, and should have {structure}")
    names = [name for name, _ in sorted(getattr(spec.observation, "leaves", ()))] or ["observation"]
    for name, leaf, x in zip(names, wanted, found, strict=True):
        if jnp.shape(x) != leaf.shape or jnp.result_type(x) != leaf.dtype:
            raise ValueError(
                f"{name} is {jnp.result_type(x)}{list(jnp.shape(x))}, and the agent was trained "
                f"with {leaf.dtype}{list(leaf.shape)}"
            )


def require_separate_seam(spec: EnvSpec, who: str) -> None:
    """Raise ValueError where the last row of an episode is never seen."""
    if spec.seam == "merged":
        raise ValueError(
            f"{who} learns from transitions, which need the last row of every episode; set "
            "env.protocol.seam=separate"
        )


# ------------------------------------------------------------------------------------------- rows


def first_timestep(observation: PyTree, extras: tuple[str, ...] = ()) -> Timestep:
    """The first row of an episode; `extras`: names of what else the environment says."""
    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    zeros = {name: jnp.zeros((), jnp.float32) for name in extras}
    return Timestep(observation, jnp.zeros((), jnp.float32), yes, no, no, zeros)


def example_row(spec: EnvSpec) -> Step:
    """One row as the replay stores it, all zeros."""
    timestep = first_timestep(example_observation(spec.observation), spec.extras)
    return Step(timestep, zero_action(spec.action))


class EpisodicState(NamedTuple):
    """State of an environment that resets itself one row after the last."""

    inner: PyTree
    is_last: Array  # []


def make_environment(
    action: ActionSpec,
    reset_inner: Callable,
    step_inner: Callable,
    extras: tuple[str, ...] = (),
) -> Environment:
    """Wrap plain dynamics into the time convention above.

    Args:
      action: the action spec.
      reset_inner: (key) -> (state, observation).
      step_inner: (key, state, action) -> (state, observation, reward, terminated, truncated), and
        with `extras` one more: {name: scalar}.
      extras: names of what else a step says ("cost", "success"); `Timestep.extras`.

    Returns:
      An `Environment` whose observation spec is read off `reset_inner` (what an environment
      announces and what it emits may differ).

    Raises ValueError for an observation that is neither an array nor a dictionary of arrays.
    """
    state_shape, observed = jax.eval_shape(reset_inner, jax.random.key(0))
    spec = EnvSpec(observation_spec(observed), action, extras=extras)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, observed)

    def reset(key):
        inner, observation = reset_inner(key)
        inner = jax.tree.map(lambda x, s: jnp.asarray(x, s.dtype), inner, state_shape)
        return EpisodicState(inner, jnp.zeros((), bool)), first_timestep(observation, extras)

    def step(state, key, act):
        step_key, reset_key = jax.random.split(key)
        stepped = step_inner(step_key, state.inner, act)
        inner, observation, reward, terminated, truncated, *said = stepped
        # Dynamics may promote dtypes or shapes of their state; a loop's carry must not change.
        inner = jax.tree.map(
            lambda x, s: jnp.asarray(x, s.dtype).reshape(s.shape), inner, state_shape
        )
        terminated = jnp.asarray(terminated, bool)
        going_on = Timestep(
            jax.tree.map(lambda x, dtype: jnp.asarray(x, dtype), observation, dtypes),
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.zeros((), bool),
            terminated | truncated,
            terminated,
            {name: jnp.asarray(said[0][name], jnp.float32).reshape(()) for name in extras},
        )
        fresh, first = reset(reset_key)
        choose = lambda new, old: jnp.where(state.is_last, new, old)  # noqa: E731
        timestep = jax.tree.map(choose, first, going_on)
        inner = jax.tree.map(choose, fresh.inner, inner)
        return EpisodicState(inner, timestep.is_last), timestep

    return Environment(spec, reset, step)
