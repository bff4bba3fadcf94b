"""One chunk of the Mamba-2 recurrence, for heads that share B and C, as a product with one matrix.

With the state before the chunk put under its rows of x, and the state after it under those of y,
the recurrence is, for each head,

    [ y - D·x ]   [ seen ∘ C Bᵀ    seen ∘ C ] [ dt·x  ]
    [ end     ] = [ seen ∘ Bᵀ      kept · I ] [ start ]

where `seen` is what is left at an output of what came in at an input: exp of the decays between.
Three blocks are one expression, seen ∘ C Bᵀ with unit rows in C and B for the states, so one loop
makes the matrix and one product applies it. The last block stays out of it: so the state is never
rounded to the dtype of products.

Axes as in `ssd`: Q rows of the chunk, H heads, P channels, N state size; R outputs (rows of the
matrix) and S inputs (columns), in the part of the matrix that is used.

Measured on CPU, and the reason for the form of much below: a loop over [H, R, S] is slow where XLA
cannot vectorise it (concatenations, running sums or slices fused into it), and costs a third more
where XLA shares it out between threads, as it does when a loop has more operations than bytes.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.ssm import chunking

Array = jax.Array

# exp(-128) is 0 in float32: a deeper decay keeps no more, and its gradient is 0 as it is here.
MIN_LOG_DECAY = -128.0


class Chunk(NamedTuple):
    """Rows of one chunk; rows of padding have dt = 0 and change nothing."""

    x: Array  # [Q, H, P]
    dt: Array  # [H, Q]
    decay: Array  # [H, Q] dt·A of each row, clamped
    B: Array  # [Q, N]
    C: Array  # [Q, N]
    reset: Array  # [Q] bool


class Part(NamedTuple):
    """A part of a chunk's matrix: its rows, and the columns of x; with y those of the state too."""

    y: bool  # rows that make y
    end: bool  # rows that make the state after the chunk


def step_log_decay(dt: Array, A: Array) -> Array:
    """dt·A of each row, clamped, for dt [..., H] and A [H]."""
    decay = dt * A.astype(dt.dtype).reshape((1,) * (dt.ndim - 1) + (-1,))
    return jnp.maximum(decay, MIN_LOG_DECAY)


def masked_exp(mask: Array, x: Array) -> Array:
    """exp(x) where `mask`, else 0, with a finite gradient whatever x is where it is masked."""
    return jnp.exp(jnp.where(mask, x, -jnp.inf))


def exact_product(a: Array, b: Array) -> Array:
    """a @ b with all digits on accelerators too."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# ----------------------------------------------------------------------------- results of a chunk


def run(chunk: Chunk, D: Array, start: Array) -> tuple[Array, Array]:
    """y [Q, H, P] and the state [H, N, P] after the chunk, from the state before it; D [H]."""
    size, num_states = chunk.B.shape
    if 2 * num_states <= size:
        y, added = _apply(Part(y=True, end=True), chunk, D, start)
    else:  # the zeros from state to state would be most of one product
        y, added = outputs(chunk, D, start), added_state(chunk)
    return y, added + kept_state(chunk)[:, None, None] * start


def outputs(chunk: Chunk, D: Array, start: Array) -> Array:
    """y [Q, H, P], from the state [H, N, P] before the chunk; D [H]."""
    return _apply(Part(y=True, end=False), chunk, D, start)[0]


def added_state(chunk: Chunk) -> Array:
    """What the chunk adds to the state: [H, N, P]."""
    no_skip = jnp.zeros_like(chunk.dt[:, 0])
    return _apply(Part(y=False, end=True), chunk, no_skip, None)[1]


def kept_state(chunk: Chunk) -> Array:
    """What the chunk keeps of the state before it, for each head: [H]."""
    return masked_exp(~chunk.reset.any(), chunk.decay.sum(1))


# ------------------------------------------------------------------------------------ the product


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(part: Part, chunk: Chunk, D: Array, start: Array | None) -> tuple[Any, Any]:
    """y [Q, H, P] and what is added to the state [H, N, P], each where `part` has it."""
    return _apply_forward(part, chunk, D, start)[0]


def _apply_forward(part, chunk, D, start):
    _, _, scores = _scores(part, chunk)
    matrix = _seen(part, chunk) * scores[None]
    gain = chunk.dt * _fine(chunk)
    columns = _stack(_scaled(chunk.x, gain), start, chunk.x.dtype)
    result = product(matrix, columns, chunk.x.dtype)
    y, size = None, 0
    if part.y:
        size = len(chunk.reset)
        y = jnp.swapaxes(result[:, :size], 0, 1) + D[None, :, None] * chunk.x.astype(D.dtype)
    return (y, result[:, size:] if part.end else None), (chunk, D, start)


def _apply_backward(part, residuals, bars):
    """By hand, for two reasons.

    Speed: the transposed matrix is built anew, which costs less than to transpose it; gradients of
    dt and D come from that of a matrix that had them in it, without sums over P.
    Digits: row k's decay gets Σ W[i, j] over i ≥ k > j, of what crosses it. As a difference of
    running sums it would be rounded to the largest W of the chunk, also where nothing crosses.
    """
    chunk, D, start = residuals
    size, dtype = len(chunk.reset), chunk.x.dtype
    result_bar, columns = _stack(bars[0], bars[1], dtype), _stack(chunk.x, start, dtype)
    B, C, scores = _scores(part, chunk)
    fine = _fine(chunk)
    gain = chunk.dt * fine

    matrix = _seen(part, chunk, transposed=True) * product(B, C.T, dtype)[None]
    columns_bar = product(matrix, result_bar, dtype)
    x_bar = _scaled(jnp.swapaxes(columns_bar[:, :size], 0, 1), gain)

    full_bar = product_transposed(result_bar, columns, dtype)  # as if gain and D were in the matrix
    D_bar = jnp.zeros_like(D)
    if part.y:
        x_bar = x_bar + D[None, :, None] * bars[0]
        D_bar = full_bar.reshape(len(D), -1)[:, :: full_bar.shape[2] + 1][:, :size].sum(1)
    seen_bar = full_bar * _seen(part, chunk)
    gain_bar = chunking.weighted_sum(scores[:, None], seen_bar, axis=1)[:, :size]
    gain = _with_ones(part, chunk, gain)
    scores_bar = chunking.weighted_sum(gain[:, None], seen_bar)
    decay_bar = _crossing(part, chunk, seen_bar * scores[None] * gain[:, None])
    B_bar = product(C.T, scores_bar, scores_bar.dtype)[:, :size].T
    C_bar = product(scores_bar, B, scores_bar.dtype)[:size] if part.y else jnp.zeros_like(chunk.C)
    no_reset: Any = None
    bars = Chunk(x_bar, gain_bar * fine, decay_bar, B_bar, C_bar, no_reset)
    bars = jax.tree.map(
        lambda bar, leaf: bar.astype(leaf.dtype), bars, chunk._replace(reset=no_reset)
    )
    return bars, D_bar, columns_bar[:, size:] if part.y else None


_apply.defvjp(_apply_forward, _apply_backward)


def _stack(rows: Array | None, state: Array | None, dtype: jnp.dtype) -> Array:
    """[H, Q + N, P] of rows [Q, H, P] above a state [H, N, P]; one of them may be None."""
    parts = [] if rows is None else [jnp.swapaxes(rows, 0, 1)]
    parts += [] if state is None else [state]
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=1)


def _scaled(rows: Array, factor: Array) -> Array:
    """Rows [Q, H, P] times factor [H, Q]."""
    return factor.T[:, :, None] * rows.astype(factor.dtype)


def product(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """a @ b with operands in `dtype`, sums in at least float32."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=wide)


def product_transposed(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """a @ bᵀ for a [H, M, P] and b [H, L, P], as `_product`: nothing is transposed in memory."""
    wide = jnp.promote_types(dtype, jnp.float32)
    axes = (((2,), (2,)), ((0,), (0,)))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), axes, preferred_element_type=wide)


# ------------------------------------------------------------------------------------- the matrix


def _places(part: Part, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """The rows of outputs [R] and inputs [S]; the state's: after the last row, before the first."""
    size, num_states = chunk.B.shape
    rows = np.arange(size)
    before, after = np.full(num_states, -1), np.full(num_states, size)
    results = np.concatenate([rows] * part.y + [after] * part.end)
    return results, np.concatenate([rows] + [before] * part.y)


def _sum_upto(places: np.ndarray, rows: Array) -> Array:
    """Running sums of rows [..., Q] up to each of some places, and with them: [..., places]."""
    upto = np.arange(rows.shape[-1])[:, None] <= places[None]
    return exact_product(rows, jnp.asarray(upto, rows.dtype))


def _scores(part: Part, chunk: Chunk) -> tuple[Array, Array, Array]:
    """B [S, N] and C [R, N] with unit rows for the states, and C Bᵀ [R, S], shared by heads."""
    unit = jnp.eye(chunk.B.shape[1], dtype=chunk.B.dtype)
    B = jnp.concatenate([chunk.B] + [unit] * part.y)
    C = jnp.concatenate([chunk.C] * part.y + [unit] * part.end)
    return B, C, product(C, B.T, chunk.x.dtype)


def _with_ones(part: Part, chunk: Chunk, gain: Array) -> Array:
    """[H, S] gain [H, Q] of rows of x, and 1 for the state: a product in place of concatenation."""
    if not part.y:
        return gain
    _, inputs = _places(part, chunk)
    own = np.arange(len(chunk.reset))[:, None] == inputs[None]
    ones = jnp.asarray(inputs < 0, gain.dtype)
    return exact_product(gain, jnp.asarray(own, gain.dtype)) + ones[None]


def _coarse(decay: Array) -> Array:
    """Decay [H, Q] as multiples of a quantum so coarse that sums and differences are exact.

    A plain running sum to -1000 has no digits left beside -0.001. What is left sums to so little
    that its exp is taken at inputs and outputs apart.
    """
    quantum = 2.0 ** (math.ceil(math.log2(-MIN_LOG_DECAY * decay.shape[1])) - 23)
    return jnp.round(decay / quantum) * quantum


def _fine(chunk: Chunk) -> Array:
    """[H, Q] what `_coarse` leaves of the decay up to each row, at inputs: 1 within Q quanta."""
    rest = chunk.decay - _coarse(chunk.decay)
    return jnp.exp(-_sum_upto(np.arange(rest.shape[1]), rest))


def _seen(part: Part, chunk: Chunk, transposed: bool = False) -> Array:
    """[H, R, S], or transposed, what is left at output i of what came in at j, but for `_fine`."""
    results, inputs = _places(part, chunk)
    lag = results[:, None] - inputs[None]
    sees = jnp.asarray((lag >= 0) & (lag <= len(chunk.reset)))  # and no state the other
    resets, coarse = chunk.reset.astype(chunk.dt.dtype), _coarse(chunk.decay)
    count_i, count_j = _sum_upto(results, resets), _sum_upto(inputs, resets)
    sum_i, sum_j = _sum_upto(results, coarse), _sum_upto(inputs, coarse)
    fine_i = jnp.exp(_sum_upto(results, chunk.decay - coarse))
    if transposed:
        sees = sees.T & (count_i[None] == count_j[:, None])
        return masked_exp(sees[None], sum_i[:, None] - sum_j[:, :, None]) * fine_i[:, None]
    sees &= count_i[:, None] == count_j[None]
    return masked_exp(sees[None], sum_i[:, :, None] - sum_j[:, None]) * fine_i[:, :, None]


def _crossing(part: Part, chunk: Chunk, weight: Array) -> Array:
    """[H, k] = Σ weight[H, i, j] over outputs i ≥ k and inputs j < k: what row k's decay takes."""
    rows = np.arange(len(chunk.reset))
    results, inputs = (jnp.asarray(places)[:, None] for places in _places(part, chunk))
    came_before = exact_product(weight, (inputs < rows[None]).astype(weight.dtype))  # [H, R, Q]
    still_there = (results >= rows[None]).astype(weight.dtype)
    return chunking.weighted_sum(still_there[:, None], came_before, axis=1)
