"""Causal attention over a sliding window, with a rolling cache of keys and values.

yₜ = Σⱼ softmaxⱼ(qₜ · R(t-j) kⱼ / √P + b[t-j]) vⱼ over the rows j = t-W+1 … t of row t's episode
(arXiv 1706.03762; rotary positions R: arXiv 2104.09864; relative biases b: arXiv 1803.02155 and
2108.12409). Only distances count, never the number of steps, so nothing wears out in a long life.

The cache is a ring of W places: a new row overwrites the oldest one and nothing else moves, which
under `scan` is done in place (shifting the rows instead cost 3.5 times as much at W = 64 on CPU).

Axis legend: `H` heads, `P` channels of a head, `W` window, `T` time; blocks of `Q` queries see `K`
keys. Everything is a single stream; `jax.vmap` adds batches.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.keys import named
from mbrl_jax.types import Array, Key


class Positions(NamedTuple):
    """How the distance of two rows enters their score; either part may be None."""

    rotary_base: float | None = None  # wave lengths of the rotation: 2π · (1 … base)
    bias: Array | None = None  # [H, W], added to the scores by distance


class Cache(NamedTuple):
    """The last W rows in a ring. All floats; unused places are zero."""

    keys: Array  # [H, W, P], each turned by the angle of its place where positions are rotary
    values: Array  # [H, W, P]
    valid: Array  # [W] above 0 where a row of this episode stands
    place: Array  # [] where the next row goes, 0 … W - 1


class Entries(NamedTuple):
    """What rebuilds the cache after any row: the W rows before the pass and its own T, in order."""

    keys: Array  # [H, W + T, P], not turned
    values: Array  # [H, W + T, P]
    valid: Array  # [W + T]
    start: Array  # [T] int32: where the episode of each row begins in the rows above
    place: Array  # [] of the cache before


class Dropout(NamedTuple):
    """Noise of a training pass (arXiv 1207.0580): entries are 0 at random, the others larger."""

    rate: float  # share of the entries that are 0
    key: Key

    def __call__(self, purpose: str, x: Array) -> Array:
        """x [...] with entries dropped; each purpose draws for itself."""
        kept = jax.random.bernoulli(named(self.key, purpose), 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


def empty_cache(window: int, heads: int, head_size: int) -> Cache:
    """The float32 cache of an episode that has not begun."""
    rows = jnp.zeros((heads, window, head_size))
    return Cache(rows, rows, jnp.zeros((window,)), jnp.zeros(()))


def attend_step(
    cache: Cache, query: Array, key: Array, value: Array, positions: Positions
) -> tuple[Cache, Array]:
    """Attend from one row to itself and to the cache; work and memory O(W · H · P).

    Args:
      cache: the rows before this one.
      query: [H, P].
      key: [H, P].
      value: [H, P].
      positions: how distances enter.

    Returns:
      The cache that the next row sees, and y [H, P] in the dtype of `value`.
    """
    window, head_size = cache.keys.shape[1:]
    place, places = cache.place.astype(jnp.int32), jnp.arange(window)
    queries = [query.astype(cache.keys.dtype) * head_size**-0.5]
    key = key.astype(cache.keys.dtype)
    if positions.rotary_base is not None:
        angles = rotary_angles(2 * window, head_size, positions.rotary_base)
        # Places behind this one were written one round ago: seen from there it stands W further.
        now, later = ([table[place + turn] for table in cos_sin(angles)] for turn in (0, window))
        key = rotate(key, now)
        queries = [rotate(queries[0], now), rotate(queries[0], later)]
    keys, values = (
        jnp.where((places == place)[:, None], row[:, None].astype(rows.dtype), rows)
        for rows, row in ((cache.keys, key), (cache.values, value))
    )
    valid = jnp.where(places == place, 1, cache.valid)
    # Two products of one query each are faster on CPU than one product of two queries.
    both = [(query[:, None] @ jnp.swapaxes(keys, 1, 2))[:, 0] for query in queries]
    scores = jnp.where(places <= place, both[0], both[-1])
    if positions.bias is not None:
        # Twice the biases from far to near: a slice of W gives distance (place - p) mod W at p.
        around = jnp.tile(positions.bias[:, ::-1], (1, 2))
        scores += jax.lax.dynamic_slice_in_dim(around, window - 1 - place, window, 1)
    weights = jax.nn.softmax(jnp.where(valid > 0, scores, -jnp.inf))
    y = (weights[:, None] @ values)[:, 0].astype(value.dtype)
    return Cache(keys, values, valid, _modulo(cache.place + 1, window)), y


def attend_stream(
    query: Array,
    key: Array,
    value: Array,
    positions: Positions,
    *,
    window: int,
    is_first: Array,
    cache: Cache | None = None,
    block_size: int | None = None,
    dropout: Dropout | None = None,
) -> tuple[Array, Entries]:
    """Attend from every row of a stream to the last `window` rows of its episode.

    Blocks of Q = `block_size` queries see one block of keys each, so that work and memory are
    O(T · (W + Q) · H), not O(T²).

    Args:
      query: [H, T, P].
      key: [H, T, P].
      value: [H, T, P].
      positions: how distances enter.
      window: W.
      is_first: [T] bool: a row that begins an episode sees no row before it, nor do later ones.
      cache: the rows before; None: none, which saves their work.
      block_size: Q; None chooses.
      dropout: of the weights, which then do not sum up to 1; None: none.

    Returns:
      y [H, T, P] in the dtype of `value`, and the entries for `cache_at`.
    """
    heads, length, head_size = key.shape
    entries = _make_entries(key, value, positions, window, is_first, cache)
    block = min(length, block_size or default_block(length, window))
    num_blocks = -(-length // block)
    if num_blocks > 1:
        before = -(-(window - 1) // block) * block  # whole blocks of keys
    else:
        before = 0 if cache is None else window - 1
    tail = num_blocks * block - length
    keys, values = (
        _blocks(_from(rows, window - before, tail), block, num_blocks)
        for rows in (entries.keys, entries.values)
    )
    queries = jnp.pad(query, ((0, 0), (0, tail), (0, 0)))
    queries = queries.reshape(heads, num_blocks, block, head_size)
    reach = jnp.arange(window, window + length) - entries.start
    reach = jnp.pad(jnp.minimum(reach, window - 1), (0, tail)).reshape(num_blocks, block, 1)
    distance = np.arange(block)[:, None] + before - np.arange(before + block)
    visible = (distance >= 0) & (distance <= reach)
    y = _attend(queries, keys, values, visible, positions, dropout)
    y = y.reshape(heads, num_blocks * block, head_size)[:, :length]
    return y.astype(value.dtype), entries


def cache_at(entries: Entries, t: Array | int, positions: Positions) -> Cache:
    """The float32 cache after t + 1 rows of a stream; rows of earlier episodes are zero.

    Args:
      entries: of `attend_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
      positions: those of `attend_stream`; only the rotation matters.
    """
    window = entries.valid.shape[0] - entries.start.shape[0]
    start = entries.start[t]
    reset = start >= window  # an episode that begins in the pass begins at place 0
    place = jnp.where(reset, t + 1 + window - start, entries.place + (t + 1))
    place = _modulo(place, window)
    row = t + 1 + (jnp.arange(window) - place.astype(jnp.int32)) % window
    own = jnp.where(reset, row >= start, True)
    keys, values = (
        jnp.where(own[:, None], jnp.take(rows, row, axis=1, mode="clip"), 0).astype(jnp.float32)
        for rows in (entries.keys, entries.values)
    )
    valid = jnp.where(own, entries.valid[row], 0)
    return Cache(_turn_by_place(keys, positions, 1), values, valid, place)


def default_block(length: int, window: int) -> int:
    """Q: all rows where they are few, else about half a window ."""
    if length <= 2 * window:
        return length
    return max(32, -(-(window - 1) // max(2, -(-(window - 1) // 128))))


def _make_entries(key, value, positions, window, is_first, cache) -> Entries:
    heads, length, head_size = key.shape
    if cache is None:
        rows = jnp.zeros((heads, window, head_size), key.dtype)
        keys, values, valid, place = rows, rows, jnp.zeros((window,)), jnp.zeros(())
        empty = window
    else:
        # What an episode that begins at row 0 does not see may hold NaN, and so would gradients.
        keys, values = (jnp.where(is_first[0], 0, rows) for rows in (cache.keys, cache.values))
        cache = cache._replace(keys=keys, values=values)
        place = cache.place
        order = (place.astype(jnp.int32) + jnp.arange(window)) % window  # oldest first
        keys, values = (
            jnp.take(rows, order, axis=1, mode="clip")
            for rows in (_turn_by_place(cache.keys, positions, -1), cache.values)
        )
        valid = cache.valid[order]
        empty = (valid <= 0).sum(dtype=jnp.int32)
    keys, values = (
        jnp.concatenate([rows.astype(new.dtype), new], axis=1)
        for rows, new in ((keys, key), (values, value))
    )
    valid = jnp.concatenate([valid, jnp.ones((length,), valid.dtype)])
    start = jnp.where(is_first, jnp.arange(window, window + length), empty)
    return Entries(keys, values, valid, jax.lax.cummax(start), place)


def _modulo(place: Array, window: int) -> Array:
    return jnp.mod(place, window).astype(jnp.float32)


def _turn_by_place(keys: Array, positions: Positions, sign: int) -> Array:
    """Turn keys [H, W, P] of a ring by the angles of their places, or back."""
    if positions.rotary_base is None:
        return keys
    angles = rotary_angles(keys.shape[1], keys.shape[2], positions.rotary_base)
    return rotate(keys, cos_sin(sign * angles))


def _from(rows: Array, first: int, tail: int) -> Array:
    """rows [H, …, P] from row `first` on, which may be negative, with `tail` zero rows behind."""
    return jax.lax.pad(rows, jnp.zeros((), rows.dtype), ((0, 0, 0), (-first, tail, 0), (0, 0, 0)))


def _blocks(rows: Array, block: int, num_blocks: int) -> Array:
    """Rows [H, before + N · Q, P] -> [H, N, before + Q, P]: overlapping blocks of keys."""
    heads, length, head_size = rows.shape
    if num_blocks == 1:
        return rows[:, None]
    cut = rows.reshape(heads, length // block, block, head_size)
    overlap = cut.shape[1] - num_blocks + 1
    return jnp.concatenate([cut[:, i : i + num_blocks] for i in range(overlap)], axis=2)


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


@jax.custom_vjp
def _add_bias(scores: Array, bias: Array) -> Array:
    """scores [H, N, Q, K] + bias [H, W] by distance.

    The gradient of the biases is summed along diagonals for each stream and only then over a
    batch: autodiff sums [H, Q, K] over the batch first, which took 22 % of a whole pass on CPU.
    Forward-mode derivatives are not defined for it.
    """
    return scores + _by_distance(bias, *scores.shape[-2:])[:, None]


def _add_bias_forward(scores, bias):
    return _add_bias(scores, bias), bias


def _add_bias_backward(bias, gradient):
    heads, _, num_queries, num_keys = gradient.shape
    repeated = gradient.sum(1).reshape(heads, num_queries * num_keys)
    repeated = jnp.pad(repeated, ((0, 0), (0, num_queries)))
    vector = repeated.reshape(heads, num_queries, num_keys + 1).sum(1)
    vector = jnp.roll(vector, num_queries - num_keys - 1, axis=1)[:, ::-1]
    known = vector[:, : min(bias.shape[1], num_keys)]
    known = jnp.pad(known, ((0, 0), (0, bias.shape[1] - known.shape[1])))
    return gradient, known.astype(bias.dtype)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def _attend(query, keys, values, visible, positions, dropout):
    """query [H, N, Q, P], keys and values [H, N, K, P], visible [N, Q, K] -> y [H, N, Q, P].

    The last Q keys are the queries' own rows. Scores, softmax and the result are float32.
    """
    num_queries, num_keys, head_size = query.shape[-2], keys.shape[-2], query.shape[-1]
    query = query * jnp.asarray(head_size**-0.5, query.dtype)
    if positions.rotary_base is not None:
        angles = rotary_angles(num_keys, head_size, positions.rotary_base)
        query = rotate(query, cos_sin(angles[num_keys - num_queries :]))
        keys = rotate(keys, cos_sin(angles))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, jnp.swapaxes(keys, -1, -2), preferred_element_type=wide)
    if positions.bias is not None:
        scores = _add_bias(scores, positions.bias)
    # 0 · NaN is NaN, so that a weight of 0 hides nothing: values that are not finite go into the
    # product as zeros, and rows that see them have NaN for a score.
    finite = jnp.isfinite(values)
    values = jnp.where(finite, values, 0)
    scores = jnp.where(finite.all(-1)[..., None, :], scores, jnp.nan)
    scores = jnp.where(visible, scores, -jnp.inf)
    # A row always sees itself, so the largest score is finite and the sum is at least 1.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if dropout is not None:
        weights = dropout("weights", weights)
    return jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=wide) / total


def rotary_angles(num: int, head_size: int, base: float) -> np.ndarray:
    """Angles [num, P / 2] of places 0 … num - 1, in float64: i · base^(-2c / P)."""
    frequencies = np.exp(-math.log(base) * np.arange(0, head_size, 2) / head_size)
    return np.arange(num)[:, None] * frequencies


def cos_sin(angles: np.ndarray) -> tuple[Array, Array]:
    """Float32 tables of float64 angles: the angles may be large without loss."""
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate(x: Array, tables: Sequence[Array]) -> Array:
    """Turn the pairs (c, c + P/2) of x [..., P] by angles of cosine and sine `tables` [..., P/2].

    Computed in at least float32, returned in the dtype of x.
    """
    cos, sin = tables
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, cos.dtype)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
