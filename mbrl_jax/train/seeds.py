"""Seeds: one leading axis at the outermost place, vmapped and spread over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mbrl_jax.types import Key

AXIS = "seed"


def seed_keys(seed: int, num_seeds: int, first: int = 0) -> Key:
    """Keys [S]; that of lane `first` + i is `fold_in(key(seed), first + i)`, whatever S is."""
    lanes = first + jnp.arange(num_seeds)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(lanes)


def seed_mesh(num_seeds: int) -> Mesh:
    """A mesh over as many devices as divide the seeds evenly."""
    devices = jax.devices()
    count = max(d for d in range(1, len(devices) + 1) if num_seeds % d == 0)
    return Mesh(devices[:count], (AXIS,))


def over_seeds(fn: Callable, num_seeds: int, num_shared: int = 0, donate: bool = False) -> Callable:
    """`jit(shard_map(vmap(fn)))`: run a function of one seed for S of them.

    Args:
      fn: (per-seed pytree, …, shared scalars …) -> per-seed pytree. The last `num_shared`
        arguments are the same for all seeds and are not batched.
      num_seeds: S, the leading axis of every leaf of the other arguments and of the result.
      num_shared: number of shared arguments.
      donate: give the buffers of the first argument to the result.

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

    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def seed_sharding(num_seeds: int) -> NamedSharding:
    """How arrays [S, …] lie on the devices."""
    return NamedSharding(seed_mesh(num_seeds), PartitionSpec(AXIS))
