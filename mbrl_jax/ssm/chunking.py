"""Cutting sequences into chunks, and scans over chunks that keep little memory for backward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# Up to here a sum is written out; compile time grows with it.
_MAX_WRITTEN_OUT = 64
# Rows of a block of `associative_scan`: of 8, 16, 32 and 64, 16 compiled and ran best on CPU.
_BLOCK = 16


def state_dtype(x: Array) -> jnp.dtype:
    """The dtype of states for inputs `x`: float32, or float64 for float64 inputs."""
    return jnp.promote_types(x.dtype, jnp.float32)


def weighted_sum(weight: Array, x: Array, axis: int = 0) -> Array:
    """Σₙ weightₙ·xₙ over `axis` of x; weight [N] or [N, …] has it first.

    Written out, XLA:CPU makes it one loop over what is left. A reduction goes to a library instead,
    which wants its operands in memory, and which is many times slower once `vmap` puts an axis of
    size 1 (one seed) before the batch.
    """
    if x.shape[axis] > _MAX_WRITTEN_OUT:
        x = jnp.moveaxis(x, axis, 0)
        return (weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim)) * x).sum(0)
    parts = (jax.lax.index_in_dim(x, n, axis, keepdims=False) for n in range(x.shape[axis]))
    total = weight[0] * next(parts)
    for n, part in enumerate(parts, 1):
        total = total + weight[n] * part
    return total


def to_chunks(x: Array, chunk_size: int) -> Array:
    """Cut [T, …] into [K, Q, …], zeros appended, Q ≤ `chunk_size`.

    The K = ⌈T / chunk_size⌉ chunks are made equally long, so fewer than K rows are padding.
    """
    x = jnp.asarray(x)
    length = x.shape[0]
    num_chunks = -(-length // chunk_size)
    size = -(-length // num_chunks)
    padding = num_chunks * size - length
    if padding:
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(num_chunks, size, *x.shape[1:])


def scan_chunks(one_chunk: Callable, state: Array, rows: Any) -> tuple[Any, Array, Array]:
    """Scan `one_chunk(state, rows [Q, …]) -> (state, y [Q, …])` over rows [K, Q, …].

    Backward keeps the states at chunk starts and recomputes one chunk at a time.

    Returns:
      y [K, Q, …], states at chunk starts [K, …], final state.
    """

    @jax.checkpoint
    def body(state, chunk):
        final_state, y = one_chunk(state, chunk)
        return final_state, (state, y)

    final_state, (starts, y) = jax.lax.scan(body, state, rows)
    return y, starts, final_state


def row_by_row(one_row: Callable) -> Callable:
    """A `one_chunk` that scans `one_row(state, row) -> (state, y)`, recomputed in backward.

    Not storing what a row computes along the way (decays, products) makes backward faster on CPU:
    it is bound by memory.
    """
    return lambda state, rows: jax.lax.scan(jax.checkpoint(one_row), state, rows)


def associative_scan(after: Callable, rows: Any, whole: int = 128) -> Any:
    """`lax.associative_scan` over the first axis, in a program that does not grow with T.

    Up to `whole` rows it is that scan, to the bit, a level of program for each doubling. Longer
    ones are cut into blocks side by side, each scanned so; then their ends are joined in log₂ K
    turns of a loop (Hillis & Steele, 1986), and go into the rows of the blocks that follow.

    Args:
      after: associative `(first, second) -> both`, of rows [n, …] side by side.
      rows: pytree of arrays [T, …].
      whole: the most rows that are scanned without blocks, at least 1.

    Returns:
      rows₀ after … after rowsₜ for each t, [T, …].
    """
    length = len(jax.tree.leaves(rows)[0])
    if length <= whole:
        return jax.lax.associative_scan(after, rows)
    blocks = jax.tree.map(lambda x: to_chunks(x, min(whole, _BLOCK)), rows)  # [K, Q, …]
    inside = jax.lax.associative_scan(jax.vmap(after), blocks, axis=1)
    ends = _doubled(after, jax.tree.map(lambda x: x[:, -1], inside))

    def one_block(end, block):
        before = jax.tree.map(lambda x, y: jnp.broadcast_to(x[None], y.shape), end, block)
        return after(before, block)

    earlier = jax.tree.map(lambda x: x[:-1], ends)
    following = jax.vmap(one_block)(earlier, jax.tree.map(lambda x: x[1:], inside))
    joined = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y]), inside, following)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], joined)


def _doubled(after: Callable, rows: Any) -> Any:
    """`associative_scan` of a few rows [K, …], by log₂ K turns of one loop over all of them."""
    place = jnp.arange(len(jax.tree.leaves(rows)[0]))

    def turn(rows, distance):
        joined = after(jax.tree.map(lambda x: jnp.roll(x, distance, 0), rows), rows)

        def chosen(new, old):
            there = (place >= distance).reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(there, new, old)

        return jax.tree.map(chosen, joined, rows), None

    return jax.lax.scan(turn, rows, 2 ** jnp.arange((len(place) - 1).bit_length()))[0]
