"""Batch normalisation as the published Drama uses it."""

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
            axes = tuple(range(x.ndim - 1))
            mean, var = x32.mean(axes), x32.var(axes)
            count = x32.size // channels
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        normed = (x32 - mean) / jnp.sqrt(var + EPS) * scale + bias
        return normed.astype(x.dtype)


def apply_with_stats(
    module: nn.Module, params: PyTree, stats: PyTree, x: Array, train: bool
) -> tuple[Array, PyTree]:
    """Apply a module that may hold BatchNorm (then `stats` is not empty); (output, new stats)."""
    variables = {"params": params, **({"batch_stats": stats} if stats else {})}
    if not (train and stats):
        return module.apply(variables, x, train), stats
    y, changed = module.apply(variables, x, train, mutable=["batch_stats"])
    return y, changed["batch_stats"]
