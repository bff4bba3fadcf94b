"""Batch normalisation as the published Drama uses it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.types import Array, PyTree

MOMENTUM = 0.9  # torch's momentum 0.1: running = 0.9 · old + 0.1 · new
EPS = 1e-5


class BatchNorm(nn.Module):
    """Normalise each channel over all leading axes [..., C] in float32.

    The batch is normalised with its biased variance, the running estimate takes the unbiased
    one (torch's rule; flax's own module takes the biased one for both).
    """

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        x32 = x.astype(jnp.float32)
        if train:
            y, mean, var = normalise_batch(x32, scale, bias)
            count = x32.size // channels
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        else:
            y = (x32 - running_mean.value) / jnp.sqrt(running_var.value + EPS) * scale + bias
        return y.astype(x.dtype)


@jax.custom_vjp
def normalise_batch(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Batch normalisation (arXiv 1502.03167, algorithm 1) of x [..., C] over all leading axes.

    The gradient is written by hand (section 3 there): autodiff's goes through mean and variance
    apart and reads the maps twice as often. Mean and variance pass no gradient of their own.

    Returns:
      y [..., C], mean [C], biased variance [C].
    """
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    inverse = jax.lax.rsqrt(var + EPS)
    y = (x - mean) * (inverse * scale) + bias
    return (y, mean, var), (x, scale, mean, inverse)


def _normalise_backward(kept, bars):
    x, scale, mean, inverse = kept
    y_bar, axes = bars[0], tuple(range(x.ndim - 1))
    normed = (x - mean) * inverse
    bias_bar, scale_bar = y_bar.sum(axes), (y_bar * normed).sum(axes)
    count = x.size // x.shape[-1]
    x_bar = scale * inverse * (y_bar - bias_bar / count - normed * (scale_bar / count))
    return x_bar, scale_bar, bias_bar


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def apply_with_stats(
    module: nn.Module, params: PyTree, stats: PyTree, x: Array, train: bool
) -> tuple[Array, PyTree]:
    """Apply a module that may hold BatchNorm (then `stats` is not empty); (output, new stats)."""
    variables = {"params": params, **({"batch_stats": stats} if stats else {})}
    if not (train and stats):
        return module.apply(variables, x, train), stats
    y, changed = module.apply(variables, x, train, mutable=["batch_stats"])
    return y, changed["batch_stats"]
