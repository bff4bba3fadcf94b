"""A core that forgets: what any memory is worth is measured against it.

Its output at a row depends on that row alone, so a world model with it is a Markov chain over its
own latents.
"""

import dataclasses
from collections.abc import Callable

from flax import linen as nn

from mbrl_jax.cores import stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """A residual stack of feed-forward layers of one width, D -> expand · D -> D."""

    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=1)
    expand: int = bounded(2, low=1)

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


class FeedForward(nn.Module):
    """y = W₂ f(W₁ u + b₁) + b₂, row by row; nothing is carried."""

    width: int
    expand: int
    activation: Callable = nn.silu  # f

    def setup(self):
        inner = self.expand * self.width
        self.up = nn.Dense(inner, kernel_init=uniform_fan_in(self.width))
        self.down = nn.Dense(self.width, kernel_init=uniform_fan_in(inner))

    def step(self, carry, u):
        return carry, self.down(self.activation(self.up(u)))

    def unroll(self, carry, us, is_first):
        del is_first
        _, ys = self.step(carry, us)
        return (), ys, ()


def _carry_at(entries: tuple, t: Array) -> tuple:
    del t
    return entries


def mixer(config: Config) -> stack.Mixer:
    """The feed-forward layer."""
    return mixer_of(config.width, config.expand)


def mixer_of(width: int, expand: int, activation: Callable = nn.silu) -> stack.Mixer:
    """A feed-forward layer D -> expand · D -> D, between those of another core too."""
    return stack.Mixer(FeedForward(width, expand, activation), tuple, _carry_at)
