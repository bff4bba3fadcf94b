"""Between a state on the devices and NumPy's arrays of the seeds that this process holds."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.types import PyTree


class Taken(NamedTuple):
    """Leaves of a pytree on the host, by their names; nothing on a device can change them."""

    leaves: dict[str, np.ndarray]  # [seeds of this process, …]; keys as their numbers
    seeds: tuple[int, int]  # which those are


def names(tree: PyTree) -> list[str]:
    """A name for each leaf, in their order; equal trees give equal names."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") or "leaf" for path, _ in paths]


def take(tree: PyTree, num_seeds: int) -> Taken:
    """Copy leaves [S or more, …] to the host; what pads the seeds is left out."""
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    for leaf in leaves:
        leaf.copy_to_host_async()
    pieces = [_own(leaf) for leaf in leaves]
    first = pieces[0][0]
    last = min(first + len(pieces[0][1]), num_seeds)
    own = [rows[: max(last - first, 0)] for _, rows in pieces]
    return Taken(dict(zip(names(tree), own, strict=True)), (first, max(last, first)))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _own(leaf: jax.Array) -> tuple[int, np.ndarray]:
    """(first row, rows) of what lies on this process's devices, copied."""
    shards = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
    # Concatenating copies, also on CPU, where `asarray` shares what the next chunk overwrites.
    return min(shards), np.concatenate([np.asarray(shards[row]) for row in sorted(shards)])


def own_seeds(templates: Iterable[jax.ShapeDtypeStruct], num_seeds: int) -> tuple[int, int]:
    """Which seeds this process needs for arrays like these; half open."""
    template = next(iter(templates))
    rows = [
        index[0].indices(template.shape[0])[:2]
        for index in template.sharding.addressable_devices_indices_map(template.shape).values()
    ]
    first, last = min(row for row, _ in rows), max(row for _, row in rows)
    return min(first, num_seeds - 1), min(last, num_seeds)


def shape_and_dtype(template: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], np.dtype]:
    """Of one seed's rows on the host."""
    if is_key(template):
        template = jax.eval_shape(jax.random.key_data, template)
    return template.shape[1:], np.dtype(template.dtype)


def put(template: jax.ShapeDtypeStruct, rows: np.ndarray, first: int) -> jax.Array:
    """An array like `template` of seeds first, first + 1, …; the last one pads."""

    def piece(index):
        low, high, _ = index[0].indices(template.shape[0])
        if high <= first + len(rows):
            return rows[low - first : high - first]
        return rows[np.minimum(np.arange(low, high) - first, len(rows) - 1)]

    shape = template.shape[:1] + rows.shape[1:]
    placed = jax.make_array_from_callback(shape, template.sharding, piece)
    return jax.random.wrap_key_data(placed) if is_key(template) else placed
