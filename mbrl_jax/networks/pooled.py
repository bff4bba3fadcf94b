"""DreamerV3's networks for images (arXiv 2301.04104, as its code stands since 2024).

Facts: dreamerv3/rssm.py. Convolutions of kernel 5 without stride; the encoder halves its maps by
the largest of four neighbours, the decoder doubles them by repeating. Norms are over the channels
of one place, with DreamerV3's eps.
"""

import functools
import math

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.block_gru import RMS_EPS, BlockLinear
from mbrl_jax.networks.convolution import convolution
from mbrl_jax.networks.initializers import fan_in_truncated
from mbrl_jax.types import ArraySpec

KERNEL = 5
LEAST_SIDE, MOST_SIDE = 3, 16  # of the smallest map


def smallest(spec: ArraySpec, stages: int) -> tuple[int, int]:
    """Sides of the smallest map behind `stages` halvings.

    Raises ValueError where the observation is no image of such sides.
    """
    sides = spec.shape[:2]
    small = tuple(side // 2**stages for side in sides)
    whole = all(side % 2**stages == 0 for side in sides)
    if len(spec.shape) != 3 or not whole or not LEAST_SIDE <= min(small) <= max(small) <= MOST_SIDE:
        raise ValueError(
            f"a Pooled encoder or decoder halves [H, W, C] images {stages} times, down to sides of "
            f"{LEAST_SIDE} to {MOST_SIDE}, and this environment has {spec.shape}: change the "
            "number of `multipliers`, or use Grid or Dense"
        )
    return small[0], small[1]


class Conv(nn.Module):
    """[B, H, W, C] -> [B, H, W, features]."""

    features: int

    @nn.compact
    def __call__(self, x):
        shape = (KERNEL, KERNEL, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_in_truncated(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolution(x, kernel) + bias


_norm = functools.partial(nn.RMSNorm, epsilon=RMS_EPS)


class PooledEncoder(nn.Module):
    """[..., H, W, C] in [0, 1] -> [..., F]; a stage for each of `widths`."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train: bool):
        del train
        batch = x.shape[:-3]
        x = x.reshape((-1,) + x.shape[-3:]) - 0.5
        for width in self.widths:
            x = Conv(width)(x)
            rows, columns = x.shape[1] // 2, x.shape[2] // 2
            x = x.reshape(-1, rows, 2, columns, 2, width).max(axis=(2, 4))
            x = nn.silu(_norm()(x))
        return x.reshape(batch + (-1,))


class PooledDecoder(nn.Module):
    """[..., deter + stoch] -> [..., H, W, C], raw outputs that want a sigmoid.

    The first `deter` numbers reach the smallest map through a matrix for each of `blocks` groups of
    its channels, the others through a hidden layer; the sum is normed. Without `deter` there is the
    second way alone.
    """

    widths: tuple[int, ...]  # of the maps from the smallest on
    small: tuple[int, int]
    channels: int
    units: int
    deter: int
    blocks: int

    @nn.compact
    def __call__(self, z, train: bool):
        del train
        batch, z = z.shape[:-1], z.reshape(-1, z.shape[-1])
        (height, width), depth = self.small, self.widths[0]
        x = nn.Dense(2 * self.units, kernel_init=fan_in_truncated())(z[:, self.deter :])
        size = math.prod((height, width, depth))
        x = nn.Dense(size, kernel_init=fan_in_truncated())(nn.silu(_norm()(x)))
        x = x.reshape(-1, height, width, depth)
        if self.deter:
            h = z[:, : self.deter].reshape(-1, self.blocks, self.deter // self.blocks)
            own = BlockLinear(size // self.blocks)(h)
            own = own.reshape(-1, self.blocks, height, width, depth // self.blocks)
            x = x + jnp.moveaxis(own, 1, 3).reshape(x.shape)
        x = nn.silu(_norm()(x))
        for features in self.widths[1:]:
            x = nn.silu(_norm()(Conv(features)(_doubled(x))))
        x = Conv(self.channels)(_doubled(x))
        return x.reshape(batch + x.shape[1:])


def _doubled(x):
    """[B, H, W, C] -> [B, 2H, 2W, C]: each place four times."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
