"""Seeds: one leading axis at the outermost place, vmapped and spread over devices and processes.

S seeds lie on as many devices as are needed, the same number on each; where that does not come out
even, the last one is repeated to `padded(S)` rows, and what the repetitions do is cut off.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mbrl_jax.types import Array, Key, PyTree

AXIS = "seed"


def seed_keys(seed: int, num_seeds: int, first: int = 0) -> Key:
    """Keys [S]; that of lane `first` + i is `fold_in(key(seed), first + i)`, whatever S is."""
    lanes = first + jnp.arange(num_seeds)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(lanes)


def _layout(num_seeds: int) -> tuple[int, int]:
    """(seeds on each device, devices used)."""
    devices = jax.device_count()
    each = -(-num_seeds // devices)
    # With several processes all take part: one without any seed could not run the program.
    return each, devices if jax.process_count() > 1 else -(-num_seeds // each)


def padded(num_seeds: int) -> int:
    """Rows of arrays that hold so many seeds: the same number on each device."""
    each, devices = _layout(num_seeds)
    return each * devices


def seed_mesh(num_seeds: int) -> Mesh:
    """The devices that S seeds lie on."""
    _, devices = _layout(num_seeds)
    return Mesh(jax.devices()[:devices], (AXIS,))


def seed_sharding(num_seeds: int) -> NamedSharding:
    """How arrays [padded(S), …] lie on the devices."""
    return NamedSharding(seed_mesh(num_seeds), PartitionSpec(AXIS))


def over_seeds(
    fn: Callable,
    num_seeds: int,
    num_shared: int = 0,
    donate: tuple[int, ...] = (),
) -> Callable:
    """`jit(shard_map(vmap(fn)))`: run a function of one seed for S of them.

    Args:
      fn: (per-seed pytree, …, shared scalars …) -> per-seed pytree. The last `num_shared`
        arguments are the same for all seeds and are not batched.
      num_seeds: S; the leading axis of every leaf of the other arguments and of the result has
        `padded(S)` rows.
      num_shared: number of shared arguments.
      donate: places of the arguments whose buffers are given to the result.

    Seeds never talk to each other: the compiled program holds no collective (tested).
    """
    mesh = seed_mesh(num_seeds)

    def mapped(*args):
        split = len(args) - num_shared
        axes = (0,) * split + (None,) * num_shared
        specs = (PartitionSpec(AXIS),) * split + (PartitionSpec(),) * num_shared
        return jax.shard_map(
            jax.vmap(fn, axes),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(*args)

    return jax.jit(mapped, donate_argnums=donate)


# ------------------------------------------------------------- between devices, processes and NumPy


def any_process(here: bool) -> bool:
    """Whether something holds in one of the processes; all have to ask."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(here)).any())


def local(tree: PyTree) -> PyTree:
    """The rows of this process, as NumPy's arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_local, tree)


def _local(x: Array | np.ndarray) -> np.ndarray:
    if isinstance(x, np.ndarray) or x.is_fully_addressable:
        return np.asarray(x)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def replicate(x: np.ndarray, num_seeds: int) -> Array:
    """An array that every device of S seeds holds whole."""
    sharding = NamedSharding(seed_mesh(num_seeds), PartitionSpec())
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def place(tree: PyTree, num_seeds: int) -> PyTree:
    """Rows of this process, as NumPy's arrays, as arrays [padded(S), …] on all devices."""
    sharding = seed_sharding(num_seeds)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def gather(tree: PyTree, num_seeds: int) -> PyTree:
    """All rows [S, …] in every process, of what each has its own rows of (or of global arrays)."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        tree = multihost_utils.process_allgather(local(tree), tiled=True)
    return jax.tree.map(lambda x: x[:num_seeds], jax.device_get(tree))
