"""TD-MPC2's encoder of images (arXiv 2310.16828), and the random shift in front of it.

Four convolutions of sides 7, 5, 3 and 3, the first three of stride 2 and with a ReLU behind them;
what they leave, in a row, is the latent once SimNorm has passed it. Facts: common/layers.py of the
published code.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.convolution import convolution
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.networks.norms import simnorm
from mbrl_jax.types import Array, Key

LAYERS = ((7, 2), (5, 2), (3, 2), (3, 1))  # (side, stride)


def random_shift(key: Key, image: Array, pad: int) -> Array:
    """An image [H, W, C] moved by up to `pad` pixels along either axis, its edges repeated.

    Every one of the (2 pad + 1)² places is as likely (DrQ, Kostrikov et al. 2020, arXiv
    2004.13649).
    """
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), "edge")
    rows, columns = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (rows, columns, 0), image.shape)


def size_of(shape: Sequence[int], channels: int) -> int:
    """Numbers that the convolutions leave of images [H, W, C]; ValueError for too small ones."""
    height, width = shape[:2]
    for side, stride in LAYERS:
        height, width = ((x - side) // stride + 1 for x in (height, width))
    if min(height, width) < 1:
        raise ValueError(
            f"images of {shape[0]} × {shape[1]} are too small for TD-MPC2's convolutions, which "
            "need 39 pixels a side: use larger ones"
        )
    return height * width * channels


class ImageEncoder(nn.Module):
    """[..., H, W, C] in 0 to 255 -> [..., D] points of simplices."""

    channels: int
    group: int  # of the latent's numbers share a softmax

    @nn.compact
    def __call__(self, x):
        lead = x.shape[:-3]
        x = x.reshape((-1, *x.shape[-3:])) / 255.0 - 0.5
        for i, (side, stride) in enumerate(LAYERS):
            init = uniform_fan_in(side * side * x.shape[-1])
            kernel = self.param(f"kernel_{i}", init, (side, side, x.shape[-1], self.channels))
            bias = self.param(f"bias_{i}", init, (self.channels,))
            x = convolution(x if i == 0 else nn.relu(x), kernel, stride, padding=0) + bias
        return simnorm(x.reshape((*lead, -1)), self.group)
