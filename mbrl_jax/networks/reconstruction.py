"""What an observation is to a world model: its input, the decoder's mean, and the loss of it.

Kinds: "bernoulli" for binary observations, "sigmoid" squared error for images in [0, 1], "squared"
for unbounded vectors, "symlog" squared error of symlog(o) for vectors of any scale (DreamerV3,
arXiv 2301.04104, equation 9). "auto" is one of them by the dtype: see `kind_of`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from mbrl_jax import distributions
from mbrl_jax.types import Array, ArraySpec

Kind = Literal["bernoulli", "sigmoid", "squared", "symlog", "auto"]


def kind_of(kind: Kind, spec: ArraySpec) -> Kind:
    """The kind that "auto" stands for; any other as it is.

    Booleans are binary and bytes have bounds. Nothing bounds other integers and floats, so that
    they are numbers of any scale.
    """
    if kind != "auto":
        return kind
    return _AUTO.get(spec.dtype, "symlog")


_AUTO: dict[str, Kind] = {"bool": "bernoulli", "uint8": "sigmoid"}


def to_input(kind: Kind, spec: ArraySpec, observation: Array) -> Array:
    """What the encoder reads: bytes as numbers in [0, 1], "symlog" squeezed, the rest as it is."""
    scale = 255.0 if spec.dtype == "uint8" else 1.0
    x = observation.astype(jnp.float32) / scale
    return distributions.symlog(x) if kind_of(kind, spec) == "symlog" else x


def mean(kind: Kind, spec: ArraySpec, raw: Array) -> Array:
    """The observation that the decoder's raw output stands for; bytes as numbers in [0, 1]."""
    kind = kind_of(kind, spec)
    if kind == "symlog":
        return distributions.symexp(raw)
    return raw if kind == "squared" else jax.nn.sigmoid(raw)


def loss(kind: Kind, spec: ArraySpec, raw: Array, observation: Array) -> Array:
    """Summed over the observation, mean over all rows: []."""
    kind = kind_of(kind, spec)
    target = to_input(kind, spec, observation)
    if kind == "bernoulli":
        error = distributions.bernoulli_nll(raw, target)
    else:
        error = jnp.square((jax.nn.sigmoid(raw) if kind == "sigmoid" else raw) - target)
    rows = raw.shape[: raw.ndim - len(spec.shape)]
    return error.reshape(rows + (-1,)).sum(axis=-1).mean()
