"""DreamerV3's recurrent cell: a GRU whose large products are block-diagonal (arXiv 2301.04104).

The state h [D] is cut into g blocks. All blocks hear the same dense summary of h and of the inputs,
and beside it only themselves: D · D weights become D · D / g. Facts: the code of 2024,
dreamerv3/rssm.py.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.initializers import fan_in_truncated

RMS_EPS = 1e-4  # of every norm in DreamerV3
UPDATE_BIAS = -1.0  # a fresh cell keeps most of its state


class BlockLinear(nn.Module):
    """[..., g, i] -> [..., g, o]: one matrix and bias for each block.

    The initial variance is 1 / (g · i), as published: that of a dense matrix, not of a block.
    """

    outputs: int  # o

    @nn.compact
    def __call__(self, x):
        shape = (*x.shape[-2:], self.outputs)
        kernel = self.param("kernel", fan_in_truncated(), shape)
        bias = self.param("bias", nn.initializers.zeros, (shape[0], self.outputs))
        return jnp.einsum("...gi,gio->...go", x, kernel) + bias


class BlockGru(nn.Module):
    """(h [..., D], inputs ([..., Fᵢ], …)) -> h' [..., D].

      s = [SiLU(RMS(W₀ h)), SiLU(RMS(W₁ x₁)), …]     dense, `hidden` numbers each
      m = SiLU(RMS(B₁ [h, s]))
      r, c, u = B₂ m
      h' = σ(u - 1) tanh(σ(r) c) + (1 - σ(u - 1)) h

    B₁ and B₂ have a matrix for each block, which reads its own part of h or m, and B₁ all of s. RMS
    norms go over all of their vector, not over a block.
    """

    width: int  # D
    hidden: int
    blocks: int = 8  # g, a divisor of D
    layers: int = 1  # block-diagonal ones before the gates

    @nn.compact
    def __call__(self, h, inputs):
        if self.width % self.blocks:
            raise ValueError(f"blocks={self.blocks} must divide the cell's width {self.width}")
        grouped = h.shape[:-1] + (self.blocks, self.width // self.blocks)
        dense = functools.partial(nn.Dense, self.hidden, kernel_init=fan_in_truncated())
        norm = functools.partial(nn.RMSNorm, epsilon=RMS_EPS)
        heard = [nn.silu(norm()(dense()(x))) for x in (h, *inputs)]
        summary = jnp.concatenate(heard, axis=-1)[..., None, :]
        copies = jnp.broadcast_to(summary, grouped[:-1] + summary.shape[-1:])
        x = jnp.concatenate([h.reshape(grouped), copies], axis=-1)
        for _ in range(self.layers):
            x = BlockLinear(grouped[-1])(x).reshape(h.shape)
            x = nn.silu(norm()(x)).reshape(grouped)
        gates = jnp.split(BlockLinear(3 * grouped[-1])(x), 3, axis=-1)
        reset, candidate, update = (gate.reshape(h.shape) for gate in gates)
        update = nn.sigmoid(update + UPDATE_BIAS)
        return update * jnp.tanh(nn.sigmoid(reset) * candidate) + (1.0 - update) * h
