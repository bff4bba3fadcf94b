"""Running mean and variance of vectors, and normalising by them (as stable-baselines does)."""

from typing import NamedTuple

import jax.numpy as jnp

from mbrl_jax.types import Array

_LIMIT = 10.0  # of what is normalised
_EPSILON = 1e-8  # beside the variance


class Running(NamedTuple):
    """What was seen so far."""

    count: Array  # type: ignore[assignment]  # []
    mean: Array  # [F]
    variance: Array  # [F] biased


def fresh(shape: tuple[int, ...]) -> Running:
    """Nothing seen: mean 0 and variance 1 of hardly any rows."""
    return Running(jnp.full((), 1e-4), jnp.zeros(shape), jnp.ones(shape))


def take_in(running: Running, rows: Array) -> Running:
    """Statistics with rows [R, F] among what was seen (Chan, Golub & LeVeque 1979)."""
    count, mean, variance = running
    num_rows = rows.shape[0]
    total = count + num_rows
    delta = rows.mean(0) - mean
    squares = variance * count + rows.var(0) * num_rows + delta**2 * (count * num_rows / total)
    return Running(total, mean + delta * (num_rows / total), squares / total)


def normalise(running: Running, x: Array) -> Array:
    """(x - mean) / deviation of x [..., F], within ±10."""
    scaled = (x - running.mean) / jnp.sqrt(running.variance + _EPSILON)
    return jnp.clip(scaled, -_LIMIT, _LIMIT)
