"""The normal distribution squashed by tanh into (-1, 1); single-stream functions.

Reference: Haarnoja et al. 2018, "Soft Actor-Critic", appendix C, https://arxiv.org/abs/1801.01290
"""

import math

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key


def read(raw: Array, low: float, high: float) -> tuple[Array, Array]:
    """Mean and log of the deviation, `[…, A]` each, from a net's `[…, 2 A]`.

    The latter lies between `low` and `high`, on which tanh maps.
    """
    mean, spread = jnp.split(raw, 2, axis=-1)
    return mean, low + 0.5 * (high - low) * (jnp.tanh(spread) + 1.0)


def sample_and_log_prob(key: Key, mean: Array, log_std: Array) -> tuple[Array, Array]:
    """Draws an action `[A]` and its log-density `[]`; see `squash`. The key is consumed."""
    return squash(mean, log_std, jax.random.normal(key, mean.shape, mean.dtype))


def squash(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """The action made from given standard normal noise, and its log-density.

      u = μ + σ z,   a = tanh(u),   log π(a) = Σ_i log N(u_i; μ_i, σ_i) - log(1 - tanh²(u_i))

    The density is taken at u, so no arctanh is needed; gradients flow through u.

    Args:
      mean: `[A]` before squashing.
      log_std: `[A]`.
      noise: `[A]` standard normal.

    Returns:
      action `[A]`, log-density `[]`.
    """
    u = mean + jnp.exp(log_std) * noise
    log_normal = -0.5 * (noise * noise + math.log(2.0 * math.pi)) - log_std
    return jnp.tanh(u), jnp.sum(log_normal - log_det(u), axis=-1)


def log_det(u: Array) -> Array:
    """`log(1 - tanh²(u))`, elementwise and exact for any u: `2 (log 2 - u - softplus(-2u))`."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def mode(mean: Array) -> Array:
    """The greedy action `[A]`: tanh of the mean (the median of the squashed distribution)."""
    return jnp.tanh(mean)
