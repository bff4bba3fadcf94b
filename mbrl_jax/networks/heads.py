"""Multi-layer perceptrons: hidden layers of Linear, RMSNorm, SiLU, then a linear output."""

from collections.abc import Callable

from flax import linen as nn

from mbrl_jax.networks.initializers import glorot_truncated

RMS_EPS = 1e-6  # torchtune's RMSNorm, which Drama's stem, heads and actor-critic use


class Mlp(nn.Module):
    """[..., F] -> [..., num_outputs]; no hidden layer when `layers` is 0."""

    num_outputs: int
    width: int
    layers: int
    hidden_init: Callable = glorot_truncated
    output_init: Callable = glorot_truncated
    output_bias_init: Callable = nn.initializers.zeros
    eps: float = RMS_EPS

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.Dense(self.width, kernel_init=self.hidden_init)(x)
            x = nn.silu(nn.RMSNorm(epsilon=self.eps)(x))
        return nn.Dense(
            self.num_outputs, kernel_init=self.output_init, bias_init=self.output_bias_init
        )(x)
