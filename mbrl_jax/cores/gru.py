"""GRU core (arXiv 1406.1078, with the reset gate after the product, as cuDNN has it)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.cores import stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """A residual stack of GRU layers of one width."""

    width: int = bounded(512, low=1)
    layers: int = bounded(1, low=1)

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


class GruMixer(nn.Module):
    """r, u = σ(Wx + Uh + b);  n = tanh(Wₙx + r ∘ (Uₙh + bₙ));  h ← (1 - u) n + u h."""

    width: int

    def setup(self):
        init = uniform_fan_in(self.width)
        self.input = nn.Dense(3 * self.width, kernel_init=init, bias_init=init)
        self.recurrent = nn.Dense(3 * self.width, kernel_init=init, bias_init=init)

    def _cell(self, h, projected):
        reset_x, update_x, new_x = jnp.split(projected, 3, axis=-1)
        reset_h, update_h, new_h = jnp.split(self.recurrent(h), 3, axis=-1)
        update = jax.nn.sigmoid(update_x + update_h)
        new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
        return (1.0 - update) * new + update * h

    def step(self, carry, u):
        h = self._cell(carry, self.input(u))
        return h, h

    def unroll(self, carry, us, is_first):
        h = jnp.zeros((self.width,)) if carry is None else carry

        def body(module, h, row):
            projected, first = row
            h = module._cell(jnp.where(first, 0.0, h), projected)
            return h, h

        scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False})
        # The input product is one matrix product over all rows, outside the loop.
        h, hs = scan(self, h, (self.input(us), is_first))
        return h, hs, hs


def initial_carry(width: int) -> Array:
    """h [width] before the first row."""
    return jnp.zeros((width,))


def carry_at(entries: Array, t: Array) -> Array:
    """h after t + 1 rows; entries [T, width] hold it for each."""
    return jax.lax.dynamic_index_in_dim(entries, t, keepdims=False)


def mixer(config: Config) -> stack.Mixer:
    """The GRU layer."""
    return stack.Mixer(
        GruMixer(config.width), functools.partial(initial_carry, config.width), carry_at
    )
