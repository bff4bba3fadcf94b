"""Networks for small grids of cells [H, W, C], such as MinAtar's 10 × 10.

Two convolutions of kernel 3 without padding, so that a grid loses two rows and columns in each
(the published network of MinAtar, arXiv 1903.03176, has one such layer); the decoder mirrors them.
Normalisation is over the whole map of one observation: most cells are empty, and a cell
normalised alone would blow up what little is in it; nor does anything depend on the batch.
"""

import jax
from flax import linen as nn

from mbrl_jax.networks.convolution import convolution, transposed_convolution
from mbrl_jax.networks.heads import RMS_EPS
from mbrl_jax.networks.initializers import glorot_truncated
from mbrl_jax.types import ArraySpec

LAYERS = 2
LEAST_SIDE = 2 * LAYERS + 1  # each layer takes one cell from each side


def require_grid(spec: ArraySpec) -> None:
    """Raise ValueError unless observations are [H, W, C] with sides of at least `LEAST_SIDE`."""
    if len(spec.shape) != 3 or min(spec.shape[:2]) < LEAST_SIDE:
        raise ValueError(
            f"a Grid encoder or decoder needs observations of shape (H, W, C) with H and W at "
            f"least {LEAST_SIDE}, this environment has {spec.shape}; use encoder=Dense and "
            "decoder=Dense"
        )


class GridEncoder(nn.Module):
    """[..., H, W, C] -> [..., width]: convolutions to `depth` and 2·`depth` channels, one Linear.

    Each is followed by RMSNorm and SiLU.
    """

    depth: int
    width: int

    @nn.compact
    def __call__(self, x, train: bool):
        del train
        batch = x.shape[:-3]
        x = x.reshape((-1,) + x.shape[-3:])
        for layer in range(LAYERS):
            x = _activate_map(_Conv(self.depth * 2**layer)(x))
        x = nn.Dense(self.width, kernel_init=glorot_truncated)(x.reshape(batch + (-1,)))
        return nn.silu(nn.RMSNorm(epsilon=RMS_EPS)(x))


class GridDecoder(nn.Module):
    """[..., Z] -> [..., *shape], raw outputs: the mirror of the maps of `GridEncoder`.

    A latent becomes the smallest map by one Linear, as in the image decoder.
    """

    depth: int
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, z, train: bool):
        del train
        height, width, channels = self.shape
        small = (height - 2 * LAYERS, width - 2 * LAYERS, self.depth * 2 ** (LAYERS - 1))
        x = nn.Dense(small[0] * small[1] * small[2], kernel_init=glorot_truncated)(z)
        x = _activate_map(x.reshape((-1,) + small))
        for layer in reversed(range(LAYERS - 1)):
            x = _activate_map(_ConvTranspose(self.depth * 2**layer)(x))
        x = _ConvTranspose(channels)(x)
        return x.reshape(z.shape[:-1] + self.shape)


# --------------------------------------------------------------------------------------- private


def _activate_map(x):
    """RMSNorm over the maps [B, H, W, C] with a scale for each channel, then SiLU."""
    norm = nn.RMSNorm(epsilon=RMS_EPS, reduction_axes=(-3, -2, -1), feature_axes=-1)
    return nn.silu(norm(x))


def _method() -> str:
    """Products on CPU, where `lax.conv` with weights of each seed leaves the fast path."""
    return "slices" if jax.default_backend() == "cpu" else "lax"


class _Conv(nn.Module):
    """[B, H, W, C] -> [B, H-2, W-2, features]."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", glorot_truncated, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolution(x, kernel, padding=0, method=_method()) + bias


class _ConvTranspose(nn.Module):
    """[B, H, W, C] -> [B, H+2, W+2, features]."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", glorot_truncated, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return transposed_convolution(x, kernel, padding=0, method=_method()) + bias
