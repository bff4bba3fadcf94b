"""Running mean and variance per dimension, mixed with a rate: recent batches count more."""

from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.masks import weighted_mean
from mbrl_jax.types import Array


class Moments(NamedTuple):
    """Running mean and variance, per dimension."""

    mean: Array  # [D]
    variance: Array  # [D]


def fresh(size: int) -> Moments:
    """Mean 0 and variance 1, `[size]` each."""
    return Moments(jnp.zeros((size,)), jnp.ones((size,)))


def mix(moments: Moments, rate: Array, x: Array, valid: Array) -> Moments:
    """Moments of the mixture of what was seen and, with weight `rate`, the valid rows `[R, D]`."""
    mean = weighted_mean(x.T, valid)
    variance = weighted_mean(jnp.square(x - mean).T, valid)
    shift = mean - moments.mean
    old = moments.variance + rate * jnp.square(shift)
    return Moments(moments.mean + rate * shift, (1 - rate) * old + rate * variance)


def deviation(moments: Moments) -> Array:
    """Standard deviation `[D]`; 1 for a dimension that does not vary beyond rounding."""
    constant = moments.variance < 1e-10 * (1e-2 + jnp.square(moments.mean))
    return jnp.where(constant, 1.0, jnp.sqrt(jnp.where(constant, 1.0, moments.variance)))


def standardise(moments: Moments, x: Array) -> Array:
    """`x` less its running mean, over its running deviation."""
    return (x - moments.mean) / deviation(moments)
