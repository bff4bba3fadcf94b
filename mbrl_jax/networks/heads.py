"""Multi-layer perceptrons: hidden layers of Linear, a norm, an activation, then a linear output."""

from collections.abc import Callable
from typing import Literal

from flax import linen as nn

from mbrl_jax.networks.initializers import glorot_truncated, torch_default, uniform_fan_in

RMS_EPS = 1e-6  # torchtune's RMSNorm, which Drama's stem, heads and actor-critic use
LAYER_EPS = 1e-5  # torch's LayerNorm
# Hidden layers: Linear, RMSNorm, SiLU (Drama), or Linear without a bias, LayerNorm, ReLU (STORM).
Hidden = Literal["rms_silu", "layer_relu"]


class Mlp(nn.Module):
    """[..., F] -> [..., num_outputs]; no hidden layer when `layers` is 0.

    What `None` begins with hangs on the hidden layers: a truncated normal and a bias of 0, or with
    "layer_relu" all weights as torch's linear layers have them.
    """

    num_outputs: int
    width: int
    layers: int
    hidden_init: Callable | None = None
    output_init: Callable | None = None
    output_bias_init: Callable | None = None
    eps: float = RMS_EPS
    hidden: Hidden = "rms_silu"

    @nn.compact
    def __call__(self, x):
        torch = self.hidden == "layer_relu"
        default = torch_default if torch else glorot_truncated
        for _ in range(self.layers):
            x = nn.Dense(self.width, not torch, kernel_init=self.hidden_init or default)(x)
            if torch:
                x = nn.relu(nn.LayerNorm(epsilon=LAYER_EPS, use_fast_variance=False)(x))
            else:
                x = nn.silu(nn.RMSNorm(epsilon=self.eps)(x))
        bias_init = self.output_bias_init
        if bias_init is None:
            begins = torch and self.output_init is None
            bias_init = uniform_fan_in(x.shape[-1]) if begins else nn.initializers.zeros
        output_init = self.output_init or default
        return nn.Dense(self.num_outputs, kernel_init=output_init, bias_init=bias_init)(x)
