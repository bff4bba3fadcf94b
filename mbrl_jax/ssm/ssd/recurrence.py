"""State-space duality, the recurrence of Mamba-2 (Dao & Gu, arXiv 2405.21060).

For every head h of H, with one decay rate A_h < 0 and channels p of P, in group g of G:

    Sₜ = exp(dtₜ A) Sₜ₋₁ + dtₜ Bₜ ⊗ xₜ        yₜ = Cₜ Sₜ + D xₜ

A state is `[N, H, P]` (mamba_ssm keeps `[H, P, N]`): B and C meet it from the left in plain matrix
products over merged columns H·P, so it is never transposed.

Axes: `T` time, cut into `K` chunks of `Q` rows, `H` heads, `P` channels of a head, `G` groups of
heads that share B and C, `N` state size. Everything but `ssd` is for a single stream; `vmap` over
it costs the same as writing the batch axis by hand.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking, shapes, spoiled
from mbrl_jax.ssm.ssd import chunk_matrix, group

Array = jax.Array

METHODS = ("auto", "chunked", "chunked_sequential", "recurrent")
# So that what `chunk_matrix` takes as near to 1 is: 1024 quanta, of 2⁻⁶.
_LONGEST_CHUNK = 1024


class SSDEntries(NamedTuple):
    """What rebuilds the state after any row: states at chunk starts, and the rows in between."""

    starts: Array  # [K, N, H, P] float32: the state before the first row of each chunk
    x: Array  # [K, Q, H, P]
    dt: Array  # [K, Q, H] float32
    step_decay: Array  # [K, Q, H] float32: dt·A of each row, clamped
    segment: Array  # [K, Q] int32: resets so far in the chunk
    B: Array  # [K, Q, G, N]


def auto_method(backend: str) -> str:
    """The method that "auto" stands for on `backend` ("cpu", "gpu", "tpu")."""
    # On CPU a scan across chunks does less arithmetic; accelerators want the log-depth tree.
    return "chunked_sequential" if backend == "cpu" else "chunked"


# ----------------------------------------------------------------------------------------- public


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: Array | None = None,
    return_final_state: bool = False,
    chunk_size: int = 32,
    method: str = "auto",
) -> Array | tuple[Array, Array]:
    """The Mamba-2 recurrence over a batch of sequences; see `ssd_stream` for the arguments.

    Args:
      x: [B, T, H, P].
      dt: [B, T, H] after softplus.
      A: [H] negative.
      B: [B, T, G, N].
      C: [B, T, G, N].
      D: [H] or None.
      reset: [B, T] bool or None.
      initial_state: [B, N, H, P] or None for zeros.
      return_final_state: also return the state after row T - 1.
      chunk_size: the longest chunk.
      method: one of `METHODS`.

    Returns:
      y [B, T, H, P] in the dtype of x, and the final state [B, N, H, P] where asked for.

    Raises:
      ValueError: shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(x, dt, A, B, C, D, reset, initial_state, batch="B ")

    def stream(x, dt, B, C, reset, initial_state):
        options = {"initial_state": initial_state, "chunk_size": chunk_size, "method": method}
        return ssd_stream(x, dt, A, B, C, D, reset=reset, **options)[:2]

    y, final_state = jax.vmap(stream)(x, dt, B, C, reset, initial_state)
    return (y, final_state) if return_final_state else y


def ssd_stream(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: Array | None = None,
    log_decay: Array | None = None,
    chunk_size: int = 32,
    method: str = "auto",
) -> tuple[Array, Array, SSDEntries]:
    """The Mamba-2 recurrence over one sequence of any length T ≥ 1.

    dt, decays and states are float32 (float64 for float64 inputs); x, B and C enter the matrix
    products in the dtype of x, with float32 sums. dt·A is clamped at -128, where float32 keeps
    nothing. On accelerators float32 products follow `jax_default_matmul_precision`.

    Without an initial state, T ≤ `chunk_size` costs no state at all unless the final state or the
    entries are used: pass None rather than zeros.

    Args:
      x: [T, H, P].
      dt: [T, H] step sizes after softplus; 0 leaves the state alone.
      A: [H] decay rates, negative.
      B: [T, G, N] input weights; group g serves the heads g·H/G … (g+1)·H/G - 1.
      C: [T, G, N] output weights.
      D: [H] weight of the skip, or None.
      reset: [T] bool; `reset[t]` empties the state before row t. None: never.
      initial_state: [N, H, P], or None for zeros.
      log_decay: [T, H] numbers ≤ 0 in the place of dt·A; dt then scales inputs and nothing else.
      chunk_size: the longest chunk.
      method: "chunked": matrix products inside chunks, an associative scan across them;
        "chunked_sequential": the same, across chunks one after the other; "recurrent": row by row;
        "auto": what `auto_method` says for the default backend.

    Returns:
      y [T, H, P] in the dtype of x, the state after the last row [N, H, P], and `SSDEntries`.

    Raises:
      ValueError: shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(x, dt, A, B, C, D, reset, initial_state)
    length = x.shape[0]
    shapes.check_chunking(length, chunk_size, method, METHODS)
    method = auto_method(jax.default_backend()) if method == "auto" else method
    if reset is None:
        reset = jnp.zeros((length,), bool)
    chunks = _cut(x, dt, A, B, C, reset, log_decay, min(chunk_size, _LONGEST_CHUNK))
    if initial_state is not None:
        initial_state = spoiled.unless_reset(reset, initial_state.astype(chunks.dt.dtype))
    skip = jnp.zeros_like(A, chunks.dt.dtype) if D is None else D.astype(chunks.dt.dtype)
    y, starts, final_state = group.over_groups(_RUN[method], chunks, skip, initial_state)

    y = y.reshape(-1, *x.shape[1:])[:length].astype(x.dtype)
    entries = SSDEntries(starts, chunks.x, chunks.dt, chunks.step_decay, chunks.segment, chunks.B)
    return y, final_state, entries


def ssd_state_at(entries: SSDEntries, t: Array | int) -> Array:
    """The state [N, H, P] after t + 1 rows: one gathered chunk and one small product.

    Args:
      entries: of `ssd_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    size = entries.x.shape[1]
    chunk = jax.tree.map(lambda leaf: leaf[t // size], entries)
    row = t % size
    segment = chunk.segment[row]
    alive = (jnp.arange(size) <= row) & (chunk.segment == segment)
    # Chosen, not multiplied by 0: rows that are not seen may hold NaN.
    decay = jnp.where(alive[:, None], chunk.step_decay, 0)
    x, B = (jnp.where(alive[:, None, None], rows, 0) for rows in (chunk.x, chunk.B))
    later = jnp.triu(jnp.ones((size, size), decay.dtype), 1)
    since = chunk_matrix.exact_product(later, decay)  # [Q, H] the sum over the rows after this one
    weight = jnp.where(alive[:, None], chunk.dt, 0) * jnp.exp(since)
    kept = jnp.exp(decay.sum(0))  # [H], where no row is behind a reset

    num_groups, num_states = B.shape[1:]
    inputs = weight[..., None] * x.astype(weight.dtype)  # [Q, H, P]
    inputs = inputs.reshape(size, num_groups, -1).swapaxes(0, 1)  # [G, Q, H·P / G]
    added = B.astype(weight.dtype).transpose(1, 2, 0) @ inputs  # [G, N, H·P / G]
    added = added.swapaxes(0, 1).reshape(num_states, *x.shape[1:])
    return jnp.where(segment == 0, chunk.starts * kept[None, :, None], 0) + added


def ssd_step(
    state: Array, x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array | None = None
) -> tuple[Array, Array]:
    """One row of the recurrence.

    Args:
      state: [N, H, P] float32.
      x: [H, P].
      dt: [H] after softplus.
      A: [H] negative.
      B: [G, N].
      C: [G, N].
      D: [H] or None.

    Returns:
      The next state [N, H, P], and y [H, P] in the dtype of x.

    Raises:
      ValueError: a shape is wrong.
    """
    shapes.check_axes(
        state=(state, "N H P"),
        x=(x, "H P"),
        dt=(dt, "H"),
        A=(A, "H"),
        B=(B, "G N"),
        C=(C, "G N"),
        D=(D, "H"),
    )
    num_groups = B.shape[0]
    _check_groups(x.shape[0], num_groups)
    dt = dt.astype(state.dtype)
    rows = (x, dt, chunk_matrix.step_log_decay(dt, A))
    if num_groups == 1:
        state, y = group.step(state, *rows, B[0], C[0])
    else:
        step: Callable = jax.vmap(group.step, in_axes=(1, 0, 0, 0, 0, 0), out_axes=(1, 0))
        heads = (group.split_heads(row, 0, num_groups) for row in rows)
        columns, y = step(group.split_heads(state, 1, num_groups), *heads, B, C)
        state, y = columns.reshape(state.shape), y.reshape(x.shape)
    if D is not None:
        y = y + D.astype(y.dtype)[:, None] * x.astype(y.dtype)
    return state, y.astype(x.dtype)


# --------------------------------------------------------------------------------------- private

_RUN: dict[str, Callable] = {
    "chunked": functools.partial(group.chunked, sequential=False),
    "chunked_sequential": functools.partial(group.chunked, sequential=True),
    "recurrent": group.recurrent,
}


def _check(x, dt, A, B, C, D, reset, initial_state, batch: str = "") -> None:
    """Check the inputs of `ssd` (batch "B ") or `ssd_stream`."""
    shapes.check_axes(
        x=(x, batch + "T H P"),
        dt=(dt, batch + "T H"),
        A=(A, "H"),
        B=(B, batch + "T G N"),
        C=(C, batch + "T G N"),
        D=(D, "H"),
        reset=(reset, batch + "T"),
        initial_state=(initial_state, batch + "N H P"),
    )
    _check_groups(x.shape[-2], B.shape[-2])
    shapes.check_reset(reset)


def _check_groups(num_heads: int, num_groups: int) -> None:
    if num_groups < 1 or num_heads % num_groups:
        raise ValueError(
            f"`B` has {num_groups} groups, but a divisor of the {num_heads} heads was expected."
        )


def _cut(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    reset: Array,
    log_decay: Array | None,
    chunk_size: int,
) -> group.Chunks:
    """All groups' inputs as chunks; B and C keep their group axis."""
    x, dt, B, C, reset = (
        chunking.to_chunks(rows, chunk_size)
        for rows in (x, dt.astype(chunking.state_dtype(x)), B, C, reset)
    )
    step_decay = chunk_matrix.step_log_decay(dt, A)
    if log_decay is not None:
        given = chunking.to_chunks(log_decay.astype(dt.dtype), chunk_size)
        step_decay = jnp.maximum(given, chunk_matrix.MIN_LOG_DECAY)
    segment = jnp.cumsum(reset.astype(jnp.int32), axis=1)
    return group.Chunks(x, dt, step_decay, B, C, reset, segment)
