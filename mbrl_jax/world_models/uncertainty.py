"""How far an ensemble of diagonal normals is to be trusted: the penalties of offline methods.

Axes: `E` members, `D` outputs (the reward and the change of the observation, in the environment's
own units). All functions are for one row; norms are Euclidean, and run over all members, not over
elites alone.

References: Yu et al. 2020 (MOPO), https://arxiv.org/abs/2005.13239; Kidambi et al. 2020 (MOReL),
https://arxiv.org/abs/2005.05951; Lu et al. 2022, https://arxiv.org/abs/2110.04135.
"""

import math

import jax.numpy as jnp

from mbrl_jax.types import Array

NAMES = (
    *("max_std", "max_variance", "pairwise", "distance", "ensemble_variance", "ensemble_std"),
    *("mean_std", "left_out_kl", "likelihood_variance"),
)


def measures(mean: Array, std: Array, member: Array, sample: Array) -> dict[str, Array]:
    """All measures of this file, by name, each `[]`.

    Args:
      mean: of each member `[E, D]`.
      std: of each member `[E, D]`, positive.
      member: the one that was drawn, `[]` int32.
      sample: what was drawn from it `[D]`.
    """
    return {
        "max_std": max_std(std),
        "max_variance": max_std(jnp.square(std)),
        "pairwise": pairwise(mean),
        "distance": distance(mean[:, 1:]),
        "ensemble_variance": _norm(total_variance(mean, std)),
        "ensemble_std": ensemble_std(mean, std),
        "mean_std": mean_std(mean),
        "left_out_kl": left_out_kl(mean, std)[member],
        "likelihood_variance": jnp.var(log_likelihood(mean, std, sample)),
    }


def max_std(std: Array) -> Array:
    """`max_i ‖σ_i‖` of `[E, D]`: MOPO's penalty as its code has it; of variances, Lu et al.'s."""
    return jnp.max(_norm(std))


def pairwise(mean: Array) -> Array:
    """`max_{i,j} ‖μ_i - μ_j‖` of `[E, D]`: MOReL's discrepancy."""
    return jnp.max(_norm(mean[:, None] - mean[None]))


def distance(mean: Array) -> Array:
    """`max_i ‖μ_i - mean_j μ_j‖` of `[E, D]`: MOPO's other penalty, on the observation alone."""
    return jnp.max(_norm(mean - jnp.mean(mean, axis=0)))


def total_variance(mean: Array, std: Array) -> Array:
    """`mean_i σ_i² + var_i μ_i` `[D]`: the variance of the mixture (law of total variance)."""
    return jnp.mean(jnp.square(std), axis=0) + jnp.var(mean, axis=0)


def ensemble_std(mean: Array, std: Array) -> Array:
    """Norm of the deviations of the mixture, `[]` (Lu et al.'s choice)."""
    return _norm(jnp.sqrt(total_variance(mean, std)))


def mean_std(mean: Array) -> Array:
    """`√(mean_d var_i μ_i)`: what OfflineRL-Kit calls ensemble std; no noise of the members."""
    return jnp.sqrt(jnp.mean(jnp.var(mean, axis=0)))


def left_out_kl(mean: Array, std: Array) -> Array:
    """`KL(N(μ_i, σ_i) ‖ N(moments of the other members))` `[E]`; needs two members."""
    num = mean.shape[0]
    others = lambda x: (jnp.sum(x, axis=0) - x) / max(1, num - 1)  # noqa: E731
    mean = mean - jnp.mean(mean, axis=0)  # for the precision of the squares
    own, other_mean = jnp.square(std), others(mean)
    other = others(own + jnp.square(mean)) - jnp.square(other_mean)
    other = jnp.maximum(other, jnp.min(own, axis=0))  # whatever rounding left
    ratio = (own + jnp.square(mean - other_mean)) / other
    return 0.5 * jnp.sum(jnp.log(other / own) + ratio - 1.0, axis=-1)


def log_likelihood(mean: Array, std: Array, sample: Array) -> Array:
    """Log-density of `sample` `[D]` under each member, `[E]`."""
    scaled = (sample - mean) / std
    return -0.5 * jnp.sum(jnp.square(scaled) + 2.0 * jnp.log(std) + math.log(2.0 * math.pi), -1)


def _norm(x: Array) -> Array:
    """Euclidean norm over the last axis; its gradient at 0 is 0."""
    square = jnp.sum(jnp.square(x), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
