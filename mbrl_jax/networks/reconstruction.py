"""What an observation is to a world model: its input, the decoder's mean, and the loss of it.

Kinds: "bernoulli" for binary observations, "sigmoid" squared error for images in [0, 1], "squared"
for unbounded vectors, "symlog" squared error of symlog(o) for vectors of any scale (DreamerV3,
arXiv 2301.04104, equation 9). "auto" is one of them by the dtype: see `kind_of`. A dictionary of
leaves has one for each, which only "auto" can say.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mbrl_jax import distributions
from mbrl_jax.types import Array, ArraySpec, DictSpec, ObservationSpec, PyTree

Kind = Literal["bernoulli", "sigmoid", "squared", "symlog", "auto"]


def kind_of(kind: Kind, spec: ArraySpec) -> Kind:
    """The kind that "auto" stands for; any other as it is.

    Booleans are binary and bytes have bounds. Nothing bounds other integers and floats, so that
    they are numbers of any scale: of integers a one-hot vector would need a bound, which a spec
    does not have.
    """
    if kind != "auto":
        return kind
    return _AUTO.get(spec.dtype, "symlog")


_AUTO: dict[str, Kind] = {"bool": "bernoulli", "uint8": "sigmoid"}


def require_kind(kind: Kind, spec: ObservationSpec) -> None:
    """Raise ValueError where one kind is asked for all leaves of a dictionary."""
    if isinstance(spec, DictSpec) and kind != "auto":
        raise ValueError(
            f"reconstruction={kind} is that of one array, and observations here are a dictionary "
            f"of {', '.join(name for name, _ in spec.leaves)}: use encoder=auto, decoder=auto and "
            "reconstruction=auto"
        )


def to_input(kind: Kind, spec: ObservationSpec, observation: PyTree) -> PyTree:
    """What the encoder reads: bytes as numbers in [0, 1], "symlog" squeezed, the rest as it is."""
    return _by_leaf(_to_input, kind, spec, observation)


def _to_input(kind: Kind, spec: ArraySpec, observation: Array) -> Array:
    scale = 255.0 if spec.dtype == "uint8" else 1.0
    x = observation.astype(jnp.float32) / scale
    return distributions.symlog(x) if kind == "symlog" else x


def mean(kind: Kind, spec: ObservationSpec, raw: PyTree) -> PyTree:
    """The observation that the decoder's raw output stands for; bytes as numbers in [0, 1]."""
    return _by_leaf(_mean, kind, spec, raw)


def _mean(kind: Kind, spec: ArraySpec, raw: Array) -> Array:
    del spec
    if kind == "symlog":
        return distributions.symexp(raw)
    return raw if kind == "squared" else jax.nn.sigmoid(raw)


def loss(kind: Kind, spec: ObservationSpec, raw: PyTree, observation: PyTree) -> Array:
    """Summed over the observation, all its leaves included, and the mean over all rows: []."""
    each = _by_leaf(_loss, kind, spec, raw, observation)
    return sum(each.values(), jnp.zeros(())) if isinstance(each, dict) else each


def _loss(kind: Kind, spec: ArraySpec, raw: Array, observation: Array) -> Array:
    target = _to_input(kind, spec, observation)
    if kind == "bernoulli":
        error = distributions.bernoulli_nll(raw, target)
    else:
        error = jnp.square((jax.nn.sigmoid(raw) if kind == "sigmoid" else raw) - target)
    rows = raw.shape[: raw.ndim - len(spec.shape)]
    return error.reshape(rows + (-1,)).sum(axis=-1).mean()


def _by_leaf(f: Callable, kind: Kind, spec: ObservationSpec, *trees: PyTree) -> PyTree:
    """f(kind, spec, …) of one array, or of each leaf of a dictionary."""
    if not isinstance(spec, DictSpec):
        return f(kind_of(kind, spec), spec, *trees)
    return {
        name: f(kind_of(kind, leaf), leaf, *(tree[name] for tree in trees))
        for name, leaf in spec.leaves
    }
