"""TD-MPC2's networks: layers of Linear, LayerNorm, Mish, and SimNorm for what is a latent.

Reference: Hansen et al. 2024, section 3.1, https://arxiv.org/abs/2310.16828
"""

import jax
from flax import linen as nn

from mbrl_jax.types import Array

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
