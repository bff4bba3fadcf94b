"""Long and wide streams on CPU: block after block, so that all work on a block is in the cache.

Done for all rows and streams at once, every product and every elementwise step of `ssd` reads and
writes main memory. Here a scan goes over blocks of chunks, and under `vmap` streams take turns;
backward goes over the blocks in reverse and computes anew what it needs of a block.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mbrl_jax import lanes
from mbrl_jax.ssm.ssd_group import Array, HeadChunks

BLOCK_ELEMENTS = 2**17  # of x, worked on at once: a few megabytes with all that goes with it
LEAST_ELEMENTS = 2**15  # of x of one stream; the overhead of loops outweighs the cache below


def pays(x: Array) -> bool:
    """Whether a stream's x [K, Q, H, P] is large enough, on this backend."""
    return jax.default_backend() == "cpu" and x.size >= LEAST_ELEMENTS


def over_blocks(
    run: Callable, chunks: HeadChunks, D: Array, initial_state: Array | None
) -> tuple[Array, Array, Array]:
    """`run(chunks, D, initial_state)` block by block; arguments and results of `_by_heads`."""
    num_chunks, _, heads, channels = chunks.x.shape
    fit = max(BLOCK_ELEMENTS // math.prod(chunks.x.shape[1:]), 1)
    num_blocks = -(-num_chunks // fit)
    length = -(-num_chunks // num_blocks)

    def cut(leaf):
        # Chunks of zeros: steps of size 0 that leave the state alone.
        padding = [(0, num_blocks * length - num_chunks)] + [(0, 0)] * (leaf.ndim - 1)
        leaf = jnp.pad(leaf, padding) if padding[0][1] else leaf
        return leaf.reshape((num_blocks, length) + leaf.shape[1:])

    if initial_state is None:
        initial_state = jnp.zeros((heads, chunks.B.shape[-1], channels), chunks.dt.dtype)
    y, starts, final_state = _blocks(run, jax.tree.map(cut, chunks), D, initial_state)
    y, starts = (leaf.reshape((-1,) + leaf.shape[2:])[:num_chunks] for leaf in (y, starts))
    return y, starts, final_state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(run, blocks, D, initial_state):
    return _forward(run, blocks, D, initial_state)[0]


def _forward(run, blocks, D, initial_state):
    results = _lanes(functools.partial(_scan_forward, run))(blocks, D, initial_state)
    return results, (blocks, D, results[1][:, 0])


def _backward(run, kept, bars):
    return _lanes(functools.partial(_scan_backward, run))(*kept, bars)


_blocks.defvjp(_forward, _backward)


def _scan_forward(run, blocks, D, initial_state):
    def one_block(state, block):
        y, starts, state = run(block, D, state)
        return state, (y, starts)

    final_state, (y, starts) = _scan(one_block, initial_state, blocks)
    return y, starts, final_state


def _scan_backward(run, blocks, D, starts, bars):
    y_bar, starts_bar, final_bar = bars

    def one_block(sums, rows):
        state_bar, D_bar = sums
        block, start, y_bar, starts_bar = rows

        def rerun(x, dt, decay, B, C, D, start):
            return run(HeadChunks(x, dt, decay, B, C, block.reset), D, start)

        _, pull = jax.vjp(rerun, *block[:5], D, start)
        *rows_bar, more, state_bar = pull((y_bar, starts_bar, state_bar))
        return (state_bar, D_bar + more), rows_bar

    rows = (blocks, starts, y_bar, starts_bar)
    sums = (final_bar, jnp.zeros_like(D))
    (state_bar, D_bar), rows_bar = _scan(one_block, sums, rows, reverse=True)
    return HeadChunks(*rows_bar, None), D_bar, state_bar


def _scan(one_block: Callable, carry: Any, rows: Any, reverse: bool = False):
    """`lax.scan`; a single block goes without the loop and its copies."""
    if len(jax.tree.leaves(rows)[0]) > 1:
        return jax.lax.scan(one_block, carry, rows, reverse=reverse)
    carry, results = one_block(carry, jax.tree.map(lambda leaf: leaf[0], rows))
    return carry, jax.tree.map(lambda leaf: leaf[None], results)


def _lanes(run: Callable) -> Callable:
    """`run(blocks, …)` whose lanes under vmap take turns, as many at a time as fit."""
    return lanes.take_turns(run, _lanes_that_fit)


def _lanes_that_fit(axis_size: int, batched: tuple, blocks: HeadChunks, *_) -> int:
    """The largest divisor of the number of lanes whose blocks fit."""
    lane = blocks.x.size // (axis_size if batched[0].x else 1)
    block = lane // blocks.x.shape[-5]  # x is [blocks, K, Q, H, P], behind the axes of other vmaps
    return lanes.largest_divisor(axis_size, BLOCK_ELEMENTS // block)
