"""Which parts of an observation are shown in pictures and compared with predictions.

Of a dictionary these are all images; where there is none, all other leaves as one vector. A mask of
legal actions counts only where nothing else is there.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import legal
from mbrl_jax.types import Array, ArraySpec, DictSpec, ObservationSpec, PyTree

WHOLE = ""  # the name of what has no name of its own: an array, or the vector of several leaves


def is_image(leaf: ArraySpec) -> bool:
    """[H, W] or [H, W, C]; a single row or column of numbers is a vector."""
    return len(leaf.shape) in (2, 3) and min(leaf.shape[:2]) > 1


def image_leaves(spec: ObservationSpec) -> tuple[str, ...]:
    """Names of the images in an observation; `WHOLE` for an array that is one."""
    leaves = spec.leaves if isinstance(spec, DictSpec) else ((WHOLE, spec),)
    return tuple(name for name, leaf in leaves if name != legal.NAME and is_image(leaf))


def views(spec: ObservationSpec, observation: PyTree) -> dict[str, Array]:
    """The images [..., *leaf] of observations by name, or all else as one vector [..., D].

    Integers of bytes become numbers in [0, 1], as models decode them; the rest stays as it is.
    NumPy's arrays stay NumPy's.
    """
    if images := image_leaves(spec):
        return {name: _to_units(leaf_of(observation, name)) for name in images}
    return {WHOLE: _one_vector(_vector_leaves(spec), observation)}


def dimension_names(spec: ObservationSpec) -> list[str]:
    """What the numbers of the vector that `views` gives are called."""
    names = []
    for name, leaf in _vector_leaves(spec):
        size, name = math.prod(leaf.shape), name or "dimension"
        names += [name] if size == 1 else [f"{name} {i}" for i in range(size)]
    return names


def _vector_leaves(spec: ObservationSpec) -> list[tuple[str, ArraySpec]]:
    if not isinstance(spec, DictSpec):
        return [(WHOLE, spec)]
    kept = [(name, leaf) for name, leaf in spec.leaves if name != legal.NAME]
    return kept or list(spec.leaves)


def _one_vector(leaves: list[tuple[str, ArraySpec]], observation: PyTree) -> Array:
    flat = []
    for name, leaf in leaves:
        x = _to_units(leaf_of(observation, name))
        rows = x.shape[: x.ndim - len(leaf.shape)]
        flat.append(x.reshape(*rows, -1).astype(np.float32))
    library: Any = jnp if isinstance(flat[0], jax.Array) else np
    return flat[0] if len(flat) == 1 else library.concatenate(flat, axis=-1)


def leaf_of(observation: PyTree, name: str) -> Array:
    """The leaf of that name; all of it for `WHOLE`."""
    return observation[name] if name else observation


def _to_units(x: Array) -> Array:
    return x.astype(np.float32) / 255.0 if x.dtype == np.uint8 else x
