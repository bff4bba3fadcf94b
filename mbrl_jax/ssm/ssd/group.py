"""The Mamba-2 recurrence for one group of heads: what `ssd` maps over groups.

All heads share B and C here, so `C Bᵀ` is computed once for them. Axes as in `ssd`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking, lanes, spoiled
from mbrl_jax.ssm.ssd import by_row, chunk_matrix, single_chunk, turns

Array = jax.Array


class Chunks(NamedTuple):
    """Inputs cut into K chunks of Q rows; rows of padding have dt = 0 and change nothing."""

    x: Array  # [K, Q, H, P]
    dt: Array  # [K, Q, H]
    step_decay: Array  # [K, Q, H] dt·A of each row, clamped
    B: Array  # [K, Q, N]
    C: Array  # [K, Q, N]
    reset: Array  # [K, Q] bool
    segment: Array  # [K, Q] int32 its running sum: rows that see each other have the same number


# -------------------------------------------------------------------------------------- in chunks


def chunked(
    chunks: Chunks, D: Array, initial_state: Array | None, *, sequential: bool
) -> tuple[Array, Array, Array]:
    """A matrix for each chunk; a scan (sequential or associative) across chunks.

    Args:
      chunks: K chunks of one group.
      D: [H] weight of the skip.
      initial_state: [N, H, P] or None for zeros.
      sequential: go from chunk to chunk one after the other.

    Returns:
      y [K, Q, H, P], states at chunk starts [K, N, H, P], final state [N, H, P].
    """
    dt, decay = (jnp.moveaxis(rows, 2, 1) for rows in (chunks.dt, chunks.step_decay))
    rows = chunk_matrix.Chunk(chunks.x, dt, decay, chunks.B, chunks.C, chunks.reset)
    (num_chunks, _, heads, channels), num_states = chunks.x.shape, chunks.B.shape[2]
    if initial_state is None:
        start = jnp.zeros((heads, num_states, channels), dt.dtype)
    else:
        start = jnp.swapaxes(initial_state, 0, 1)
    all_D = jnp.broadcast_to(D, (num_chunks, *D.shape))
    if sequential and (num_chunks > 1 or initial_state is not None):
        y, starts, final_state = turns.over_chunks(rows, D, start)
        return y, jnp.swapaxes(starts, 1, 2), jnp.swapaxes(final_state, 0, 1)
    if initial_state is None and num_chunks == 1:
        # Nothing is carried into the only chunk: columns of zeros would double the cost.
        y, starts = lanes.each(single_chunk.outputs, rows, all_D), start[None]
        final_state = lanes.each(chunk_matrix.added_state, rows)[0]
    else:
        kept, added = (
            lanes.each(f, rows) for f in (chunk_matrix.kept_state, chunk_matrix.added_state)
        )
        starts, final_state = _starts(kept, added, start)
        y = lanes.each(chunk_matrix.outputs, rows, all_D, starts)
    flat, inputs = jax.tree.map(
        lambda array: array.reshape(-1, *array.shape[2:]), (y, chunk_matrix.Chunk(*chunks[:6]))
    )
    # Apart, so that what is not wanted of the two costs nothing.
    last = y[:, -1]
    starts, final_state = spoiled.mend(
        by_row.states_anew, last, (starts, final_state), (inputs, start)
    )
    y = spoiled.mend(by_row.y_anew, last, flat, (inputs, D, start)).reshape(y.shape)
    return y, jnp.swapaxes(starts, 1, 2), jnp.swapaxes(final_state, 0, 1)


def _starts(kept: Array, added: Array, initial: Array) -> tuple[Array, Array]:
    """States at chunk starts [K, H, N, P] and the final state by an associative scan."""

    def after(first, second):
        (kept_1, added_1), (kept_2, added_2) = first, second
        return kept_1 * kept_2, kept_2[:, :, None, None] * added_1 + added_2

    added = jnp.concatenate([added[:1] + kept[:1, :, None, None] * initial[None], added[1:]])
    _, ends = jax.lax.associative_scan(after, (kept, added))
    return jnp.concatenate([initial[None], ends[:-1]]), ends[-1]


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
