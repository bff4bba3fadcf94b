"""A convolution inside chunks, and products to and from the states at their starts.

A system that does not depend on its inputs is, inside a chunk, a short convolution; states are
needed at the starts of chunks alone. What it makes of one start to the next is the caller's.

Axes: `K` chunks of `Q` rows, `D` channels, `N` states of a channel; a single stream.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import diagonal
from mbrl_jax.ssm.diagonal import ComplexPair

Array = jax.Array


def convolve(
    taps: Array,
    inputs: ComplexPair,
    reads: ComplexPair,
    link: Callable,
    u: Array,
    reset: Array,
    initial_state: ComplexPair | None,
) -> tuple[Array, ComplexPair]:
    """Outputs of all rows, and the states before the first row of each chunk.

    Args:
      taps: [Q, D] the response to an input, row after row.
      inputs: [Q, N, D] what an input adds to the state of its row and of those behind it.
      reads: [Q, N, D]: Re Σ reads·x is what rows read of the state x before the chunk.
      link: (rows [K, N, D], kept [K]) -> states at chunk starts [K, N, D]: each is its row, and,
        where kept, what a whole chunk makes of the one before; there is none before the first.
      u: [K, Q, D].
      reset: [K, Q] bool.
      initial_state: [N, D] or None for zeros; one chunk then costs no state.

    Returns:
      y [K, Q, D] and the states [K, N, D].
    """
    num_chunks = len(u)
    segment = jnp.cumsum(reset.astype(jnp.int32), axis=1)
    y = _taps(taps, u, segment)
    nothing = diagonal.each(lambda part: jnp.zeros_like(part[0]), inputs)
    if initial_state is None and num_chunks == 1:
        return y, _alone(nothing)

    # What chunk k - 1 adds to the state at the start of chunk k.
    survives = segment == segment[:, -1:]
    lasting = jnp.where(survives[..., None], u, 0)[:-1]
    added = diagonal.each(lambda part: jnp.einsum("qnd,kqd->knd", part[::-1], lasting), inputs)
    first = _alone(initial_state or nothing)
    rows = diagonal.each(lambda *parts: jnp.concatenate(parts), first, added)
    kept = jnp.concatenate([jnp.ones((1,), bool), segment[:-1, -1] == 0])
    starts = link(rows, kept)

    read = jnp.einsum("qnd,knd->kqd", reads.real, starts.real)
    read = read - jnp.einsum("qnd,knd->kqd", reads.imag, starts.imag)
    return y + jnp.where((segment == 0)[..., None], read, 0), starts


def _alone(a: ComplexPair) -> ComplexPair:
    return diagonal.each(lambda part: part[None], a)


@jax.custom_vjp
def _taps(kernel: Array, u: Array, segment: Array) -> Array:
    """yᵢ = Σⱼ kernelᵢ₋ⱼ uⱼ over the rows j ≤ i of the same chunk and segment.

    Args:
      kernel: [Q, D].
      u: [K, Q, D].
      segment: [K, Q] int32 ≥ 0.

    Returns:
      [K, Q, D].
    """

    def one_chunk(carry, chunk):
        x, own = chunk
        return carry, sum(tap[None] * _seen(x, own, lag) for lag, tap in enumerate(kernel))

    # A loop, because XLA:CPU would put these sums into every consumer of y, and whatever u comes
    # from into every term (measured in a GLU layer: forward and backward 6 times slower).
    return jax.lax.scan(one_chunk, (), (u, segment))[1]


def _seen(x: Array, segment: Array, lag: int) -> Array:
    """[Q, D]: row i - lag of x at i; 0 where there is none, or of another segment [Q]."""
    size = len(x)
    first, last = max(-lag, 0), size - max(lag, 0)
    pad = (size - last, first)
    same = jnp.pad(segment[first:last], pad, constant_values=-1) == segment
    return jnp.where(same[:, None], jnp.pad(x[first:last], (pad, (0, 0))), 0)


def _taps_forward(kernel, u, segment):
    return _taps(kernel, u, segment), (kernel, u, segment)


def _taps_backward(residuals, y_bar):
    kernel, u, segment = residuals

    def one_chunk(sums, chunk):
        u, segment, y_bar = chunk
        u_bar = sum(tap[None] * _seen(y_bar, segment, -lag) for lag, tap in enumerate(kernel))
        sums = [total + _seen(u, segment, lag) * y_bar for lag, total in enumerate(sums)]
        return sums, u_bar

    # Autodiff would leave one reduction over all rows for each of the Q taps.
    sums = [jnp.zeros_like(y_bar[0])] * len(kernel)
    sums, u_bar = jax.lax.scan(one_chunk, sums, (u, segment, y_bar))
    return jnp.stack([total.sum(0) for total in sums]), u_bar, None


_taps.defvjp(_taps_forward, _taps_backward)
