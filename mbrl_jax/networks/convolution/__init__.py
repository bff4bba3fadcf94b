"""Two-dimensional convolutions, channels last, in the form that is fastest: see `methods`."""

from mbrl_jax.networks.convolution.methods import (
    METHODS,
    auto_method,
    convolution,
    transposed_convolution,
)

__all__ = ["METHODS", "auto_method", "convolution", "transposed_convolution"]
