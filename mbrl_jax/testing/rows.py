"""Made-up rows of any environment, and parameters: for the laws, and for tests of parts."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import legal
from mbrl_jax.envs.spec import action_tree, action_vector, random_action
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import (
    Array,
    ArraySpec,
    BoundedSpec,
    DictSpec,
    EnvSpec,
    Key,
    PyTree,
    Step,
    Timestep,
    Trajectory,
    Transition,
)

NOISE = 0.05  # on parameters: away from where a last layer of zeros hides what stands before it


def random_trajectory(
    spec: EnvSpec, key: Key, length: int, resets: tuple[int, ...] = ()
) -> Trajectory:
    """A made-up Trajectory [T]: episodes begin at row 0 and at `resets`, and end terminally.

    Observations are uniform: integers over their range (at most to 255), booleans either way, else
    floats in [0, 1). A leaf "action_mask" [A] allows the action that is taken. Extras are normal.

    Args:
      spec: of the environment; observations may be of named leaves.
      key: consumed.
      length: T.
      resets: further rows that begin an episode.
    """
    keys = jax.random.split(key, 3)
    is_first = np.isin(np.arange(length), (0, *resets))
    is_last = jnp.asarray(np.append(is_first[1:], False))
    action = jax.vmap(lambda k: random_action(spec.action, k))(jax.random.split(keys[2], length))
    timestep = Timestep(
        random_observations(spec, keys[0], length, action),
        _arrived(keys[1], is_first),
        jnp.asarray(is_first),
        is_last,
        is_last,
    )
    if spec.extras:
        extras = {
            name: _arrived(jax.random.fold_in(keys[1], i), is_first)
            for i, name in enumerate(spec.extras)
        }
        timestep = timestep._replace(extras=extras)
    return Step(timestep, action)


def _arrived(key: Key, is_first: np.ndarray) -> Array:
    """Normal numbers [T]; nothing arrived with a first row."""
    return jnp.where(is_first, 0.0, jax.random.normal(key, is_first.shape))


def random_observations(spec: EnvSpec, key: Key, length: int, action: PyTree) -> PyTree:
    """Uniform observations [T, …], of whatever leaves the spec has."""
    if isinstance(spec.observation, ArraySpec):
        return _uniform(spec.observation, key, length)
    assert isinstance(spec.observation, DictSpec)
    found = {
        name: _uniform(leaf, jax.random.fold_in(key, i), length)
        for i, (name, leaf) in enumerate(spec.observation.leaves)
    }
    if legal.is_masked(spec):
        parts = zip(*map(jax.tree.leaves, (action_tree(spec.action), action)), strict=True)
        chosen = [action_vector(*part) for part in parts if not isinstance(part[0], BoundedSpec)]
        found[legal.NAME] |= jnp.concatenate(chosen, axis=-1) > 0
    return found


def _uniform(spec: ArraySpec, key: Key, length: int) -> Array:
    """Uniform [T, …] over the range of the dtype, which ends at 255 at the latest."""
    dtype = jnp.dtype(spec.dtype)
    uniform = jax.random.uniform(key, (length, *spec.shape))
    if jnp.issubdtype(dtype, jnp.bool_):
        return uniform < 0.5
    if jnp.issubdtype(dtype, jnp.integer):
        uniform = uniform * (min(jnp.iinfo(dtype).max, 255) + 1)
    return uniform.astype(dtype)


def random_windows(
    spec: EnvSpec, key: Key, num: int, length: int, resets: tuple[int, ...] = ()
) -> Trajectory:
    """Windows [B, T] of different made-up rows; see `random_trajectory`."""
    windows = [
        random_trajectory(spec, jax.random.fold_in(key, i), length, resets) for i in range(num)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *windows)


def random_transitions(spec: EnvSpec, key: Key, lead: tuple[int, int]) -> Transition:
    """Made-up transitions [U, B], as a behaviour that learns from them takes them.

    The last of each batch of several is the seam between two episodes: `valid` is 0 there.
    """
    steps, size = lead
    windows = random_windows(spec, key, steps, size + 1, (size,) if size > 1 else ())
    return jax.vmap(transitions)(windows)


def without_first_row(trajectory: Trajectory) -> Trajectory:
    """The same rows as a continuation of the episode before."""
    timestep = trajectory.timestep
    is_first = timestep.is_first.at[0].set(False)
    return trajectory._replace(timestep=timestep._replace(is_first=is_first))


def noisy(params: PyTree, key: Key) -> PyTree:
    """Parameters with normal noise on every float, so that no layer is 0."""
    leaves, tree = jax.tree.flatten(params)
    loud = [
        x + NOISE * jax.random.normal(jax.random.fold_in(key, i), x.shape).astype(x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else x
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, loud)
