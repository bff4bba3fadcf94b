"""DreamerV3's block-diagonal recurrent cell as a core (arXiv 2301.04104; `networks.block_gru`)."""

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.cores import gru, stack
from mbrl_jax.networks.block_gru import BlockGru
from mbrl_jax.types import SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """A residual stack of cells of one width."""

    width: int = bounded(512, low=1)
    layers: int = bounded(1, low=1)
    hidden: int = bounded(256, low=1)  # of what every block hears of the state and of the input
    blocks: int = bounded(8, low=1)
    cell_layers: int = bounded(1, low=1)  # block-diagonal ones before the gates

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]; raises ValueError for blocks that do not fit."""
        if self.width % self.blocks:
            raise ValueError(f"core.blocks={self.blocks} must divide core.width={self.width}")
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


class BlockGruMixer(nn.Module):
    """The cell over rows; a first row begins from zeros."""

    config: Config

    def setup(self):
        config = self.config
        self.cell = BlockGru(config.width, config.hidden, config.blocks, config.cell_layers)

    def step(self, carry, u):
        h = self.cell(carry, (u,))
        return h, h

    def unroll(self, carry, us, is_first):
        h = jnp.zeros((self.config.width,)) if carry is None else carry

        def body(module, h, row):
            u, first = row
            h = module.cell(jnp.where(first, 0.0, h), (u,))
            return h, h

        scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False})
        h, hs = scan(self, h, (us, is_first))
        return h, hs, hs


def mixer(config: Config) -> stack.Mixer:
    """The cell as a layer."""
    return stack.Mixer(
        BlockGruMixer(config), functools.partial(gru.initial_carry, config.width), gru.carry_at
    )
