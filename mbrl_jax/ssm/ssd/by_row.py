"""The Mamba-2 recurrence row by row: what `spoiled` results are made of anew."""

import jax
import jax.numpy as jnp

from mbrl_jax.ssm.ssd.chunk_matrix import Array, Chunk


def run(chunk: Chunk, D: Array, start: Array) -> tuple[Array, Array]:
    """`chunk_matrix.run`: y [Q, H, P] and the state [H, N, P] after the chunk, from that before."""
    rows = chunk._replace(dt=chunk.dt.T, decay=chunk.decay.T)
    end, y = jax.lax.scan(lambda state, row: _step(state, row, D), start, rows)
    return y, end


def _step(state: Array, row: Chunk, D: Array) -> tuple[Array, Array]:
    """The state [H, N, P] after a row, and its y [H, P]."""
    x, B, C = (array.astype(state.dtype) for array in (row.x, row.B, row.C))
    kept = jnp.exp(row.decay)[:, None, None] * jnp.where(row.reset, 0, state)
    state = kept + B[None, :, None] * (row.dt[:, None] * x)[:, None]
    return state, (C[None, :, None] * state).sum(1) + D[:, None] * x


def y_anew(y: Array, arguments: tuple[Chunk, Array, Array]) -> Array:
    """y [L, T, H, P] of L lanes, written in place.

    Args:
      y: as it was.
      arguments: rows with the axes L and T in front everywhere (dt and decay are [L, T, H]); weight
        of the skip [L, H]; state before the first row, [L, H, N, P].
    """
    rows, D, start = arguments

    def one_row(t, loop):
        state, y = loop
        state, row_y = jax.vmap(_step)(state, _at(rows, t), D)
        return state, y.at[:, t].set(row_y)

    return jax.lax.fori_loop(0, y.shape[1], one_row, (start, y))[1]


def states_anew(states: tuple[Array, Array], arguments: tuple[Chunk, Array]) -> tuple[Array, Array]:
    """States at chunk starts [L, K, H, N, P] and after the last row [L, H, N, P].

    Args:
      states: as they were.
      arguments: rows and the state before the first one, as for `y_anew`.
    """
    (starts, _), (rows, start) = states, arguments
    num_chunks = starts.shape[1]
    size = rows.reset.shape[1] // num_chunks

    def one_chunk(k, loop):
        starts, state = loop

        def one_row(q, state):
            row = _at(rows, k * size + q)
            return jax.vmap(_step)(state, row, jnp.zeros_like(row.dt))[0]

        return starts.at[:, k].set(state), jax.lax.fori_loop(0, size, one_row, state)

    return jax.lax.fori_loop(0, num_chunks, one_chunk, (starts, start))


def _at(rows: Chunk, t: Array) -> Chunk:
    return jax.tree.map(lambda array: array[:, t], rows)
