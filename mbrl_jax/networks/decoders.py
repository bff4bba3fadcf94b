"""Observation decoders: [..., Z] -> [..., *observation], raw outputs (no sigmoid).

Of a dictionary of leaves `Auto` makes a decoder each, and the output is a dictionary.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.convolution import transposed_convolution
from mbrl_jax.networks.encoders import (
    FORMS,
    Form,
    ImageLayers,
    by_leaf,
    conv_weights,
    require_array,
    require_image,
)
from mbrl_jax.networks.grid import GridDecoder, require_grid
from mbrl_jax.networks.heads import Mlp
from mbrl_jax.networks.normed_convolution import layer
from mbrl_jax.networks.norms import Affine, BatchNorm, Moments, moments
from mbrl_jax.networks.pooled import PooledDecoder, smallest
from mbrl_jax.types import Array, ArraySpec, ObservationSpec, bounded


class DenseDecoder(nn.Module):
    """An MLP reshaped to the observation."""

    width: int
    layers: int
    shape: tuple[int, ...]
    form: Form = "drama"

    @nn.compact
    def __call__(self, z, train: bool):
        del train
        size = 1
        for side in self.shape:
            size *= side
        init, eps = FORMS[self.form]
        flat = Mlp(size, self.width, self.layers, init, init, eps=eps)(z)
        return flat.reshape(z.shape[:-1] + self.shape)


@dataclasses.dataclass(frozen=True)
class Dense:
    """For vectors and small grids."""

    width: int = bounded(128, low=1)
    layers: int = bounded(1, low=0)
    form: Form = "drama"

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module for one observation spec; raises ValueError for a dictionary."""
        require_array(spec)
        return DenseDecoder(self.width, self.layers, spec.shape, self.form)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Transposed convolutions to small grids (`networks.grid`), the last from `depth` channels."""

    depth: int = bounded(16, low=1)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for observations that are no [H, W, C] grids."""
        require_array(spec)
        require_grid(spec)
        return GridDecoder(self.depth, spec.shape)


class ConvTranspose(nn.Module):
    """torch's ConvTranspose2d: [N, H, W, C] -> [N, H · stride, W · stride, features], moments."""

    layers: ImageLayers
    features: int
    stride: int
    bias: bool

    @nn.compact
    def __call__(self, x, affine: Affine) -> tuple[Array, Moments]:
        c = self.layers
        added = 2 * c.padding + self.stride - c.kernel
        transposed = functools.partial(
            transposed_convolution, stride=self.stride, padding=c.padding, output_padding=added
        )
        inits = c.inits(c.kernel**2 * self.features)  # torch counts the output
        kernel, bias = conv_weights(self, inits, x.shape[-1], self.bias)
        return layer(transposed, x, affine, kernel, bias, c.activation)


class ImageDecoder(nn.Module):
    """Linear to 4×4, BatchNorm, an activation, then transposed convolutions, the last to pixels."""

    layers: ImageLayers
    widths: tuple[int, ...]  # of the maps from 4×4 on
    channels: int

    @nn.compact
    def __call__(self, z, train: bool):
        c, batch = self.layers, z.shape[:-1]
        init, bias_init = c.inits(z.shape[-1])
        x = nn.Dense(16 * self.widths[0], c.bias, kernel_init=init, bias_init=bias_init)(z)
        x = x.reshape((-1, self.widths[0], 4, 4))  # channel-first, as the encoder flattens
        x = jnp.moveaxis(x, 1, -1)
        affine = BatchNorm()(moments(x), x.size // self.widths[0], train)
        for width in self.widths[1:]:
            x, found = ConvTranspose(c, width, 2, c.bias)(x, affine)
            affine = BatchNorm()(found, x.size // width, train)
        x, _ = ConvTranspose(c, self.channels, c.outer_stride, True)(x, affine)
        return x.reshape(batch + x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Image64:
    """Drama's decoder of 64×64 images (specification section 2); its output wants a sigmoid.

    STORM's with `layers=STORM`, whose output is the image (`reconstruction="squared"`).
    """

    depth: int = bounded(16, low=1)
    multipliers: tuple[int, ...] = bounded((1, 2, 3, 4, 4), low=1)
    layers: ImageLayers = ImageLayers()

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError unless it draws images, and they are 64×64."""
        require_image(spec)
        if (first := self.layers.sides(len(self.multipliers))[-1]) != 4:
            raise ValueError(
                f"a decoder begins with a map of 4×4, and {len(self.multipliers)} multipliers with "
                f"outer_stride={self.layers.outer_stride} would ask for one of {first}×{first}"
            )
        widths = tuple(self.depth * m for m in reversed(self.multipliers))
        return ImageDecoder(self.layers, widths, spec.shape[-1])


@dataclasses.dataclass(frozen=True)
class Pooled:
    """DreamerV3's for images of any sides (`networks.pooled`); its output wants a sigmoid."""

    depth: int = bounded(16, low=1)
    multipliers: tuple[int, ...] = bounded((2, 3, 4, 4), low=1)
    units: int = bounded(256, low=1)
    # how many numbers of the latent, from the first on, are the deterministic state
    deter: int = bounded(2048, low=0)
    blocks: int = bounded(8, low=1)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for sizes that do not fit."""
        require_array(spec)
        small = smallest(spec, len(self.multipliers))
        widths = tuple(self.depth * m for m in reversed(self.multipliers))
        if self.deter % self.blocks or widths[0] % self.blocks:
            raise ValueError(
                f"decoder.blocks={self.blocks} must divide decoder.deter={self.deter} and the "
                f"{widths[0]} channels of the smallest map"
            )
        channels = spec.shape[-1]
        return PooledDecoder(widths, small, channels, self.units, self.deter, self.blocks)


class TreeDecoder(nn.Module):
    """[..., Z] -> a dictionary of leaves [..., *leaf], each by its own net, by name."""

    nets: dict[str, nn.Module]

    @nn.compact
    def __call__(self, z, train: bool):
        return {name: self.nets[name](z, train) for name in sorted(self.nets)}


@dataclasses.dataclass(frozen=True)
class Auto:
    """For every observation, a dictionary too: for each leaf what `encoders.net_for` says."""

    image: Image64 = Image64()
    grid: Grid = Grid()
    dense: Dense = Dense()

    def make(self, spec: ObservationSpec) -> nn.Module:
        """Build the module; of a single array it is that of the config that was chosen."""
        return by_leaf(self, spec, TreeDecoder)
