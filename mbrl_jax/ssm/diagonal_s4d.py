"""S4D: one diagonal complex state-space model a channel (Gu et al., arXiv 2206.11893).

For every channel d of D, with N states of its own, decays λ and input gains γ from discretising A
(`diagonal.discretize`); the states are halves of conjugate pairs, hence the 2 (as an option):

    xₜ = λ xₜ₋₁ + γ B uₜ        yₜ = 2 Re Σₙ Cₙ xₜₙ + D uₜ

Nothing depends on the input, so inside a chunk the channel is a short convolution, and states are
needed at the starts of chunks alone. A state is a `ComplexPair` of real `[N, D]` arrays.

Axes: `T` time, cut into `K` chunks of `Q` rows, `D` channels, `N` states of a channel. Everything
but `s4d` is for a single stream; `vmap` adds batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunk_conv, chunking, diagonal, shapes
from mbrl_jax.ssm.diagonal import ComplexPair

Array = jax.Array

METHODS = ("auto", "chunked", "chunked_sequential", "recurrent")


class S4DEntries(NamedTuple):
    """What rebuilds the state after any row: states at chunk starts, and the rows in between."""

    starts: ComplexPair  # [K, N, D] float32: the state before the first row of each chunk
    u: Array  # [K, Q, D] float32
    segment: Array  # [K, Q] int32: resets so far in the chunk
    decay: ComplexPair  # [N, D]
    weight: ComplexPair  # [N, D] of the input


def auto_method(backend: str) -> str:
    """The method that "auto" stands for on `backend` ("cpu", "gpu", "tpu")."""
    # On CPU a scan across chunks does less arithmetic; accelerators want the log-depth tree.
    return "chunked_sequential" if backend == "cpu" else "chunked"


def s4d(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: ComplexPair | Array | None = None,
    return_final_state: bool = False,
    rule: str = "zoh",
    conjugate_pairs: bool = True,
    chunk_size: int = 16,
    method: str = "auto",
) -> Array | tuple[Array, ComplexPair]:
    """S4D over a batch of sequences; see `s4d_stream` for the arguments.

    Args:
      u: [B, T, D].
      dt: [D].
      A: [D, N].
      B: [D, N].
      C: [D, N].
      D: [D] or None.
      reset: [B, T] bool or None.
      initial_state: [B, N, D] or None for zeros.
      return_final_state: also return the state after row T - 1.
      rule: "zoh" or "bilinear", of `discretize`.
      conjugate_pairs: read 2·Re instead of Re.
      chunk_size: the longest chunk.
      method: one of `METHODS`.

    Returns:
      y [B, T, D] in the dtype of u, and the final state [B, N, D] where asked for.

    Raises:
      ValueError: shapes, dtype of `reset`, `rule`, `chunk_size` or `method` are wrong.
    """
    _check(u, dt, A, B, C, D, reset, initial_state, "B T ", "B ")

    def stream(u, reset, initial_state):
        options: dict[str, Any] = {
            "rule": rule,
            "conjugate_pairs": conjugate_pairs,
            "method": method,
        }
        options |= {"reset": reset, "initial_state": initial_state, "chunk_size": chunk_size}
        return s4d_stream(u, dt, A, B, C, D, **options)[:2]

    y, final_state = jax.vmap(stream)(u, reset, initial_state)
    return (y, final_state) if return_final_state else y


def s4d_stream(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: ComplexPair | Array | None = None,
    rule: str = "zoh",
    conjugate_pairs: bool = True,
    chunk_size: int = 16,
    method: str = "auto",
) -> tuple[Array, ComplexPair, S4DEntries]:
    """One single-input state-space model a channel, over one sequence of any length T ≥ 1.

    All arithmetic is float32 (float64 for float64 inputs) whatever the dtype of u. On accelerators
    float32 products follow `jax_default_matmul_precision`.

    Without an initial state, T ≤ `chunk_size` costs no state in the chunked methods.

    Args:
      u: [T, D].
      dt: [D] step sizes > 0.
      A: [D, N] complex or real, Re A ≤ 0.
      B: [D, N] input weights.
      C: [D, N] output weights.
      D: [D] weight of the skip, or None.
      reset: [T] bool; `reset[t]` empties the state before row t. None: never.
      initial_state: [N, D] `ComplexPair` or complex array, or None for zeros.
      rule: "zoh" or "bilinear", of `discretize`.
      conjugate_pairs: the states are halves of conjugate pairs, so y is 2·Re and not Re.
      chunk_size: the longest chunk.
      method: "chunked": a convolution inside chunks, products to and from the states at chunk
        starts, which an associative scan links; "chunked_sequential": from chunk to chunk;
        "recurrent": row by row; "auto": what `auto_method` says for the default backend.

    Returns:
      y [T, D] in the dtype of u, the state after the last row [N, D], and `S4DEntries`.

    Raises:
      ValueError: shapes, dtype of `reset`, `rule`, `chunk_size` or `method` are wrong.
    """
    _check(u, dt, A, B, C, D, reset, initial_state, "T ")
    length, channels = u.shape
    shapes.check_chunking(length, chunk_size, method, METHODS)
    method = auto_method(jax.default_backend()) if method == "auto" else method
    wide = chunking.state_dtype(u)
    if reset is None:
        reset = jnp.zeros((length,), bool)
    if initial_state is not None:
        initial_state = diagonal.keep(~reset[0], diagonal.state_pair(initial_state, wide))
    system = _system(dt, A, B, C, rule, conjugate_pairs, wide)
    rows = [chunking.to_chunks(row, chunk_size) for row in (u.astype(wide), reset)]
    y, starts = _RUN[method](*system, *rows, initial_state)
    y = diagonal.skip(y.reshape(-1, channels)[:length], D, u)
    segment = jnp.cumsum(rows[1].astype(jnp.int32), axis=1)
    entries = S4DEntries(starts, rows[0], segment, *system[:2])
    return y, s4d_state_at(entries, length - 1), entries


def s4d_state_at(entries: S4DEntries, t: Array | int) -> ComplexPair:
    """The state [N, D] after t + 1 rows: one gathered chunk and one small product.

    Args:
      entries: of `s4d_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    size = entries.u.shape[1]
    start, u, segment = jax.tree.map(
        lambda leaf: leaf[t // size], (entries.starts, entries.u, entries.segment)
    )
    row = t % size
    # Rows are ordered by how long ago they were, so that all t share one table of powers.
    before = row - jnp.arange(size)
    seen = (before >= 0) & (segment[before] == segment[row])
    u = jnp.where(seen[:, None], u[before], 0)
    table = diagonal.powers(entries.decay, size + 1)
    weights = diagonal.multiply(_first(size, table), _alone(entries.weight))
    added = diagonal.each(lambda part: jnp.einsum("qnd,qd->nd", part, u), weights)
    carried = diagonal.multiply(diagonal.each(lambda part: part[row + 1], table), start)
    return diagonal.add(diagonal.keep(segment[row] == 0, carried), added)


def s4d_step(
    state: ComplexPair,
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    rule: str = "zoh",
    conjugate_pairs: bool = True,
) -> tuple[ComplexPair, Array]:
    """One row of S4D.

    Args:
      state: [N, D] float32.
      u: [D].
      dt: [D].
      A: [D, N].
      B: [D, N].
      C: [D, N].
      D: [D] or None.
      rule: "zoh" or "bilinear", of `discretize`.
      conjugate_pairs: read 2·Re instead of Re.

    Returns:
      The next state [N, D], and y [D] in the dtype of u.

    Raises:
      ValueError: a shape or the rule is wrong.
    """
    _check(u, dt, A, B, C, D, None, state)
    wide = state.real.dtype
    decay, weight, out = _system(dt, A, B, C, rule, conjugate_pairs, wide)
    state, y = _row(decay, weight, out, state, u.astype(wide), jnp.zeros((), bool))
    return state, diagonal.skip(y, D, u)


# --------------------------------------------------------------------------------------- private


def _check(u, dt, A, B, C, D, reset, state, rows: str = "", batch: str = "") -> None:
    """Check the inputs of S4D; `rows` and `batch` are the axes before those of a row, a state."""
    shapes.check_axes(
        u=(u, rows + "D"),
        dt=(dt, "D"),
        A=(A, "D N"),
        B=(B, "D N"),
        C=(C, "D N"),
        D=(D, "D"),
        reset=(reset, rows.strip()),
        initial_state=(None if state is None else state.real, batch + "N D"),
    )
    shapes.check_reset(reset)


def _system(dt, A, B, C, rule: str, conjugate_pairs: bool, wide: jnp.dtype):
    """Decay, input and output weights of all channels, [N, D] each."""
    A, B, C = (diagonal.pair(jnp.asarray(array).T, wide) for array in (A, B, C))
    decay, gain = diagonal.discretize_pair(A, jnp.asarray(dt)[None], rule)
    return decay, diagonal.multiply(gain, B), diagonal.read_weights(C, conjugate_pairs)


def _alone(a: ComplexPair) -> ComplexPair:
    return diagonal.each(lambda part: part[None], a)


def _first(count: int, a: ComplexPair) -> ComplexPair:
    return diagonal.each(lambda part: part[:count], a)


def _row(decay, weight, out, state, u, reset):
    """One row: the next state [N, D] and y [D] without the skip."""
    state = diagonal.keep(~reset, diagonal.multiply(decay, state))
    state = diagonal.add(state, diagonal.each(lambda part: part * u[None], weight))
    return state, (out.real * state.real - out.imag * state.imag).sum(0)


def _recurrent(decay, weight, out, u, reset, initial_state):
    one_row = lambda state, row: _row(decay, weight, out, state, *row)  # noqa: E731
    start: Any = initial_state or diagonal.each(jnp.zeros_like, decay)
    return chunking.scan_chunks(chunking.row_by_row(one_row), start, (u, reset))[:2]


def _chunked(run, decay, weight, out, u, reset, initial_state):
    size = u.shape[1]
    table = diagonal.powers(decay, size + 1)
    inner = diagonal.multiply(_first(size, table), _alone(weight))  # λʲ γ B [Q, N, D]
    kernel = (inner.real * out.real[None] - inner.imag * out.imag[None]).sum(1)
    outer = diagonal.multiply(diagonal.each(lambda part: part[1:], table), _alone(out))
    whole = diagonal.each(lambda part: part[size], table)
    link = lambda rows, kept: diagonal.linear_scan(whole, rows, kept, run)  # noqa: E731
    return chunk_conv.convolve(kernel, inner, outer, link, u, reset, initial_state)


_RUN: dict[str, Callable] = {
    # A chunk is many rows: programs stop growing at 8 chunks.
    "chunked": functools.partial(_chunked, functools.partial(diagonal.rows_associative, whole=8)),
    "chunked_sequential": functools.partial(_chunked, diagonal.rows_sequential),
    "recurrent": _recurrent,
}
