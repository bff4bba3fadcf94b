"""Batch normalisation as the published Drama uses it, in two steps; TD-MPC2's normed layers.

`moments` of a map lead to an `Affine`, which `activate` applies where the map is read:
`normed_convolution` says why. `NormedMlp` and `simnorm` are those of Hansen et al. 2024, section
3.1, https://arxiv.org/abs/2310.16828
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.types import Array, PyTree

MOMENTUM = 0.9  # torch's momentum 0.1: running = 0.9 · old + 0.1 · new
EPS = 1e-5
Activation = Literal["silu", "relu"]  # behind a batch normalisation: Drama's, STORM's


class Moments(NamedTuple):
    """Of a map [..., C] over all its axes but the last."""

    mean: Array  # [C]
    var: Array  # [C], biased


class Affine(NamedTuple):
    """What the normalisation comes to once moments are known: scale · x + shift."""

    scale: Array  # [C]
    shift: Array  # [C]


def moments(x: Array) -> Moments:
    """Mean and biased variance of x [..., C] over all leading axes."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return Moments(mean, jnp.square(x - mean).mean(axes))


def activate(x: Array, affine: Affine | None, activation: Activation = "silu") -> Array:
    """The activation of scale · x + shift for x [..., C]; x itself where there is no affine."""
    return x if affine is None else getattr(jax.nn, activation)(affine.scale * x + affine.shift)


class BatchNorm(nn.Module):
    """The affine that normalises each channel (arXiv 1502.03167).

    A training batch is normalised with its biased variance, the running estimate takes the
    unbiased one (torch's rule; flax's own module takes the biased one for both). Otherwise the
    running estimates normalise.
    """

    @nn.compact
    def __call__(self, found: Moments, count: int, train: bool) -> Affine:
        """Args: the batch's moments, of `count` numbers for each channel."""
        channels = found.mean.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = found if train else (running_mean.value, running_var.value)
        if train and not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
            running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        scale = scale * jax.lax.rsqrt(var + EPS)
        return Affine(scale, bias - mean * scale)


def apply_with_stats(
    module: nn.Module, params: PyTree, stats: PyTree, x: PyTree, train: bool
) -> tuple[Any, PyTree]:
    """Apply a module that may hold BatchNorm (then `stats` is not empty); (output, new stats)."""
    variables = {"params": params, **({"batch_stats": stats} if stats else {})}
    if not (train and stats):
        return module.apply(variables, x, train), stats
    y, changed = module.apply(variables, x, train, mutable=["batch_stats"])
    return y, changed["batch_stats"]


# --------------------------------------------------------------------------------------- TD-MPC2

LAYER_NORM_EPS = 1e-5  # torch's
# torch's `trunc_normal_` cuts at ±2 itself, a hundred deviations away: a plain normal.
kernel_init = nn.initializers.normal(0.02)


def simnorm(x: Array, group: int) -> Array:
    """Softmax within groups of `group` neighbours of x [..., F]: a point of F / group simplices."""
    groups = x.reshape(*x.shape[:-1], -1, group)
    return jax.nn.softmax(groups, axis=-1).reshape(x.shape)


class NormedMlp(nn.Module):
    """[..., F] -> [..., num_outputs]; linear at the end, or LayerNorm and SimNorm with a `group`.

    The first hidden layer may drop numbers out; with `train` it needs a key named "dropout".
    """

    num_outputs: int
    width: int
    layers: int = 2
    group: int = 0
    zero_output: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        for layer in range(self.layers):
            x = nn.Dense(self.width, kernel_init=kernel_init)(x)
            if layer == 0:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = jax.nn.mish(nn.LayerNorm(epsilon=LAYER_NORM_EPS)(x))
        output_init = nn.initializers.zeros if self.zero_output else kernel_init
        x = nn.Dense(self.num_outputs, kernel_init=output_init)(x)
        if not self.group:
            return x
        return simnorm(nn.LayerNorm(epsilon=LAYER_NORM_EPS)(x), self.group)
