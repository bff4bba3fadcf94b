"""Observation encoders: [..., *observation] -> [..., F], before the posterior head.

A config's type decides what it makes. `rank` is the rank of one observation; all axes in front
of it are batch axes. Of a dictionary of leaves `Auto` makes an encoder each: [..., F] is what they
give, one behind the other.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax import legal
from mbrl_jax.networks import block_gru
from mbrl_jax.networks.convolution import convolution
from mbrl_jax.networks.grid import LEAST_SIDE, GridEncoder, require_grid
from mbrl_jax.networks.heads import RMS_EPS
from mbrl_jax.networks.initializers import (
    Initializer,
    fan_in_truncated,
    glorot_truncated,
    uniform_fan_in,
)
from mbrl_jax.networks.normed_convolution import layer
from mbrl_jax.networks.norms import Activation, Affine, BatchNorm, Moments, activate
from mbrl_jax.networks.pooled import PooledEncoder, smallest
from mbrl_jax.types import Array, ArraySpec, DictSpec, ObservationSpec, PyTree, bounded

# Whose initial weights and eps of norms an MLP has.
Form = Literal["drama", "dreamerv3"]
FORMS = {"drama": (glorot_truncated, RMS_EPS), "dreamerv3": (fan_in_truncated(), block_gru.RMS_EPS)}


class DenseEncoder(nn.Module):
    """Flatten, then `layers` of Linear, RMSNorm, SiLU."""

    width: int
    layers: int
    rank: int
    form: Form = "drama"

    @nn.compact
    def __call__(self, x, train: bool):
        del train
        x = x.reshape(x.shape[: x.ndim - self.rank] + (-1,))
        init, eps = FORMS[self.form]
        for _ in range(self.layers):
            x = nn.Dense(self.width, kernel_init=init)(x)
            x = nn.silu(nn.RMSNorm(epsilon=eps)(x))
        return x


@dataclasses.dataclass(frozen=True)
class Dense:
    """For vectors and small grids."""

    width: int = bounded(128, low=1)
    layers: int = bounded(1, low=0)
    form: Form = "drama"

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module for one observation spec; raises ValueError for a dictionary."""
        require_array(spec)
        return DenseEncoder(self.width, self.layers, len(spec.shape), self.form)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Convolutions over small grids of cells (`networks.grid`); channels of the first, output."""

    depth: int = bounded(16, low=1)
    width: int = bounded(128, low=1)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for observations that are no [H, W, C] grids."""
        require_array(spec)
        require_grid(spec)
        return GridEncoder(self.depth, self.width)


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

    def inits(self, fan: int) -> tuple[Initializer, Initializer]:
        """Of a layer's weights and its bias; torch's range goes by its `fan`."""
        if self.init == "glorot":
            return glorot_truncated, nn.initializers.zeros
        return uniform_fan_in(fan), uniform_fan_in(fan)

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
        c, channels = self.layers, x.shape[-1]
        convolve = functools.partial(convolution, stride=self.stride, padding=c.padding)
        kernel, bias = conv_weights(self, c.inits(c.kernel**2 * channels), channels, c.bias)
        return layer(convolve, x, affine, kernel, bias, c.activation)


def conv_weights(
    module: Any, inits: tuple[Initializer, Initializer], channels: int, has_bias: bool
) -> tuple[Array, Array]:
    """Kernel [k, k, channels, features] and bias [features] of a layer; zeros for no bias."""
    side, features = module.layers.kernel, module.features
    kernel = module.param("kernel", inits[0], (side, side, channels, features))
    bias = module.param("bias", inits[1], (features,)) if has_bias else jnp.zeros((features,))
    return kernel, bias


class ImageEncoder(nn.Module):
    """Convolutions with BatchNorm and an activation, all but the first with stride 2."""

    layers: ImageLayers
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train: bool):
        batch = x.shape[:-3]
        x, affine = x.reshape((-1,) + x.shape[-3:]), None
        for i, width in enumerate(self.widths):
            stride = 2 if i else self.layers.outer_stride
            x, found = Conv(self.layers, width, stride)(x, affine)
            affine = BatchNorm()(found, x.size // width, train)
        x = activate(x, affine, self.layers.activation)
        # Channel-first order, so that weights of the published model fit (drama.md section 2).
        return jnp.moveaxis(x, -1, 1).reshape(batch + (-1,))


@dataclasses.dataclass(frozen=True)
class Image64:
    """Drama's encoder of 64×64 images (specification section 2); STORM's with `layers=STORM`."""

    depth: int = bounded(16, low=1)
    multipliers: tuple[int, ...] = bounded((1, 2, 3, 4, 4), low=1)
    layers: ImageLayers = ImageLayers()

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for observations that are no 64×64 images."""
        require_image(spec)
        return ImageEncoder(self.layers, tuple(self.depth * m for m in self.multipliers))


@dataclasses.dataclass(frozen=True)
class Pooled:
    """DreamerV3's for images of any sides (`networks.pooled`)."""

    depth: int = bounded(16, low=1)
    multipliers: tuple[int, ...] = bounded((2, 3, 4, 4), low=1)

    def make(self, spec: ArraySpec) -> nn.Module:
        """Build the module; raises ValueError for what cannot be halved so many times."""
        require_array(spec)
        smallest(spec, len(self.multipliers))
        return PooledEncoder(tuple(self.depth * m for m in self.multipliers))


class TreeEncoder(nn.Module):
    """A dictionary of leaves [..., *leaf] -> [..., F]: each by its own net, by name."""

    nets: dict[str, nn.Module]

    @nn.compact
    def __call__(self, x: PyTree, train: bool):
        each = [self.nets[name](x[name], train) for name in sorted(self.nets)]
        return jnp.concatenate(each, axis=-1)


@dataclasses.dataclass(frozen=True)
class Auto:
    """For every observation, a dictionary too: for each leaf what `net_for` says."""

    image: Image64 = Image64()
    grid: Grid = Grid()
    dense: Dense = Dense()

    def make(self, spec: ObservationSpec) -> nn.Module:
        """Build the module; of a single array it is that of the config that was chosen."""
        return by_leaf(self, spec, TreeEncoder)


def by_leaf(config: Any, spec: ObservationSpec, tree: Callable[[dict], nn.Module]) -> nn.Module:
    """The net of each leaf, from the field of `config` that `net_for` names.

    Args:
      config: with the configs `image`, `grid` and `dense`.
      spec: of the observations.
      tree: makes one module of those of a dictionary, by name.
    """
    if isinstance(spec, ArraySpec):
        return getattr(config, net_for(spec)).make(spec)
    return tree({n: getattr(config, net_for(leaf, n)).make(leaf) for n, leaf in spec.leaves})


def net_for(leaf: ArraySpec, name: str = "") -> Literal["image", "grid", "dense"]:
    """Which net a leaf gets: images are 64×64, grids [H, W, C] of other sides, all else is dense.

    A leaf of another rank is a vector, whatever its numbers mean. So is an action mask of any
    shape: its neighbours are no neighbours in space. What numbers a net reads goes by the dtype:
    see `reconstruction.to_input`.
    """
    if name == legal.NAME or len(leaf.shape) != 3:
        return "dense"
    if leaf.shape[:2] == (64, 64):
        return "image"
    return "grid" if min(leaf.shape[:2]) >= LEAST_SIDE else "dense"


def require_array(spec: ObservationSpec) -> None:
    """Raise ValueError for a dictionary of leaves."""
    if isinstance(spec, DictSpec):
        names = ", ".join(name for name, _ in spec.leaves)
        raise ValueError(
            f"this encoder or decoder takes one array, and observations here are a dictionary of "
            f"{names}: use encoder=auto, decoder=auto and reconstruction=auto"
        )


def require_image(spec: ArraySpec) -> None:
    """Raise ValueError unless the observation is a 64×64 image, channels last."""
    require_array(spec)
    if len(spec.shape) != 3 or spec.shape[:2] != (64, 64):
        raise ValueError(
            f"an Image64 encoder or decoder needs observations of shape (64, 64, C), this "
            f"environment has {spec.shape}; use encoder=Grid and decoder=Grid, or Dense"
        )
