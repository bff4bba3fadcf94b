"""Weight initialisers of the reference systems."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

# Standard deviation of a unit normal truncated at ±2: dividing by it restores the wanted one.
TRUNCATED_STD = 0.87962566


def uniform_fan_in(fan_in: int):
    """U(±1/√fan_in), torch's default for linear and convolution weights *and* biases."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def glorot_truncated(key, shape, dtype=jnp.float32):
    """Normal of variance 2/(fan_in + fan_out), truncated at ±2 σ'; kernels [..., in, out].

    Drama's and STORM's `weight_init`; for convolutions the fans are k² times the channels.
    """
    receptive = math.prod(shape[:-2])
    std = math.sqrt(2.0 / (receptive * (shape[-2] + shape[-1]))) / TRUNCATED_STD
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


def orthogonal(gain: float):
    """Orthogonal with `gain`; a gain of 0 gives zeros without a decomposition."""
    return nn.initializers.orthogonal(gain) if gain else nn.initializers.zeros
