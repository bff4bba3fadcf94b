"""Causal transformer core: attention over a sliding window with a rolling key-value cache.

A layer is two residual parts, attention and a feed-forward net, each behind its own RMSNorm
(pre-norm; arXiv 1706.03762, 2002.04745). The carry has one fixed size, whatever the step count.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.cores import attention, stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, Key, SequenceCore, bounded

Positions = Literal["rotary", "relative"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes like those of the published Mamba-2 by default."""

    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=1)
    heads: int = bounded(8, low=1)
    window: int = bounded(128, low=2)  # W: a row sees itself and W - 1 rows before it
    # hidden units of the feed-forward part = feed_forward · width
    feed_forward: int = bounded(4, low=1)
    # "relative": a learned bias for each head and distance
    positions: Positions = "rotary"
    rotary_base: float = bounded(10_000.0, above=1)
    # queries of one block in a long pass; None chooses by window
    block_size: int | None = bounded(None, low=1)

    @property
    def head_size(self) -> int:
        """P."""
        return self.width // self.heads

    def validate(self) -> None:
        """Raise ValueError where sizes do not fit."""
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {get_args(Positions)}: {self.positions!r}")
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is no multiple of heads {self.heads}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"rotary positions turn pairs of channels, but a head (width / heads) has "
                f"{self.head_size}"
            )

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        parts = (attention_mixer(self), feed_forward_mixer(self))
        return stack.make_core_of(parts * self.layers, self.width, in_size)


class AttentionMixer(nn.Module):
    """[q | k | v] = W u for each head; attention; out_proj. No biases."""

    width: int
    heads: int
    window: int
    out_fan_in: int  # out_proj begins uniform within ± its inverse root
    relative: bool = False  # learned biases by distance
    rotary_base: float | None = None
    block_size: int | None = None

    @property
    def rotation(self) -> attention.Positions:
        """The part of the positions that has no parameters."""
        return attention.Positions(self.rotary_base)

    def setup(self):
        self.in_proj = nn.Dense(3 * self.width, False, kernel_init=uniform_fan_in(self.width))
        if self.relative:
            self.bias = self.param("bias", linear_bias_init, (self.heads, self.window))
        self.out_proj = nn.Dense(self.width, False, kernel_init=uniform_fan_in(self.out_fan_in))

    def _positions(self):
        return self.rotation._replace(bias=getattr(self, "bias", None))

    def step(self, carry, u):
        query, key, value = self.in_proj(u).reshape(3, self.heads, -1)
        carry, y = attention.attend_step(carry, query, key, value, self._positions())
        return carry, self.out_proj(y.reshape(self.width))

    def unroll(self, carry, us, is_first, dropout=None):
        length = us.shape[0]
        rows = self.in_proj(us).reshape(length, 3, self.heads, -1)
        query, key, value = rows.transpose(1, 2, 0, 3)  # [H, T, P] each
        y, entries = attention.attend_stream(
            query,
            key,
            value,
            self._positions(),
            window=self.window,
            is_first=is_first,
            cache=carry,
            block_size=self.block_size,
            dropout=dropout,
        )
        y = self.out_proj(y.transpose(1, 0, 2).reshape(length, self.width))
        return attention.cache_at(entries, length - 1, self.rotation), y, entries


class FeedForwardMixer(nn.Module):
    """down(SiLU(up(u))), row by row."""

    config: Config

    def setup(self):
        c = self.config
        hidden = c.feed_forward * c.width
        init, out_init = uniform_fan_in(c.width), uniform_fan_in(2 * c.layers * hidden)
        self.up = nn.Dense(hidden, kernel_init=init, bias_init=init)
        self.down = nn.Dense(c.width, kernel_init=out_init, bias_init=out_init)

    def step(self, carry, u):
        return carry, self.down(nn.silu(self.up(u)))

    def unroll(self, carry, us, is_first):
        del carry, is_first
        return (), self.down(nn.silu(self.up(us))), ()


def linear_bias_init(key: Key, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """bias [H, W] = -slope · distance with slopes 2^(-8 h / H), h = 1 … H (arXiv 2108.12409)."""
    del key
    heads, window = shape
    slopes = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
    return (-slopes[:, None] * jnp.arange(window)).astype(dtype)


def mixer_of(module: AttentionMixer) -> stack.Mixer:
    """The layer of an attention module."""
    empty = functools.partial(
        attention.empty_cache, module.window, module.heads, module.width // module.heads
    )
    return stack.Mixer(module, empty, functools.partial(_cache_at, module.rotation))


def _cache_at(rotation: attention.Positions, entries: attention.Entries, t: Array):
    return attention.cache_at(entries, t, rotation)


def attention_mixer(config: Config) -> stack.Mixer:
    """The attention part of a layer."""
    module = AttentionMixer(
        config.width,
        config.heads,
        config.window,
        # Dividing by √(2 · layers), the residual parts, keeps the stream's variance (GPT-2's rule).
        out_fan_in=2 * config.layers * config.width,
        relative=config.positions == "relative",
        rotary_base=config.rotary_base if config.positions == "rotary" else None,
        block_size=config.block_size,
    )
    return mixer_of(module)


def feed_forward_mixer(config: Config) -> stack.Mixer:
    """The feed-forward part of a layer; it carries nothing."""
    return stack.Mixer(FeedForwardMixer(config), tuple, lambda entries, t: ())
