"""The distributions of world models, as functions of their parameters.

Logits and log-probabilities keep the classes on the last axis. Everything is float32.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.masks import clean, masked_mean
from mbrl_jax.types import Array, Key

TWO_HOT_LIMIT = 20.0  # bins cover symlog values in [-20, 20]: rewards up to 4.8e8
# What two-hot bins stand for: "symlog" numbers, whose mean goes through symexp (STORM, Drama, the
# first DreamerV3), or the "symexp" of evenly spaced ones, whose mean is the answer (DreamerV3 since
# 2024).
Bins = Literal["symlog", "symexp"]


def unimix_log_probs(logits: Array, unimix: float) -> Array:
    """Log-probabilities [..., C] of `(1 - unimix) softmax(logits) + unimix / C`.

    The uniform share keeps KL terms finite (DreamerV3, arXiv 2301.04104, section "Robustness").
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.log((1.0 - unimix) * probs + unimix / logits.shape[-1])


def sample_one_hot(key: Key, log_probs: Array) -> Array:
    """Draw one-hot samples [..., C] by inverse CDF: one uniform for each categorical.

    Gradients pass straight through to the probabilities (arXiv 1308.3432). The sample is exactly
    one-hot in value: rounding of `p - p` never reaches it.
    """
    probs = jnp.exp(log_probs)
    uniform = jax.random.uniform(key, log_probs.shape[:-1])
    index = (jnp.cumsum(probs, axis=-1)[..., :-1] <= uniform[..., None]).sum(axis=-1)
    one_hot = jax.nn.one_hot(index, log_probs.shape[-1], dtype=jnp.float32)
    return one_hot + (probs - jax.lax.stop_gradient(probs))


def sample_rounded(key: Key, log_probs: Array) -> Array:
    """The draws of `sample_one_hot` [..., C] as sample + p - p gives them in float32.

    Rounded after each step as PyTorch does, the chosen entry is 1 or the float below, 1 - 2⁻²⁴, and
    which of the two hangs on the last bits of p; about a fifth are below 1. Barriers keep compilers
    from simplifying the sum.
    """
    one_hot = jax.lax.stop_gradient(sample_one_hot(key, log_probs))
    probs = jax.lax.optimization_barrier(jnp.exp(log_probs))
    total = jax.lax.optimization_barrier(one_hot + probs)
    return total - jax.lax.stop_gradient(probs)


def categorical_kl(log_p: Array, log_q: Array) -> Array:
    """KL(p ‖ q) [...] in nats of categoricals given by log-probabilities [..., C]."""
    chex.assert_equal_shape((log_p, log_q))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def categorical_entropy(log_probs: Array) -> Array:
    """Entropy [...] in nats of categoricals [..., C]."""
    return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)


def free_kl_losses(
    log_posterior: Array, log_prior: Array, mask: Array, free_nats: float
) -> tuple[Array, Array, Array]:
    """(dynamics, representation, raw KL) [] of log-probabilities [..., groups, classes].

    DreamerV3's form (arXiv 2301.04104, equation 3): the KL of *each row*, summed over groups, is
    clipped from below by `free_nats`, and only then averaged over the rows of mask [...] (bool).
    A row under the floor has no gradient, whatever the others have.
    """
    stop = jax.lax.stop_gradient
    log_posterior, log_prior = clean((log_posterior, log_prior), mask)
    raw = categorical_kl(stop(log_posterior), log_prior).sum(axis=-1)
    back = categorical_kl(log_posterior, stop(log_prior)).sum(axis=-1)
    dynamics, representation = (jnp.maximum(free_nats, kl) for kl in (raw, back))
    means = [masked_mean(x, mask) for x in (dynamics, representation, raw)]
    return means[0], means[1], means[2]


def kl_losses(
    log_posterior: Array, log_prior: Array, weight: Array, free_nats: float
) -> tuple[Array, Array, Array]:
    """(dynamics, representation, raw KL) [] of log-probabilities [..., groups, classes].

    KL summed over groups, weighted mean over rows, and *then* clipped from below by `free_nats`:
    under the floor the whole term has no gradient (specification, trap 6). `free_kl_losses` clips
    row by row.
    """
    stop = jax.lax.stop_gradient

    def mean_kl(p, q):
        kl = categorical_kl(p, q).sum(axis=-1)
        return (kl * weight).sum() / jnp.maximum(weight.sum(), 1.0)

    raw = mean_kl(stop(log_posterior), log_prior)
    dynamics = jnp.maximum(free_nats, raw)
    representation = jnp.maximum(free_nats, mean_kl(log_posterior, stop(log_prior)))
    return dynamics, representation, raw


def symlog(x: Array) -> Array:
    """sign(x) ln(1 + |x|) (arXiv 2301.04104, equation 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """The inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def symexp_bins(num_bins: int, limit: float = TWO_HOT_LIMIT) -> Array:
    """symexp of `num_bins` evenly spaced numbers over ±`limit`: [num_bins], exactly symmetric."""
    bins = symexp(jnp.linspace(-limit, limit, num_bins))
    return (bins - bins[::-1]) / 2.0


def _symlog_position(x: Array, num_bins: int, limit: float) -> tuple[Array, Array]:
    # Evenly spaced bins: the index is computed and not searched.
    spacing = 2.0 * limit / (num_bins - 1)
    scaled = (jnp.clip(symlog(x), -limit, limit) + limit) / spacing
    lower = jnp.clip(jnp.floor(scaled), 0, num_bins - 2)
    upper_weight = (scaled - lower)[..., None]
    return lower.astype(jnp.int32), upper_weight


def _symexp_position(x: Array, num_bins: int, limit: float) -> tuple[Array, Array]:
    bins = symexp_bins(num_bins, limit)
    x = jnp.clip(x, bins[0], bins[-1])
    lower = jnp.clip((bins <= x[..., None]).sum(axis=-1) - 1, 0, num_bins - 2)
    upper_weight = (x - bins[lower]) / (bins[lower + 1] - bins[lower])
    return lower, upper_weight[..., None]


def two_hot(x: Array, num_bins: int, bins: Bins = "symlog", limit: float = TWO_HOT_LIMIT) -> Array:
    """Two-hot encoding [..., num_bins] of x [...]: its mass lies on the two neighbouring bins.

    The shares are linear in what the bins stand for: in symlog(x), or in x itself for "symexp".
    The bins are evenly spaced in symlog over ±`limit`.
    """
    position = _symlog_position if bins == "symlog" else _symexp_position
    index, upper_weight = position(x, num_bins, limit)
    low = jax.nn.one_hot(index, num_bins, dtype=jnp.float32)
    high = jax.nn.one_hot(index + 1, num_bins, dtype=jnp.float32)
    return low * (1.0 - upper_weight) + high * upper_weight


def two_hot_mean(logits: Array, bins: Bins = "symlog", limit: float = TWO_HOT_LIMIT) -> Array:
    """The number [...] that logits [..., num_bins] stand for: symexp of the mean bin, or the mean.

    Of "symexp" bins the two of a pair ±b are taken together, so that equal logits give exactly 0,
    where a plain sum would leave the rounding of numbers up to 4.8e8.
    """
    if bins == "symlog":
        evenly = jnp.linspace(-limit, limit, logits.shape[-1])
        return symexp((jax.nn.softmax(logits.astype(jnp.float32), axis=-1) * evenly).sum(axis=-1))
    probs, half = jax.nn.softmax(logits.astype(jnp.float32), axis=-1), logits.shape[-1] // 2
    surplus = probs[..., -half:] - probs[..., :half][..., ::-1]
    return (surplus * symexp_bins(logits.shape[-1], limit)[-half:]).sum(axis=-1)


def two_hot_loss(
    logits: Array, target: Array, bins: Bins = "symlog", limit: float = TWO_HOT_LIMIT
) -> Array:
    """Cross-entropy [...] in nats of logits [..., num_bins] with the two-hot code of `target`.

    Logits may have leading axes of their own, over several critics, say.
    """
    chex.assert_shape(target, logits.shape[logits.ndim - 1 - target.ndim : -1])
    code = jax.lax.stop_gradient(two_hot(target, logits.shape[-1], bins, limit))
    return -(code * jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)).sum(axis=-1)


def bernoulli_nll(logits: Array, target: Array) -> Array:
    """Negative log-likelihood in nats of `target` in [0, 1]; elementwise, safe for large logits."""
    if jnp.ndim(target):
        chex.assert_equal_shape((logits, target))
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - target * logits
