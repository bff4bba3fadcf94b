"""Weight initialisers of the reference systems."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.types import Array, Key

Initializer = Callable[..., Array]  # (key, shape, dtype)

# Standard deviation of a unit normal truncated at ±2: dividing by it restores the wanted one.
TRUNCATED_STD = 0.87962566


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(±1/√fan_in), torch's default for linear and convolution weights *and* biases."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_default(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """`uniform_fan_in` of a linear layer's kernel [in, out]."""
    return uniform_fan_in(shape[0])(key, shape, dtype)


def glorot_truncated(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Normal of variance 2/(fan_in + fan_out), truncated at ±2 σ'; kernels [..., in, out].

    Drama's `weight_init`; for convolutions the fans are k² times the channels.
    """
    receptive = math.prod(shape[:-2])
    std = math.sqrt(2.0 / (receptive * (shape[-2] + shape[-1]))) / TRUNCATED_STD
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


def scaled(inner: Initializer, gain: float) -> Initializer:
    """`gain` times what `inner` gives."""
    return lambda key, shape, dtype=jnp.float32: gain * inner(key, shape, dtype)


def fan_in_truncated(gain: float = 1.0) -> Initializer:
    """Normal of deviation gain/√fan_in, truncated at ±2 σ'; 0 gives zeros (DreamerV3).

    The axes in front of the last two count as fan, as of a convolution.
    """
    if not gain:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal")


def orthogonal(gain: float) -> Initializer:
    """Orthogonal rows or columns, uniformly distributed, times `gain`; 0 gives zeros.

    Gram-Schmidt on a normal matrix, and not a library's QR: jaxlib 0.10.2's batched LAPACK calls
    wait inside XLA's CPU threads for those same threads, so that vmapped seeds can deadlock; and
    plain products compile faster and lower for every backend.
    """
    if not gain:
        return nn.initializers.zeros

    def init(key, shape, dtype=jnp.float32):
        rows, columns = math.prod(shape[:-1]), shape[-1]
        normal = jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype)

        def orthogonalise(j, basis):
            vector = normal[:, j]
            for _ in range(2):  # the second pass removes what rounding left of the first
                vector = vector - basis @ (basis.T @ vector)
            return basis.at[:, j].set(vector / jnp.linalg.norm(vector))

        basis = jax.lax.fori_loop(0, normal.shape[1], orthogonalise, jnp.zeros_like(normal))
        return gain * (basis if rows >= columns else basis.T).reshape(shape)

    return init
