"""Causal attention over a sliding window, with a rolling cache of keys and values.

yₜ = Σⱼ softmaxⱼ(qₜ · R(t-j) kⱼ / √P + b[t-j]) vⱼ over the rows j = t-W+1 … t of row t's episode
(arXiv 1706.03762; rotary positions R: arXiv 2104.09864; relative biases b: arXiv 1803.02155 and
2108.12409). Only distances enter, never a count of steps, so nothing wears out in a long life.
Keys are cached as they came, unrotated, so that a row ages by moving one place.

Axis legend: `H` heads, `P` channels of a head, `W` window, `T` time; blocks of `Q` queries see `K`
keys. Everything is a single stream; `jax.vmap` adds batches.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Array


class Cache(NamedTuple):
    """The last W - 1 rows, oldest first; empty places are zero."""

    keys: Array  # [H, W - 1, P]
    values: Array  # [H, W - 1, P]
    valid: Array  # [W - 1] above 0 where a row of this episode stands; floats like the rest


class Entries(NamedTuple):
    """What rebuilds the cache after any row: the rows of the cache before, and those of the pass."""

    keys: Array  # [H, W - 1 + T, P]
    values: Array  # [H, W - 1 + T, P]
    valid: Array  # [W - 1 + T]
    start: Array  # [T] int32: the first row of each row's episode, as an index into the above


def empty_cache(window: int, heads: int, head_size: int) -> Cache:
    """The float32 cache of an episode that has not begun."""
    rows = jnp.zeros((heads, window - 1, head_size))
    return Cache(rows, rows, jnp.zeros((window - 1,)))


def attend_step(
    cache: Cache,
    query: Array,
    key: Array,
    value: Array,
    *,
    rotary_base: float | None = None,
    bias: Array | None = None,
) -> tuple[Cache, Array]:
    """Attend from one row to itself and to the cache; work and memory O(W · H · P).

    Args:
      cache: W - 1 rows before this one.
      query: [H, P].
      key: [H, P].
      value: [H, P].
      rotary_base: longest wave length of the rotary positions over 2π; None: no rotation.
      bias: [H, W] added to the scores, by distance; None: nothing.

    Returns:
      The cache that the next row sees, and y [H, P] in the dtype of `value`.
    """
    keys, values = (
        jnp.concatenate([rows, row[:, None].astype(rows.dtype)], axis=1)
        for rows, row in ((cache.keys, key), (cache.values, value))
    )
    valid = jnp.concatenate([cache.valid, jnp.ones((1,), cache.valid.dtype)])
    y = _attend(
        query[:, None],
        keys,
        values,
        (valid > 0)[None],
        rotary_base,
        None if bias is None else bias[:, None, ::-1],
    )
    return Cache(keys[:, 1:], values[:, 1:], valid[1:]), y[:, 0].astype(value.dtype)


def attend_stream(
    query: Array,
    key: Array,
    value: Array,
    window: int,
    *,
    is_first: Array,
    cache: Cache | None = None,
    rotary_base: float | None = None,
    bias: Array | None = None,
    block_size: int | None = None,
) -> tuple[Array, Entries]:
    """Attend from every row of a stream to the last `window` rows of its episode.

    Rows are cut into blocks of `block_size` queries that see one block of keys each, so that work
    and memory are O(T · (W + block_size) · H), not O(T²).

    Args:
      query: [H, T, P].
      key: [H, T, P].
      value: [H, T, P].
      window: W.
      is_first: [T] bool: a row that begins an episode sees no row before it, nor do later ones.
      cache: the rows before; None: none, which saves their work.
      rotary_base: as in `attend_step`.
      bias: [H, W], as in `attend_step`.
      block_size: Q; None chooses.

    Returns:
      y [H, T, P] in the dtype of `value`, and the entries for `cache_at`.
    """
    heads, length, head_size = key.shape
    past = window - 1
    entries = _make_entries(key, value, is_first, cache, past)
    block = min(length, block_size or default_block(window))
    num_blocks = -(-length // block)
    if num_blocks > 1:
        before = -(-past // block) * block  # whole blocks of keys
    else:
        before = past if cache is not None else 0
    tail = num_blocks * block - length
    # One slice or padding makes the key rows begin `before` rows ahead of the first query.
    keys, values = (
        _blocks(_from(rows, past - before, tail), block, num_blocks, before)
        for rows in (entries.keys, entries.values)
    )
    queries = jnp.pad(query, ((0, 0), (0, tail), (0, 0)))
    queries = queries.reshape(heads, num_blocks, block, head_size)
    reach = jnp.pad(jnp.arange(past, past + length) - entries.start, (0, tail))
    reach = jnp.minimum(reach, past).reshape(num_blocks, block, 1)
    distance = np.arange(block)[:, None] + before - np.arange(before + block)
    visible = (distance >= 0) & (distance <= reach)
    if bias is not None:
        bias = _by_distance(bias, block, before + block)[:, None]
    y = _attend(queries, keys, values, visible, rotary_base, bias)
    y = y.reshape(heads, num_blocks * block, head_size)[:, :length]
    return y.astype(value.dtype), entries


def cache_at(entries: Entries, t: Array | int) -> Cache:
    """The cache after t + 1 rows of a stream; rows of earlier episodes are zero.

    Args:
      entries: of `attend_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    past = entries.valid.shape[0] - entries.start.shape[0]
    cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, t + 1, past, axis)  # noqa: E731
    own = t + 1 + jnp.arange(past) >= entries.start[t]
    keys, values = (
        jnp.where(own[:, None], cut(rows, 1), 0).astype(jnp.float32)
        for rows in (entries.keys, entries.values)
    )
    return Cache(keys, values, jnp.where(own, cut(entries.valid, 0), 0))


def default_block(window: int) -> int:
    """Q: small blocks waste fewer masked scores, big ones copy fewer keys."""
    return min(max(window, 32), 128)


def _make_entries(key, value, is_first, cache, past) -> Entries:
    heads, length, head_size = key.shape
    if cache is None:
        rows = jnp.zeros((heads, past, head_size), key.dtype)
        cache = Cache(rows, rows, jnp.zeros((past,)))
    keys, values = (
        jnp.concatenate([rows.astype(new.dtype), new], axis=1)
        for rows, new in ((cache.keys, key), (cache.values, value))
    )
    valid = jnp.concatenate([cache.valid, jnp.ones((length,), cache.valid.dtype)])
    own = jnp.where(is_first, jnp.arange(past, past + length), (cache.valid <= 0).sum())
    return Entries(keys, values, valid, jax.lax.cummax(own))


def _from(rows: Array, first: int, tail: int) -> Array:
    """rows [H, …, P] from row `first` on, which may be negative, with `tail` zero rows behind."""
    return jax.lax.pad(rows, jnp.zeros((), rows.dtype), ((0, 0, 0), (-first, tail, 0), (0, 0, 0)))


def _blocks(rows: Array, block: int, num_blocks: int, before: int) -> Array:
    """Rows [H, before + N · Q, P] -> [H, N, before + Q, P]: overlapping blocks of keys."""
    heads, _, head_size = rows.shape
    if num_blocks == 1:
        return rows[:, None]
    cut = rows.reshape(heads, -1, block, head_size)
    return jnp.concatenate(
        [cut[:, i : i + num_blocks] for i in range(before // block + 1)], axis=2
    )


def _by_distance(bias: Array, num_queries: int, num_keys: int) -> Array:
    """bias [H, W] -> [H, Q, K] with element (i, j) = bias[i + K - Q - j] where the mask shows it.

    Rows of a matrix that is constant along diagonals are one vector, moved by one place each:
    repeating the vector and cutting it one element shorter does that, without gather or scatter.
    """
    heads, size = bias.shape[0], num_keys + 1
    known = bias[:, :num_keys]
    vector = jnp.pad(known, ((0, 0), (0, size - known.shape[1])))[:, ::-1]
    vector = jnp.roll(vector, num_keys - num_queries + 1, axis=1)
    repeated = jnp.broadcast_to(vector[:, None], (heads, num_queries, size)).reshape(heads, -1)
    return repeated[:, : num_queries * num_keys].reshape(heads, num_queries, num_keys)


def _attend(query, keys, values, visible, rotary_base, bias):
    """query [H, …, Q, P], keys and values [H, …, K, P], visible [(…,) Q, K], bias [H, …, Q, K].

    The last Q keys are the queries' own rows. Scores, softmax and the result are float32.
    """
    num_queries, num_keys, head_size = query.shape[-2], keys.shape[-2], query.shape[-1]
    if rotary_base is not None:
        angles = rotary_angles(num_keys, head_size, rotary_base)
        query = rotate(query, angles[num_keys - num_queries :])
        keys = rotate(keys, angles)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query * jnp.asarray(head_size**-0.5, query.dtype)
    scores = jnp.matmul(query, jnp.swapaxes(keys, -1, -2), preferred_element_type=wide)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(visible, scores, -jnp.inf)
    # A row always sees itself, so the largest score is finite and the sum is at least 1.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    return jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=wide) / total


def rotary_angles(num: int, head_size: int, base: float) -> np.ndarray:
    """Angles [num, P / 2] of places 0 … num - 1, in float64: i · base^(-2c / P)."""
    frequencies = np.exp(-math.log(base) * np.arange(0, head_size, 2) / head_size)
    return np.arange(num)[:, None] * frequencies


def rotate(x: Array, angles: np.ndarray) -> Array:
    """Turn the pairs (c, c + P/2) of x [..., K, P] by angles [K, P / 2], in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (jnp.asarray(table(angles), wide) for table in (np.cos, np.sin))
    a, b = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
