"""Layers of image encoders and decoders: convolutions behind the normalisation of their input."""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.convolution import convolution, transposed_convolution
from mbrl_jax.networks.initializers import (
    Initializer,
    glorot_truncated,
    torch_default,
    torch_default_transposed,
    uniform_fan_in,
)
from mbrl_jax.networks.normed_convolution import layer
from mbrl_jax.networks.norms import Activation, Affine, Moments
from mbrl_jax.types import Array, bounded


@dataclasses.dataclass(frozen=True)
class ImageLayers:
    """What the layers of an image net are; Drama's by default, STORM's are `STORM`."""

    kernel: int = bounded(5, low=1)
    # of the layer next to the pixels; all others halve or double the sides
    outer_stride: int = bounded(1, low=1, high=2)
    bias: bool = True  # in front of a normalisation; what draws the pixels has one always
    activation: Activation = "silu"
    init: Literal["glorot", "torch"] = "glorot"

    def validate(self) -> None:
        """Raise ValueError for a kernel that cannot keep the sides of a map."""
        if self.outer_stride == 1 and self.kernel % 2 == 0:
            raise ValueError(
                f"a kernel of side {self.kernel} cannot keep the sides of a map, which "
                "outer_stride=1 asks for: use an odd kernel, or outer_stride=2"
            )

    @property
    def padding(self) -> int:
        """Zeros on each side of a map: a stride of 2 halves its sides."""
        return (self.kernel - 1) // 2

    def sides(self, layers: int) -> list[int]:
        """Sides of the maps of a net of so many layers, from the pixels' 64 down."""
        return [64 // self.outer_stride >> i for i in range(layers)]


# Kernels of 4 and strides of 2, no biases, ReLU; begun as torch begins (arXiv 2310.09615).
STORM = ImageLayers(kernel=4, outer_stride=2, bias=False, activation="relu", init="torch")


class Conv(nn.Module):
    """[N, H, W, C] -> [N, H / stride, W / stride, features], and the moments of it."""

    layers: ImageLayers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, affine: Affine | None) -> tuple[Array, Moments]:
        c = self.layers
        init = glorot_truncated if c.init == "glorot" else torch_default
        convolve = functools.partial(convolution, stride=self.stride, padding=c.padding)
        kernel, bias = _weights(self, init, x.shape[-1], c.bias)
        return layer(convolve, x, affine, kernel, bias, c.activation)


class ConvTranspose(nn.Module):
    """torch's ConvTranspose2d: [N, H, W, C] -> [N, H · stride, W · stride, features], moments."""

    layers: ImageLayers
    features: int
    stride: int
    bias: bool

    @nn.compact
    def __call__(self, x, affine: Affine) -> tuple[Array, Moments]:
        c = self.layers
        init = glorot_truncated if c.init == "glorot" else torch_default_transposed
        added = 2 * c.padding + self.stride - c.kernel
        transposed = functools.partial(
            transposed_convolution, stride=self.stride, padding=c.padding, output_padding=added
        )
        kernel, bias = _weights(self, init, x.shape[-1], self.bias)
        return layer(transposed, x, affine, kernel, bias, c.activation)


def _weights(
    module: Conv | ConvTranspose, init: Initializer, channels: int, has_bias: bool
) -> tuple[Array, Array]:
    """Kernel [k, k, channels, features] and bias [features] of a module; zeros for no bias."""
    side, features = module.layers.kernel, module.features
    kernel = module.param("kernel", init, (side, side, channels, features))
    if not has_bias:
        return kernel, jnp.zeros((features,))
    # Only a decoder's last layer has a bias under torch's rule, whose fan counts its output.
    torch = uniform_fan_in(side * side * features)
    bias_init = nn.initializers.zeros if module.layers.init == "glorot" else torch
    return kernel, module.param("bias", bias_init, (features,))
