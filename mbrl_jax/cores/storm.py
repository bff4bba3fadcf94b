"""STORM's transformer core (arXiv 2310.09615), an option of the published Drama.

    h₀ = LN(LN(W₂ ReLU(LN(W₁ x))) + P[i]);  h ← LN(h + attention(h));  h ← LN(h + W₄ ReLU(W₃ h))

with i the number of rows since the memory was empty (specification section 3.4). As published, with
`dropout=0.1`, but for one thing: where the published code ends, after `window` rows, this one goes
on: it sees the last `window` rows, and i stays at `window - 1`. For the published windows (128 rows
in training, 8 + 16 in imagination) that makes no difference.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.cores import attention, stack, transformer
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, PyTree, SequenceCore, bounded, switch

STEM_EPS = 1e-5  # torch's default, which the norms of the stem keep
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes by default."""

    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=1)
    heads: int = bounded(8, low=1)
    # W rows seen, and learned positions; published: the training windows' length
    window: int = bounded(128, low=2)
    # hidden units of the feed-forward part = feed_forward · width
    feed_forward: int = bounded(2, low=1)
    # queries of one block in a long pass; None chooses by window
    block_size: int | None = bounded(None, low=1)
    dropout: float = switch(
        0.0,
        published=0.1,
        better=0.0,
        price="+0.02 ± 0.01",
        low=0,
        below=1,
        why="share of the attention weights, and of what attention and feed-forward part add, that "
        "is left out at random while the world model trains",
    )

    def validate(self) -> None:
        """Raise ValueError where sizes do not fit."""
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is no multiple of heads {self.heads}")

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        position_at = functools.partial(_position_at, self.window - 1)
        positions = stack.Mixer(nn.Module(), lambda: jnp.zeros(()), position_at)
        attention = transformer.mixer_of(_attention(self))
        mixers = (positions, *(attention,) * self.layers)
        module = StormStack(self, in_size)
        core = stack.core_of(module, mixers, self.width)
        if not self.dropout:
            return core
        return core._replace(unroll_noisy=functools.partial(_unroll_noisy, module))


class StormStack(nn.Module):
    """Stem with learned positions, post-norm blocks; single stream.

    The carry holds the position of the next row, then a cache for each layer; the entries the
    positions [T] of all rows, then those of each layer.
    """

    config: Config
    in_size: int

    def setup(self):
        c = self.config
        self.stem = nn.Dense(c.width, False, kernel_init=uniform_fan_in(self.in_size))
        self.stem_norm = _layer_norm(STEM_EPS)
        self.stem_out = nn.Dense(c.width, False, kernel_init=uniform_fan_in(c.width))
        self.stem_out_norm = _layer_norm(STEM_EPS)
        self.positions = self.param("positions", nn.initializers.normal(1.0), (c.window, c.width))
        self.input_norm = _layer_norm(EPS)
        self.blocks = [PostNormBlock(c) for _ in range(c.layers)]

    def embed(self, x, position):
        hidden = self.stem_out(nn.relu(self.stem_norm(self.stem(x))))
        learned = self.positions[position.astype(jnp.int32)]
        return self.input_norm(self.stem_out_norm(hidden) + learned)

    def step(self, carry, x):
        position, *caches = carry
        h, after = self.embed(x, position), []
        for cache, block in zip(caches, self.blocks, strict=True):
            cache, h = block.step(cache, h)
            after.append(cache)
        return (jnp.minimum(position + 1.0, self.config.window - 1), *after), h

    def unroll(self, carry, xs, is_first, key=None):
        last, length = self.config.window - 1, len(is_first)
        if carry is None:
            carry = (jnp.zeros(()), *(None,) * len(self.blocks))
        start, *caches = carry
        rows = jnp.arange(length)
        reset = jax.lax.cummax(jnp.where(is_first, rows, -1))  # the last one so far, or -1
        since = jnp.where(reset < 0, start + rows, (rows - reset).astype(jnp.float32))
        position = jnp.minimum(since, last)
        h, entries = self.embed(xs, position), [position]
        after: list[PyTree] = []
        for i, (cache, block) in enumerate(zip(caches, self.blocks, strict=True)):
            dropout = None
            if key is not None:
                dropout = attention.Dropout(self.config.dropout, jax.random.fold_in(key, i))
            cache, h, layer_entries = block.unroll(cache, h, is_first, dropout)
            after, entries = [*after, cache], [*entries, layer_entries]
        return (_position_at(last, position, length - 1), *after), h, tuple(entries)


class PostNormBlock(nn.Module):
    """Attention, then a feed-forward part; a LayerNorm after each sum with what went in."""

    config: Config

    def setup(self):
        c = self.config
        hidden = c.feed_forward * c.width
        init, out_init = uniform_fan_in(c.width), uniform_fan_in(hidden)
        self.attention = _attention(c)
        self.attention_norm = _layer_norm(EPS)
        self.up = nn.Dense(hidden, kernel_init=init, bias_init=init)
        self.down = nn.Dense(c.width, kernel_init=out_init, bias_init=out_init)
        self.feed_forward_norm = _layer_norm(EPS)

    def _finish(self, h, attended, dropout=None):
        if dropout is not None:
            attended = dropout("attended", attended)
        h = self.attention_norm(h + attended)
        fed = self.down(nn.relu(self.up(h)))
        if dropout is not None:
            fed = dropout("fed", fed)
        return self.feed_forward_norm(h + fed)

    def step(self, cache, h):
        cache, attended = self.attention.step(cache, h)
        return cache, self._finish(h, attended)

    def unroll(self, cache, hs, is_first, dropout=None):
        cache, attended, entries = self.attention.unroll(cache, hs, is_first, dropout)
        return cache, self._finish(hs, attended, dropout), entries


def _unroll_noisy(module, params, key, carry, xs, is_first):
    """`SequenceCore.unroll_noisy`: consume xs [T, D] with dropout."""
    return module.apply({"params": params}, carry, xs, is_first, key, method="unroll")


def _attention(config: Config) -> transformer.AttentionMixer:
    return transformer.AttentionMixer(
        config.width,
        config.heads,
        config.window,
        out_fan_in=config.width,
        block_size=config.block_size,
    )


def _layer_norm(eps: float) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False)


def _position_at(last: int, position: Array, t: Array | int) -> Array:
    """The position that follows row t, from those [T] of all rows."""
    return jnp.minimum(position[t] + 1.0, last)
