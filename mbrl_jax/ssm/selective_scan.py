"""The selective scan, the recurrence of Mamba-1 (Gu & Dao, arXiv 2312.00752).

For every channel d of D and state n of N, with a decay rate A[d, n] < 0 of their own:

    Sₜ = exp(Δₜ A) Sₜ₋₁ + Δₜ uₜ Bₜ        yₜ = Cₜ Sₜ + D uₜ

The decay differs per channel and state, so there is no form by matrix products as in `ssd`. A state
is `[N, D]` with the long axis D minor: it fills vector lanes and y is a sum over the other axis.
Axes: `T` time, cut into `K` chunks of `Q` rows, `D` channels, `N` state size. Everything but
`selective_scan` is for a single stream; `vmap` adds batches.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking, fused_scan, shapes, spoiled

Array = jax.Array

METHODS = ("auto", "associative", "recurrent", "fused")


class ScanEntries(NamedTuple):
    """What rebuilds the state after any row: states at chunk starts, and the rows in between."""

    starts: Array  # [K, N, D] float32: the state before the first row of each chunk
    u: Array  # [K, Q, D]
    delta: Array  # [K, Q, D] float32
    A: Array  # [D, N]
    B: Array  # [K, Q, N]
    reset: Array  # [K, Q] bool


def auto_method(backend: str, num_states: int = 1) -> str:
    """The method that "auto" stands for on `backend` ("cpu", "gpu", "tpu") with N states."""
    if backend == "gpu" and num_states <= fused_scan.MAX_STATES and fused_scan.found():
        return "fused"
    # On CPU the state of one row stays in cache; accelerators want rows in parallel.
    return "recurrent" if backend == "cpu" else "associative"


# ----------------------------------------------------------------------------------------- public


def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    *,
    reset: Array | None = None,
    initial_state: Array | None = None,
    return_final_state: bool = False,
    chunk_size: int = 16,
    method: str = "auto",
) -> Array | tuple[Array, Array]:
    """The Mamba-1 recurrence over a batch of sequences, with what usually surrounds it.

    Args:
      u: [B, T, D].
      delta: [B, T, D] step sizes, before `delta_bias` and softplus where these are asked for.
      A: [D, N] negative.
      B: [B, T, N].
      C: [B, T, N].
      D: [D] weight of the skip, or None.
      z: [B, T, D] gate: the result is multiplied by silu(z). None: no gate.
      delta_bias: [D] added to `delta`, or None.
      delta_softplus: pass `delta` through softplus.
      reset: [B, T] bool; `reset[:, t]` empties the state before row t. None: never.
      initial_state: [B, N, D] or None for zeros.
      return_final_state: also return the state after row T - 1.
      chunk_size: the longest chunk.
      method: one of `METHODS`.

    Returns:
      The result [B, T, D] in the dtype of u, and the final state [B, N, D] where asked for.

    Raises:
      ValueError: shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(u, delta, A, B, C, D, reset, initial_state, batch="B ")
    shapes.check_axes(u=(u, "B T D"), z=(z, "B T D"), delta_bias=(delta_bias, "D"))
    wide = chunking.state_dtype(u)
    delta = delta.astype(wide)
    if delta_bias is not None:
        delta = delta + delta_bias.astype(wide)[None, None]
    if delta_softplus:
        delta = jax.nn.softplus(delta)

    def stream(u, delta, B, C, reset, initial_state):
        options = {"initial_state": initial_state, "chunk_size": chunk_size, "method": method}
        return selective_scan_stream(u, delta, A, B, C, D, reset=reset, **options)[:2]

    y, final_state = jax.vmap(stream)(u, delta, B, C, reset, initial_state)
    if z is not None:
        y = (y.astype(wide) * jax.nn.silu(z.astype(wide))).astype(u.dtype)
    return (y, final_state) if return_final_state else y


def selective_scan_stream(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: Array | None = None,
    chunk_size: int = 16,
    method: str = "auto",
) -> tuple[Array, Array, ScanEntries]:
    """The Mamba-1 recurrence over one sequence of any length T ≥ 1.

    States and step sizes are float32 (float64 for float64 inputs) whatever the dtype of u.

    Args:
      u: [T, D].
      delta: [T, D] step sizes after softplus; 0 leaves the state alone.
      A: [D, N] decay rates, negative.
      B: [T, N] input weights.
      C: [T, N] output weights.
      D: [D] weight of the skip, or None.
      reset: [T] bool; `reset[t]` empties the state before row t. None: never.
      initial_state: [N, D] or None for zeros.
      chunk_size: the longest chunk.
      method: "associative": rows of a chunk by an associative scan, chunks one after the other;
        "recurrent": row by row; "fused": row by row in a GPU kernel, with chunks of 8 rows at most;
        "auto": what `auto_method` says for the default backend. All keep the states at chunk starts
        for backward, and recompute the rest.

    Returns:
      y [T, D] in the dtype of u, the state after the last row [N, D], and `ScanEntries`.

    Raises:
      ValueError: shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(u, delta, A, B, C, D, reset, initial_state)
    length, channels = u.shape
    shapes.check_chunking(length, chunk_size, method, METHODS)
    if method == "auto":
        method = auto_method(jax.default_backend(), A.shape[1])
    if method == "fused":
        fused_scan.require()
        chunk_size = min(chunk_size, fused_scan.MAX_ROWS)
    wide = chunking.state_dtype(u)
    if reset is None:
        reset = jnp.zeros((length,), bool)
    if initial_state is None:
        initial_state = jnp.zeros((A.shape[1], channels))
    initial_state = spoiled.unless_reset(reset, initial_state.astype(wide))

    rows = [chunking.to_chunks(row, chunk_size) for row in (u, delta.astype(wide), B, C, reset)]
    y, starts, final_state = _RUN[method](A.T.astype(wide), initial_state, tuple(rows))
    y = _skip(y.reshape(-1, channels)[:length], D, u)

    u, delta, B, _, reset = rows
    return y, final_state, ScanEntries(starts, u, delta, A, B, reset)


def scan_state_at(entries: ScanEntries, t: Array | int) -> Array:
    """The state [N, D] after t + 1 rows: one gathered chunk, run up to row t.

    Args:
      entries: of `selective_scan_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    size = entries.u.shape[1]
    start, u, delta, B, reset = (
        leaf[t // size]
        for leaf in (entries.starts, entries.u, entries.delta, entries.B, entries.reset)
    )
    # Rows after t become zeros, with a step size of 0: they leave the state alone.
    due = jnp.arange(size) <= t % size
    u, delta, B = (jnp.where(due[:, None], row, 0) for row in (u, delta, B))
    rates = entries.A.T.astype(start.dtype)

    def one_row(state, row):
        return _advance(rates, state, *row), None

    rows = (u, delta, B, reset & due)
    return jax.lax.scan(one_row, start, rows)[0]


def selective_scan_step(
    state: Array, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array | None = None
) -> tuple[Array, Array]:
    """One row of the recurrence.

    Args:
      state: [N, D] float32.
      u: [D].
      delta: [D] after softplus.
      A: [D, N] negative.
      B: [N].
      C: [N].
      D: [D] or None.

    Returns:
      The next state [N, D], and y [D] in the dtype of u.

    Raises:
      ValueError: a shape is wrong.
    """
    shapes.check_axes(
        state=(state, "N D"),
        u=(u, "D"),
        delta=(delta, "D"),
        A=(A, "D N"),
        B=(B, "N"),
        C=(C, "N"),
        D=(D, "D"),
    )
    delta = delta.astype(state.dtype)
    state = _advance(A.T.astype(state.dtype), state, u, delta, B, jnp.zeros((), bool))
    return state, _skip(_read(state, C)[None], D, u[None])[0]


# --------------------------------------------------------------------------------------- private


def _check(u, delta, A, B, C, D, reset, initial_state, batch: str = "") -> None:
    """Check the inputs of `selective_scan` (batch "B ") or `selective_scan_stream`."""
    shapes.check_axes(
        u=(u, batch + "T D"),
        delta=(delta, batch + "T D"),
        A=(A, "D N"),
        B=(B, batch + "T N"),
        C=(C, batch + "T N"),
        D=(D, "D"),
        reset=(reset, batch + "T"),
        initial_state=(initial_state, batch + "N D"),
    )
    shapes.check_reset(reset)


def _advance(rates: Array, state: Array, u: Array, delta: Array, B: Array, reset: Array) -> Array:
    """The next state [N, D] for rates [N, D], u and delta [D], B [N], reset []."""
    kept, added = _decay_and_input(rates, u, delta, B)
    return _unless(reset, kept * state) + added


def _decay_and_input(rates: Array, u: Array, delta: Array, B: Array) -> tuple[Array, Array]:
    """The share of the state that one row keeps, and what it adds to it, both [N, D]."""
    kept = jnp.exp(delta[None] * rates)
    return kept, B.astype(delta.dtype)[:, None] * (delta * u.astype(delta.dtype))[None]


def _unless(reset: Array, state: Array) -> Array:
    return jnp.where(reset, 0, state)  # chosen, because 0 · NaN is NaN


def _read(state: Array, C: Array) -> Array:
    """y [D] without the skip."""
    return chunking.weighted_sum(C.astype(state.dtype), state)


def _skip(y: Array, D: Array | None, u: Array) -> Array:
    """y + D·u for y and u [T, D], in the dtype of u."""
    if D is not None:
        y = y + D.astype(y.dtype)[None] * u.astype(y.dtype)
    return y.astype(u.dtype)


def _associative(rates: Array, state: Array, rows: tuple) -> tuple[Array, Array, Array]:
    """All rows of a chunk at once; arguments and results as those of `_recurrent`."""

    def after(first, second):
        (kept_1, added_1), (kept_2, added_2) = first, second
        return kept_1 * kept_2, kept_2 * added_1 + added_2

    def one_chunk(state, rows):
        u, delta, B, C, reset = rows
        kept, added = jax.vmap(_decay_and_input, in_axes=(None, 0, 0, 0))(rates, u, delta, B)
        kept = _unless(reset[:, None, None], kept)
        kept, added = jax.lax.associative_scan(after, (kept, added))
        states = kept * state[None] + added  # [Q, N, D]
        return states[-1], jax.vmap(_read)(states, C)

    y, starts, final_state = chunking.scan_chunks(one_chunk, state, rows)
    arguments = rates, state, rows
    # Apart, so that what is not wanted of the two costs nothing.
    states = spoiled.mend(_states_anew, y[:, -1], (starts, final_state), arguments)
    return spoiled.mend(_y_anew, y[:, -1], y, arguments), *states


def _y_anew(_, arguments):
    return jax.vmap(_recurrent_forward)(*arguments)[0][0]


def _states_anew(_, arguments):
    return jax.vmap(_recurrent_forward)(*arguments)[0][1:]


# ------------------------------------------------------------------------------------ row by row


@jax.custom_vjp
def _recurrent(rates: Array, state: Array, rows: tuple) -> tuple[Array, Array, Array]:
    """Row after row.

    Args:
      rates: [N, D].
      state: [N, D] before the first row.
      rows: u [K, Q, D], delta [K, Q, D], B [K, Q, N], C [K, Q, N], reset [K, Q].

    Returns:
      y [K, Q, D] without the skip, states at chunk starts [K, N, D], final state [N, D].
    """
    return _recurrent_forward(rates, state, rows)[0]


def _recurrent_forward(rates, state, rows):
    def one_row(state, row):
        u, delta, B, C, reset = row
        state = _advance(rates, state, u, delta, B, reset)
        return state, _read(state, C)

    def one_chunk(state, rows):
        final_state, y = jax.lax.scan(one_row, state, rows)
        return final_state, (state, y)

    final_state, (starts, y) = jax.lax.scan(one_chunk, state, rows)
    return (y, starts, final_state), (rates, rows, starts)


def _recurrent_backward(residuals, bars):
    """By hand: faster than the transposed scan, which makes more passes over states.

    Of each chunk, what rows keep of the state before them is computed anew; then rows go backwards.
    """
    rates, rows, starts = residuals
    y_bar, starts_bar, final_bar = bars

    def one_chunk(carry, chunk):
        rows, y_bar, start, start_bar = chunk
        _, carried = jax.lax.scan(functools.partial(_carried, rates), start, rows)
        row_back = functools.partial(_row_backward, rates)
        (state_bar, rates_bar), rows_bar = jax.lax.scan(
            row_back, carry, (rows, y_bar, carried), reverse=True
        )
        return (state_bar + start_bar, rates_bar), rows_bar

    (state_bar, rates_bar), rows_bar = jax.lax.scan(
        one_chunk,
        (final_bar, jnp.zeros_like(rates)),
        (rows, y_bar, starts, starts_bar),
        reverse=True,
    )
    rows_bar = (bar.astype(row.dtype) for bar, row in zip(rows_bar, rows[:-1], strict=True))
    return rates_bar, state_bar, (*rows_bar, None)


_recurrent.defvjp(_recurrent_forward, _recurrent_backward)


def _carried(rates: Array, state: Array, row: tuple) -> tuple[Array, Array]:
    """The next state [N, D], and the part of it that comes from `state`."""
    u, delta, B, _, reset = row
    kept, added = _decay_and_input(rates, u, delta, B)
    carried = _unless(reset, kept * state)
    return carried + added, carried


def _row_backward(rates: Array, carry: tuple, row: tuple) -> tuple[tuple, tuple]:
    """Gradients (state before the row, rates), both [N, D], and of u, delta, B and C.

    The two sums over channels are products with the arrays at hand, the carry and `carried`; what
    is missing from these is an outer product, and known without them.
    """
    state_bar, rates_bar = carry
    (u, delta, B, C, reset), y_bar, carried = row
    u, B, C = (array.astype(delta.dtype) for array in (u, B, C))
    inputs = delta * u
    meeting = (inputs * y_bar).sum()
    B_bar = state_bar @ inputs + C * meeting
    C_bar = carried @ y_bar + B * meeting
    inputs_bar = (B[None] @ state_bar)[0] + (B * C).sum() * y_bar

    state_bar = state_bar + C[:, None] * y_bar[None]
    exponent_bar = state_bar * carried
    delta_bar = u * inputs_bar + chunking.weighted_sum(rates, exponent_bar)
    rates_bar = rates_bar + exponent_bar * delta[None]
    state_bar = _unless(reset, jnp.exp(delta[None] * rates) * state_bar)
    return (state_bar, rates_bar), (delta * inputs_bar, delta_bar, B_bar, C_bar)


_FUSED = fused_scan.fused_scan
_RUN: dict[str, Any] = {"associative": _associative, "recurrent": _recurrent, "fused": _FUSED}
