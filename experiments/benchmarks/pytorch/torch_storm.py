"""STORM's transformer in plain eager PyTorch: what the JAX one is timed against.

Written from the specification (world_models.md, section 2.1) for the sizes of a `storm.Config`.
Keys and values of the rows before are kept, where the authors keep what they are made of and make
them anew in every step; weights and sums are dropped out while the model trains.
"""

import torch
from torch import nn

from mbrl_jax.cores import storm

Tensor = torch.Tensor
Carry = tuple[int, list[tuple[Tensor, Tensor]]]  # rows so far; keys and values [M, H, rows, P]


class Block(nn.Module):
    """Attention, then a feed-forward part; a LayerNorm after each sum with what went in."""

    def __init__(self, config: storm.Config):
        super().__init__()
        width, hidden = config.width, config.feed_forward * config.width
        self.heads = config.heads
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width, eps=storm.EPS)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=storm.EPS)
        self.dropout = nn.Dropout(config.dropout)

    def projected(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [M, H, T, P] of h [M, T, D]."""
        rows = self.in_proj(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return rows[0] * rows.shape[-1] ** -0.5, rows[1], rows[2]

    def finish(self, h: Tensor, scores: Tensor, values: Tensor) -> Tensor:
        """All behind the scores [M, H, T, rows]."""
        weights = self.dropout(scores.softmax(-1))
        attended = self.out_proj((weights @ values).transpose(1, 2).flatten(2))
        h = self.attention_norm(h + self.dropout(attended))
        return self.feed_forward_norm(h + self.dropout(self.down(self.up(h).relu())))


class Core(nn.Module):
    """Stem, learned positions, post-norm blocks."""

    def __init__(self, config: storm.Config, inputs: int):
        super().__init__()
        width = config.width
        self.stem, self.stem_out = (nn.Linear(size, width, bias=False) for size in (inputs, width))
        self.stem_norm, self.stem_out_norm = (
            nn.LayerNorm(width, eps=storm.STEM_EPS) for _ in range(2)
        )
        self.positions = nn.Parameter(torch.randn(config.window, width))
        self.input_norm = nn.LayerNorm(width, eps=storm.EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def embed(self, x: Tensor, begin: int) -> Tensor:
        """[M, T, inputs] -> [M, T, D], the first of them in place `begin`."""
        hidden = self.stem_out_norm(self.stem_out(self.stem_norm(self.stem(x)).relu()))
        return self.input_norm(hidden + self.positions[begin : begin + x.shape[1]])

    def unroll(self, x: Tensor, keep_carry: bool = False) -> tuple[Tensor, Carry]:
        """[B, L, inputs] -> [B, L, D] from an empty memory, and the carry, where wanted."""
        length, kept = x.shape[1], []
        past = torch.ones(length, length, dtype=torch.bool).tril()
        h = self.embed(x, 0)
        for block in self.blocks:
            queries, keys, values = block.projected(h)
            scores = (queries @ keys.mT).masked_fill(~past, -torch.inf)
            h = block.finish(h, scores, values)
            kept += [(keys, values)] if keep_carry else []
        return h, (length, kept)

    def step(self, carry: Carry, x: Tensor) -> tuple[Carry, Tensor]:
        """[M, inputs] -> the carry and [M, D]; fewer rows than the window has."""
        rows, caches = carry
        h, after = self.embed(x[:, None], rows), []
        for (keys, values), block in zip(caches, self.blocks, strict=True):
            queries, key, value = block.projected(h)
            keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            h = block.finish(h, queries @ keys.mT, values)
            after.append((keys, values))
        return (rows + 1, after), h[:, 0]

    @staticmethod
    def copy_carry(carry: Carry) -> Carry:
        """A carry that steps leave as it is: they leave every carry so."""
        return carry
