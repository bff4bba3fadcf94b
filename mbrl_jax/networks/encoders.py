"""Observation encoders: [..., *observation] -> [..., F], before the posterior head.

A config's type decides what it makes. `rank` is the rank of one observation; all axes in front
of it are batch axes.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.convolution import convolution
from mbrl_jax.networks.grid import GridEncoder, require_grid
from mbrl_jax.networks.heads import RMS_EPS
from mbrl_jax.networks.initializers import glorot_truncated
from mbrl_jax.networks.normed_convolution import layer
from mbrl_jax.networks.norms import Affine, BatchNorm, Moments, activate
from mbrl_jax.types import Array, ArraySpec, bounded


class DenseEncoder(nn.Module):
    """Flatten, then `layers` of Linear, RMSNorm, SiLU."""

    width: int
    layers: int
    rank: int

    @nn.compact
    def __call__(self, x, train: bool):
        del train
        x = x.reshape(x.shape[: x.ndim - self.rank] + (-1,))
        for _ in range(self.layers):
            x = nn.Dense(self.width, kernel_init=glorot_truncated)(x)
            x = nn.silu(nn.RMSNorm(epsilon=RMS_EPS)(x))
        return x


@dataclasses.dataclass(frozen=True)
class Dense:
    """For vectors and small grids."""

    width: int = bounded(128, low=1)
    layers: int = bounded(1, low=0)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module for one observation spec."""
        return DenseEncoder(self.width, self.layers, len(spec.shape))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Convolutions over small grids of cells (`networks.grid`); channels of the first, output."""

    depth: int = bounded(16, low=1)
    width: int = bounded(128, low=1)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for observations that are no [H, W, C] grids."""
        require_grid(spec)
        return GridEncoder(self.depth, self.width)


class Conv(nn.Module):
    """A convolution of kernel side 5, padding 2, behind the normalisation of its input."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, affine: Affine | None) -> tuple[Array, Moments]:
        kernel = self.param("kernel", glorot_truncated, (5, 5, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return layer(functools.partial(convolution, stride=self.stride), x, affine, kernel, bias)


class ImageEncoder(nn.Module):
    """Convolutions of kernel 5 with BatchNorm and SiLU; the first has stride 1, the rest 2."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train: bool):
        batch = x.shape[:-3]
        x, affine = x.reshape((-1,) + x.shape[-3:]), None
        for i, width in enumerate(self.widths):
            x, found = Conv(width, 1 if i == 0 else 2)(x, affine)
            affine = BatchNorm()(found, x.size // width, train)
        x = activate(x, affine)
        # Channel-first order, so that weights of the published model fit (drama.md section 2).
        return jnp.moveaxis(x, -1, 1).reshape(batch + (-1,))


@dataclasses.dataclass(frozen=True)
class Image64:
    """Drama's encoder of 64×64 images (specification section 2)."""

    depth: int = bounded(16, low=1)
    multipliers: tuple[int, ...] = bounded((1, 2, 3, 4, 4), low=1)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for observations that are no 64×64 images."""
        require_image(spec)
        return ImageEncoder(tuple(self.depth * m for m in self.multipliers))


def require_image(spec: ArraySpec) -> None:
    """Raise ValueError unless the observation is a 64×64 image, channels last."""
    if len(spec.shape) != 3 or spec.shape[:2] != (64, 64):
        raise ValueError(
            f"an Image64 encoder or decoder needs observations of shape (64, 64, C), this "
            f"environment has {spec.shape}; use encoder=Grid and decoder=Grid, or Dense"
        )
