"""The Mamba-2 recurrence for one group of heads: what `ssd.py` maps over groups.

All heads share B and C here, so `C Bᵀ` is computed once for them. Axes as in `ssd.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking

Array = jax.Array

# exp(-128) is 0 in float32: a deeper decay keeps no more, and its gradient is 0 as it is here.
_MIN_LOG_DECAY = -128.0
# Compile time grows with an unrolled loop; up to here it beats the loop of `lax.scan`.
_MAX_UNROLLED_CHUNKS = 8
# Longer chunks sum decay gradients by a product of their own, to save the [Q, Q, Q] constant.
_MAX_INDICATOR_SIZE = 64


class Chunks(NamedTuple):
    """Inputs cut into K chunks of Q rows; rows of padding have dt = 0 and change nothing."""

    x: Array  # [K, Q, H, P]
    dt: Array  # [K, Q, H]
    step_decay: Array  # [K, Q, H] dt·A of each row, clamped
    B: Array  # [K, Q, N]
    C: Array  # [K, Q, N]
    reset: Array  # [K, Q] bool
    segment: Array  # [K, Q] int32 its running sum: rows that see each other have the same number


def step_log_decay(dt: Array, A: Array) -> Array:
    """dt·A of each row, clamped, for dt [..., H] and A [H]."""
    decay = dt * A.astype(dt.dtype).reshape((1,) * (dt.ndim - 1) + (-1,))
    return jnp.maximum(decay, _MIN_LOG_DECAY)


def masked_exp(mask: Array, x: Array) -> Array:
    """exp(x) where `mask`, else 0, with a finite gradient whatever x is where it is masked."""
    return jnp.exp(jnp.where(mask, x, -jnp.inf))


# --------------------------------------------------------------------------------- inside chunks


def chunked(
    chunks: Chunks,
    D: Array,
    initial_state: Array | None,
    *,
    sequential: bool,
    over_blocks: Callable | None = None,
) -> tuple[Array, Array, Array]:
    """Matrix products inside chunks; a scan (sequential or associative) across them.

    Args:
      chunks: K chunks of one group.
      D: [H] weight of the skip.
      initial_state: [N, H, P] or None for zeros.
      sequential: go from chunk to chunk one after the other.
      over_blocks: `ssd_blocks.over_blocks`, to take some chunks at a time.

    Returns:
      y [K, Q, H, P], states at chunk starts [K, N, H, P], final state [N, H, P].
    """
    dt, decay = (jnp.moveaxis(rows, 2, 1) for rows in (chunks.dt, chunks.step_decay))
    rows = HeadChunks(chunks.x, dt, decay, chunks.B, chunks.C, chunks.reset)
    if initial_state is not None:
        initial_state = jnp.swapaxes(initial_state, 0, 1)
    run = functools.partial(_by_heads, sequential)
    results = (
        over_blocks(run, rows, D, initial_state) if over_blocks else run(rows, D, initial_state)
    )
    y, starts, final_state = results
    return y, jnp.swapaxes(starts, 1, 2), jnp.swapaxes(final_state, 0, 1)


class HeadChunks(NamedTuple):
    """Rows of chunks; what is small has heads in front, as products want them."""

    x: Array  # [K, Q, H, P]
    dt: Array  # [K, H, Q]
    decay: Array  # [K, H, Q]
    B: Array  # [K, Q, N]
    C: Array  # [K, Q, N]
    reset: Array  # [K, Q] bool


def _by_heads(
    sequential: bool, chunks: HeadChunks, D: Array, initial_state: Array | None
) -> tuple[Array, Array, Array]:
    """y [K, Q, H, P], states at chunk starts [K, H, N, P], final state [H, N, P]."""
    x, dt, decay, B, C, reset = chunks
    # Numbers of resets so far, as a product and not from `Chunks`: XLA:CPU fuses a running sum, or
    # the slice of a block, into the comparisons for all [H, Q, Q], which it then cannot vectorise.
    upto = jnp.triu(jnp.ones((reset.shape[1],) * 2, decay.dtype))
    segment = exact_product(reset.astype(decay.dtype), upto)
    # Heads become a leading axis once: products in the middle of an array copy it each time.
    x = jnp.swapaxes(x, 1, 2)
    y = _each(_inside, x, dt, decay, B, C, jnp.broadcast_to(D, (len(x), *D.shape)), segment)
    added, kept = _each(_chunk_state, x, dt, decay, B, segment)
    if initial_state is None and len(added) == 1:
        # Nothing is carried into the only chunk: reading zeros would triple the cost.
        return jnp.swapaxes(y, 1, 2), jnp.zeros_like(added), added[0]
    initial_state = jnp.zeros_like(added[0]) if initial_state is None else initial_state
    across = _starts_sequential if sequential else _starts_parallel
    starts, final_state = across(kept, added, initial_state)
    y = y + _each(_carried_in, x, decay, C, segment, starts)
    return jnp.swapaxes(y, 1, 2), starts, final_state


def _each(one_chunk: Callable, *args: Any) -> Any:
    """Map over chunks. A single chunk goes without the axis: of size 1, XLA:CPU pays it twice."""
    if len(args[0]) > 1:
        return jax.vmap(one_chunk)(*args)
    result = one_chunk(*(arg[0] for arg in args))
    return jax.tree.map(lambda leaf: leaf[None], result)


def _sums(decay: Array) -> tuple[Array, Array]:
    """Running sums of `decay` [H, Q] as high + low, whose differences lose no digits.

    High parts are multiples of a quantum so coarse that their sums and differences are exact; low
    parts stay below Q quanta. A plain running sum to -1000 has no digits left beside -0.001.
    """
    size = decay.shape[-1]
    quantum = 2.0 ** (math.ceil(math.log2(-_MIN_LOG_DECAY * size)) - 23)
    high = jax.lax.stop_gradient(jnp.round(decay / quantum) * quantum)
    upto = jnp.triu(jnp.ones((size, size), decay.dtype))
    return tuple(exact_product(part, upto) for part in (high, decay - high))


def exact_product(a: Array, b: Array) -> Array:
    """a @ b with all digits on accelerators too."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _seen_decay(sums: tuple[Array, Array], segment: Array, transposed: bool = False) -> Array:
    """[H, Q, Q] what is left at row i of what row j added, 0 where i does not see j."""
    size = len(segment)
    sees = jnp.tril(jnp.ones((size, size), bool)) & (segment[:, None] == segment[None])
    if transposed:
        high, low = (part[:, None] - part[:, :, None] for part in sums)
        return masked_exp(sees.T[None], high + low)
    high, low = (part[:, :, None] - part[:, None] for part in sums)
    return masked_exp(sees[None], high + low)


@jax.custom_vjp
def _inside(x, dt, decay, B, C, D, segment) -> Array:
    """What rows of one chunk contribute to each other's y, and the skip: [H, Q, P].

    x [H, Q, P], dt and decay [H, Q], B and C [Q, N], D [H], segment [Q].
    """
    return _inside_forward(x, dt, decay, B, C, D, segment)[0]


def _inside_forward(x, dt, decay, B, C, D, segment):
    sums = _sums(decay)
    scores = _product(C, B.T, x.dtype)  # [Q, Q], shared by heads
    # dt and D go into the mixing matrix, so that dt·x and D·x are never stored.
    mixing = _seen_decay(sums, segment) * scores[None] * dt[:, None] + _diagonal(D, len(segment))
    return _product(mixing, x, x.dtype), (x, dt, B, C, D, segment, sums, scores)


def _inside_backward(residuals, y_bar):
    """By hand, for two reasons.

    Speed: the transposed mixing matrix is built anew, which costs less than to transpose it.
    Digits: row k's decay gets Σ W[i, j] over i ≥ k > j, of what crosses it. As a difference of
    running sums it would be rounded to the largest W of the chunk, also where nothing crosses.
    """
    x, dt, B, C, D, segment, sums, scores = residuals
    seen_t = _seen_decay(sums, segment, transposed=True)
    mixing_t = seen_t * scores.T[None] * dt[:, :, None] + _diagonal(D, len(segment))
    x_bar = _product(mixing_t, y_bar, x.dtype)
    mixing_bar = _product_transposed(y_bar, x, x.dtype)

    weight_bar = mixing_bar * _seen_decay(sums, segment)
    scores_bar = chunking.weighted_sum(dt[:, None], weight_bar)
    dt_bar = chunking.weighted_sum(scores[:, None], weight_bar, axis=1)
    decay_bar = _crossing(weight_bar * scores[None] * dt[:, None])
    D_bar = mixing_bar.reshape(len(D), -1)[:, :: len(segment) + 1].sum(1)  # the diagonal
    B_bar = _product(scores_bar.T, C, x.dtype)
    C_bar = _product(scores_bar, B, x.dtype)
    bars = (x_bar.astype(x.dtype), dt_bar, decay_bar, B_bar.astype(B.dtype), C_bar.astype(C.dtype))
    return *bars, D_bar.astype(D.dtype), None


_inside.defvjp(_inside_forward, _inside_backward)


def _diagonal(D: Array, size: int) -> Array:
    return D[:, None, None] * jnp.eye(size, dtype=D.dtype)[None]


def _crossing(weight: Array) -> Array:
    """[H, k] = Σ weight[H, i, j] over i ≥ k > j."""
    heads, size = weight.shape[:2]
    upto = jnp.tril(jnp.ones((size, size), weight.dtype))  # [i, k]
    before = jnp.triu(jnp.ones((size, size), weight.dtype), 1)  # [j, k]
    if size <= _MAX_INDICATOR_SIZE:
        crosses = (upto[:, None] * before[None]).reshape(size * size, size)
        return exact_product(weight.reshape(heads, -1), crosses)
    return (exact_product(upto.T, weight) * before.T[None]).sum(-1)


def _chunk_state(x, dt, decay, B, segment) -> tuple[Array, Array]:
    """What one chunk adds to the state [H, N, P], and what it keeps of it [H]."""
    survives = segment == segment[-1]  # no reset between the row and the chunk's end
    size = len(segment)
    later = jnp.tril(jnp.ones((size, size), decay.dtype), -1)
    weight = dt * masked_exp(survives[None], exact_product(decay, later))  # [H, Q]
    kept = masked_exp(segment[-1] == 0, decay.sum(1))
    return _weigh(weight, B, x, True), kept


def _carried_in(x, decay, C, segment, start) -> Array:
    """What the state [H, N, P] at the chunk's start contributes to y: [H, Q, P]."""
    size = len(segment)
    upto = jnp.triu(jnp.ones((size, size), decay.dtype))
    left = masked_exp((segment == 0)[None], exact_product(decay, upto))  # [H, Q]
    return _weigh(left, C, start.astype(x.dtype), False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weigh(weight: Array, rows: Array, b: Array, into_state: bool) -> Array:
    """Sums of b weighted by weight [H, Q] times rows [Q, N].

    Into a state [H, N, P], over the rows of b [H, Q, P]; or out of one, over the states of
    b [H, N, P], into rows [H, Q, P]. Products are in the dtype of b.
    """
    return _weigh_forward(weight, rows, b, into_state)[0]


def _weigh_forward(weight, rows, b, into_state):
    y = _product(_weights(weight, rows, into_state), b, b.dtype)
    return y, (weight, rows, b)


def _weigh_backward(into_state, residuals, bar):
    """By hand: weights are built anew the other way round, which costs less than to transpose them.

    Their gradient is made as [H, Q, N]: so states are transposed for it, and not rows.
    """
    weight, rows, b = residuals
    b_bar = _product(_weights(weight, rows, not into_state), bar, b.dtype)
    of_rows, of_state = (b, bar) if into_state else (bar, b)
    weights_bar = _product(of_rows, of_state.swapaxes(1, 2), b.dtype)
    weight_bar = chunking.weighted_sum(rows.T[:, None], weights_bar, axis=2)
    rows_bar = chunking.weighted_sum(weight[:, :, None], weights_bar)  # [Q, N]
    return weight_bar, rows_bar.astype(rows.dtype), b_bar.astype(b.dtype)


_weigh.defvjp(_weigh_forward, _weigh_backward)


def _weights(weight: Array, rows: Array, into_state: bool) -> Array:
    """weight [H, Q] times rows [Q, N], as [H, N, Q] if `into_state`, else as [H, Q, N]."""
    return weight[:, None] * rows.T[None] if into_state else weight[:, :, None] * rows[None]


def _product(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """a @ b with operands in `dtype`, sums in at least float32."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=wide)


def _product_transposed(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """a @ bᵀ for a [H, M, P] and b [H, L, P], as `_product`: nothing is transposed in memory."""
    wide = jnp.promote_types(dtype, jnp.float32)
    axes = (((2,), (2,)), ((0,), (0,)))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), axes, preferred_element_type=wide)


# --------------------------------------------------------------------------------- across chunks


def _starts_parallel(kept: Array, added: Array, initial: Array) -> tuple[Array, Array]:
    """States at chunk starts [K, H, N, P] and the final state by an associative scan."""

    def after(first, second):
        (kept_1, added_1), (kept_2, added_2) = first, second
        return kept_1 * kept_2, kept_2[:, :, None, None] * added_1 + added_2

    added = jnp.concatenate([added[:1] + kept[:1, :, None, None] * initial[None], added[1:]])
    _, ends = jax.lax.associative_scan(after, (kept, added))
    return jnp.concatenate([initial[None], ends[:-1]]), ends[-1]


def _starts_sequential(kept: Array, added: Array, initial: Array) -> tuple[Array, Array]:
    """States at chunk starts [K, H, N, P] and the final state, chunk after chunk."""

    def next_chunk(state, chunk):
        kept_k, added_k = chunk
        return kept_k[:, None, None] * state + added_k, state

    final, starts = jax.lax.scan(
        next_chunk, initial, (kept, added), unroll=len(kept) <= _MAX_UNROLLED_CHUNKS
    )
    return starts, final


# ------------------------------------------------------------------------------------ row by row


def recurrent(chunks: Chunks, D: Array, initial_state: Array | None) -> tuple[Array, Array, Array]:
    """The recurrence as it is written; arguments and results as those of `chunked`."""
    num_states, (heads, channels) = chunks.B.shape[-1], chunks.x.shape[2:]
    if initial_state is None:
        initial_state = jnp.zeros((num_states, heads, channels), chunks.dt.dtype)

    def one_row(state, row):
        x, dt, decay, B, C, reset = row
        state, y = step(jnp.where(reset, 0, state), x, dt, decay, B, C)
        return state, y + D[:, None] * x.astype(y.dtype)

    rows = (chunks.x, chunks.dt, chunks.step_decay, chunks.B, chunks.C, chunks.reset)
    return chunking.scan_chunks(chunking.row_by_row(one_row), initial_state, rows)


def step(
    state: Array, x: Array, dt: Array, log_decay: Array, B: Array, C: Array
) -> tuple[Array, Array]:
    """One row: state [N, H, P], x [H, P], dt and log_decay [H], B and C [N].

    Returns:
      The next state [N, H, P] and y [H, P] without the skip, both in the dtype of the state.
    """
    x, B, C = (array.astype(state.dtype) for array in (x, B, C))
    # Measured on CPU: decay and input broadcast over [N, H, P] and the read-out as a product are
    # 1.5 times faster than spreading heads over merged columns first, or a sum over N.
    inputs = dt.astype(state.dtype)[:, None] * x
    kept = jnp.exp(log_decay)[None, :, None] * state
    state = kept + B[:, None, None] * inputs[None]
    y = C[None] @ state.reshape(len(B), -1)
    return state, y.reshape(x.shape)


# ---------------------------------------------------------------------------------- many groups


def split_heads(array: Array, axis: int, num_groups: int) -> Array:
    """Head axis H -> G, H / G."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    return array.reshape(*before, num_groups, -1, *after)


def over_groups(
    run: Callable, chunks: Chunks, D: Array, initial_state: Array | None
) -> tuple[Array, Array, Array]:
    """Run `run` on each group's heads; the results have all heads again."""
    num_groups = chunks.B.shape[2]
    if num_groups == 1:
        return run(chunks._replace(B=chunks.B[:, :, 0], C=chunks.C[:, :, 0]), D, initial_state)
    grouped = chunks._replace(
        **{
            name: split_heads(getattr(chunks, name), 2, num_groups)
            for name in ("x", "dt", "step_decay")
        }
    )
    if initial_state is not None:
        initial_state = split_heads(initial_state, 1, num_groups)
    axes = jax.tree.map(lambda _: 2, grouped)._replace(reset=None, segment=None)
    run = jax.vmap(run, in_axes=(axes, 0, 1), out_axes=(2, 2, 1))
    y, starts, final_state = run(grouped, split_heads(D, 0, num_groups), initial_state)
    return (
        y.reshape(chunks.x.shape),
        starts.reshape(*starts.shape[:2], *chunks.x.shape[2:]),
        final_state.reshape(final_state.shape[0], *chunks.x.shape[2:]),
    )
