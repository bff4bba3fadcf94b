"""Chunk after chunk of Mamba-2, lanes of `vmap` in turns: all work on a chunk is in the cache.

Done for all rows and streams at once, every product and every elementwise step of `ssd` reads and
writes main memory. Here one loop goes over the chunks of some streams, then over those of the next;
backward goes over the chunks in reverse and computes anew what it needs of a chunk.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import lanes, spoiled
from mbrl_jax.ssm.ssd import by_row, chunk_matrix
from mbrl_jax.ssm.ssd.chunk_matrix import Array, Chunk

# Elements of x worked on at once on CPU. Arrays so small are in the cache of one core, and XLA
# leaves them to one thread: shared out, their halves would move from core to core at every step.
TURN_ELEMENTS = 2**15


@jax.custom_vjp
def over_chunks(chunks: Chunk, D: Array, initial_state: Array) -> tuple[Array, Array, Array]:
    """`chunk_matrix.run` on chunk after chunk.

    Args:
      chunks: with an axis of K chunks in front.
      D: [H] weight of the skip.
      initial_state: [H, N, P].

    Returns:
      y [K, Q, H, P], states at chunk starts [K, H, N, P], final state [H, N, P].
    """
    return _forward(chunks, D, initial_state)[0]


def _forward(chunks, D, initial_state):
    results = lanes.together(_all_forward)(chunks, D, initial_state)
    return results, (chunks, D, results[1])


def _backward(kept, bars):
    return lanes.together(_all_backward)(*kept, bars)


over_chunks.defvjp(_forward, _backward)


def _all_forward(chunks, D, initial_state):
    """For L lanes: all arguments and results have them in front."""
    rows, state = chunks.x.shape, initial_state.shape
    shapes = rows, rows[:2] + state[1:], state
    results = tuple(jnp.zeros(shape, initial_state.dtype) for shape in shapes)
    results = _run_all(chunk_matrix.run, chunks, D, initial_state, results)

    def anew(results):
        return _run_all(by_row.run, chunks, D, initial_state, results)

    # y and states apart, so that what is not wanted of them costs nothing.
    y, *states = results
    there = spoiled.is_spoiled(y[:, :, -1])
    y = spoiled.once_if(there, lambda y: anew((y, None, None))[0], y)
    states = spoiled.once_if(there, lambda states: anew((None, *states))[1:], tuple(states))
    return y, *states


def _run_all(run, chunks, D, initial_state, results):
    """`run` on chunk after chunk of L lanes; of the results, those are made that are not None."""

    def turn(own, place, start, results):
        y, starts, final_state = results
        y_here, end = lanes.each(run, place.take(chunks), own.take(D), start)
        y = None if y is None else place.put(y, y_here)
        if starts is not None:
            starts, final_state = place.put(starts, start), own.put(final_state, end)
        return end, (y, starts, final_state)

    return _in_turns(turn, initial_state, chunks.x, results)


def _all_backward(chunks, D, starts, bars):
    y_bar, starts_bar, final_bar = bars

    def one_chunk(chunk, D, start, bars):
        def rerun(rows, D, start):
            return chunk_matrix.run(rows._replace(reset=chunk.reset), D, start)

        return jax.vjp(rerun, chunk._replace(reset=None), D, start)[1](bars)

    def turn(own, place, end_bar, results):
        chunks_bar, D_bars, initial_bar = results
        chunk, start, y_bar_here, more = place.take((chunks, starts, y_bar, starts_bar))
        bars = y_bar_here, end_bar
        chunk_bar, D_bar, start_bar = lanes.each(one_chunk, chunk, own.take(D), start, bars)
        start_bar = start_bar + more
        chunks_bar, D_bars = place.put((chunks_bar, D_bars), (chunk_bar, D_bar))
        return start_bar, (chunks_bar, D_bars, own.put(initial_bar, start_bar))

    D_bars = jnp.zeros(chunks.x.shape[:2] + D.shape[1:], D.dtype)
    results = jax.tree.map(jnp.zeros_like, (chunks._replace(reset=None), D_bars, final_bar))
    chunks_bar, D_bars, initial_bar = _in_turns(turn, final_bar, chunks.x, results, reverse=True)
    return chunks_bar, D_bars.sum(1), initial_bar


def _in_turns(turn: Callable, first: Array, x: Array, results: Any, reverse: bool = False) -> Any:
    """`results` after all turns, for states `first` [L, H, N, P] and x [L, K, Q, H, P].

    turn: (place of its lanes, place of one of their chunks, their state, results) -> (state,
      results).
    """
    num_lanes, num_chunks = x.shape[:2]
    group = num_lanes
    if jax.default_backend() == "cpu":
        group = lanes.largest_divisor(num_lanes, TURN_ELEMENTS // math.prod(x.shape[2:]))

    def body(i, carry):
        state, results = carry
        lane, count = i // num_chunks * group, i % num_chunks
        chunk = num_chunks - 1 - count if reverse else count
        own, place = _Place((group,), (lane,)), _Place((group, 1), (lane, chunk))
        # States are carried beside `results`: XLA copies what a turn both reads and writes.
        state = jnp.where(count == 0, own.take(first), state)
        return turn(own, place, state, results)

    state = jnp.zeros((group, *first.shape[1:]), first.dtype)
    return jax.lax.fori_loop(0, num_lanes // group * num_chunks, body, (state, results))[1]


class _Place(NamedTuple):
    """Where some lanes [L, …], or one chunk of them [L, K, …], are in arrays."""

    sizes: tuple[int, ...]
    starts: tuple[Array, ...]

    def take(self, arrays: Any) -> Any:
        """The lanes' own: [lanes, …], without the axis of chunks."""

        def one(array):
            rest = array.shape[len(self.sizes) :]
            own = jax.lax.dynamic_slice(array, self._corner(array), self.sizes + rest)
            return own.reshape(self.sizes[:1] + rest)

        return jax.tree.map(one, arrays)

    def put(self, arrays: Any, own: Any) -> Any:
        """The arrays with the lanes' own put in."""

        def one(array, own):
            own = own.astype(array.dtype).reshape(self.sizes + own.shape[1:])
            return jax.lax.dynamic_update_slice(array, own, self._corner(array))

        return jax.tree.map(one, arrays, own)

    def _corner(self, array: Array) -> tuple:
        return self.starts + (0,) * (array.ndim - len(self.starts))
