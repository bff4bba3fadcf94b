"""The Mamba-2 recurrence for one group of heads: what `ssd.py` maps over groups.

All heads share B and C here, so `C Bᵀ` is computed once for them and heads merge into columns
(`[N, H·P]`) wherever a state is read or written. Axes as in `ssd.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking

Array = jax.Array

# e^-30 is nothing beside O(1) terms; a deeper decay would only cost digits of the running sums.
_MIN_LOG_DECAY = -30.0
# Compile time grows with an unrolled loop; up to here it beats the loop of `lax.scan`.
_MAX_UNROLLED_CHUNKS = 8


class Chunks(NamedTuple):
    """Inputs cut into K chunks of Q rows; rows of padding have dt = 0 and change nothing."""

    x: Array  # [K, Q, H, P]
    dt: Array  # [K, Q, H]
    step_decay: Array  # [K, Q, H] dt·A of each row, clamped
    log_decay: Array  # [K, Q, H] its running sum inside the chunk
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
    chunks: Chunks, initial_state: Array | None, *, sequential: bool
) -> tuple[Array, Array, Array]:
    """Matrix products inside chunks; a scan (sequential or associative) across them.

    Args:
      chunks: K chunks of one group.
      initial_state: [N, H, P] or None for zeros.
      sequential: go from chunk to chunk one after the other.

    Returns:
      y [K, Q, H, P], states at chunk starts [K, N, H, P], final state [N, H, P].
    """
    y = _each(_inside, chunks)
    added, kept = _each(_chunk_state, chunks)
    if initial_state is None and len(added) == 1:
        # Nothing is carried into the only chunk: reading zeros would triple the cost.
        return y, jnp.zeros_like(added), added[0]
    if initial_state is None:
        initial_state = jnp.zeros_like(added[0])
    across = _starts_sequential if sequential else _starts_parallel
    starts, final_state = across(kept, added, initial_state)
    return y + _each(_carried_in, chunks, starts), starts, final_state


def _each(one_chunk: Callable, *args: Any) -> Any:
    """Map over chunks. A single chunk goes without the axis: of size 1, XLA:CPU pays it twice."""
    if len(jax.tree.leaves(args)[0]) > 1:
        return jax.vmap(one_chunk)(*args)
    result = one_chunk(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: leaf[None], result)


def _inside(chunk: Chunks) -> Array:
    """What rows of one chunk contribute to each other's y: [Q, H, P]."""
    x, segment = chunk.x, chunk.segment
    sees = jnp.tril(jnp.ones((len(x), len(x)), bool)) & (segment[:, None] == segment[None])
    decay = chunk.log_decay.T  # [H, Q]
    weight = masked_exp(sees[None], decay[:, :, None] - decay[:, None])  # [H, Q, Q]
    scores = _product(chunk.C, chunk.B.T, x.dtype)  # [Q, Q], shared by heads
    # dt goes into the mixing matrix, so that dt·x is never stored.
    mixing = weight * scores[None] * chunk.dt.T[:, None]
    return _product(mixing, x.swapaxes(0, 1), x.dtype).swapaxes(0, 1)


def _chunk_state(chunk: Chunks) -> tuple[Array, Array]:
    """What one chunk adds to the state [N, H, P], and what it keeps of it [H]."""
    x, decay, segment = chunk.x, chunk.log_decay, chunk.segment
    survives = segment == segment[-1]  # no reset between the row and the chunk's end
    weight = chunk.dt * masked_exp(survives[:, None], decay[-1:] - decay)  # [Q, H]
    inputs = (weight[..., None] * x.astype(weight.dtype)).reshape(len(x), -1)  # [Q, H·P]
    added = _product(chunk.B.T, inputs, x.dtype).reshape(-1, *x.shape[1:])
    return added, masked_exp(segment[-1] == 0, decay[-1])


def _carried_in(chunk: Chunks, start: Array) -> Array:
    """What the state [N, H, P] at the chunk's start contributes to y: [Q, H, P]."""
    columns = start.reshape(len(start), -1)  # [N, H·P]
    read = _product(chunk.C, columns, chunk.x.dtype).reshape(chunk.x.shape)
    return read * masked_exp(chunk.segment[:, None] == 0, chunk.log_decay)[..., None]


def _product(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """a @ b with operands in `dtype`, sums in at least float32."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=wide)


# --------------------------------------------------------------------------------- across chunks


def _starts_parallel(kept: Array, added: Array, initial: Array) -> tuple[Array, Array]:
    """States at chunk starts [K, N, H, P] and the final state by an associative scan."""

    def after(first, second):
        (kept_1, added_1), (kept_2, added_2) = first, second
        return kept_1 * kept_2, kept_2[:, None, :, None] * added_1 + added_2

    added = jnp.concatenate([added[:1] + kept[:1, None, :, None] * initial[None], added[1:]])
    _, ends = jax.lax.associative_scan(after, (kept, added))
    return jnp.concatenate([initial[None], ends[:-1]]), ends[-1]


def _starts_sequential(kept: Array, added: Array, initial: Array) -> tuple[Array, Array]:
    """States at chunk starts [K, N, H, P] and the final state, chunk after chunk."""

    def next_chunk(state, chunk):
        kept_k, added_k = chunk
        return kept_k[None, :, None] * state + added_k, state

    final, starts = jax.lax.scan(
        next_chunk, initial, (kept, added), unroll=len(kept) <= _MAX_UNROLLED_CHUNKS
    )
    return starts, final


# ------------------------------------------------------------------------------------ row by row


def recurrent(chunks: Chunks, initial_state: Array | None) -> tuple[Array, Array, Array]:
    """The recurrence as it is written; arguments and results as those of `chunked`."""
    num_states, (heads, channels) = chunks.B.shape[-1], chunks.x.shape[2:]
    if initial_state is None:
        initial_state = jnp.zeros((num_states, heads, channels), chunks.dt.dtype)

    def one_row(state, row):
        x, dt, log_decay, B, C, reset = row
        return step(jnp.where(reset, 0, state), x, dt, log_decay, B, C)

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
    run: Callable, chunks: Chunks, initial_state: Array | None
) -> tuple[Array, Array, Array]:
    """Run `run` on each group's heads; the results have all heads again."""
    num_groups = chunks.B.shape[2]
    if num_groups == 1:
        return run(chunks._replace(B=chunks.B[:, :, 0], C=chunks.C[:, :, 0]), initial_state)
    grouped = chunks._replace(
        **{
            name: split_heads(getattr(chunks, name), 2, num_groups)
            for name in ("x", "dt", "step_decay", "log_decay")
        }
    )
    if initial_state is not None:
        initial_state = split_heads(initial_state, 1, num_groups)
    axes = jax.tree.map(lambda _: 2, grouped)._replace(reset=None, segment=None)
    run = jax.vmap(run, in_axes=(axes, 1), out_axes=(2, 2, 1))
    y, starts, final_state = run(grouped, initial_state)
    return (
        y.reshape(chunks.x.shape),
        starts.reshape(*starts.shape[:2], *chunks.x.shape[2:]),
        final_state.reshape(final_state.shape[0], *chunks.x.shape[2:]),
    )
