"""S4: a state-space model a channel whose matrix is diagonal plus low rank (arXiv 2111.00396).

For every channel d of D, A = diag(Λ) - P Pᴴ has N halves of conjugate pairs for 2N real states, as
HiPPO-LegS has (`hippo.dplr_legs`). By the bilinear rule it stays diagonal but for a product of two
vectors (Woodbury's identity):

    xₜ = Ā xₜ₋₁ + B̄ uₜ        yₜ = 2 Re Σₙ Cₙ xₜₙ + D uₜ        Ā x = λ x - a Re Σₙ bₙ xₙ

    ρ = 1 / (1 - dt Λ/2)   λ = (1 + dt Λ/2) ρ   κ = 1 / (1 + dt Re Σ |P|² ρ)
    a = κ ρ P   b = 2 dt ρ P*   B̄ = dt (ρ B - a dt Re Σ ρ P* B)

With Re Λ ≤ 0 no state grows, whatever P is: A + Aᴴ has no eigenvalue above 0, and of such a matrix
the rule makes a contraction. So powers of Ā are safe, and all tables come from them row by row: the
taps 2 Re Σ C Āˡ B̄ of the convolution, what inputs leave behind, and what is read of earlier states.
The published Fourier transform of sums over Cauchy matrices gives the same taps, but not those
tables, without which there is neither a state to go on from nor a reset inside a window.

A state is a `ComplexPair` of real `[N, D]` arrays. Axes: `T` time, cut into `K` chunks of `Q` rows,
`D` channels, `N` halves of a channel. Everything but `dplr` is for a single stream; `vmap` adds
batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunk_conv, chunking, diagonal, shapes
from mbrl_jax.ssm.diagonal import ComplexPair

Array = jax.Array

METHODS = ("auto", "chunked", "recurrent")


class DPLRSystem(NamedTuple):
    """A discretised system: all that a row needs, [N, D] each."""

    decay: ComplexPair  # λ
    out: ComplexPair  # a
    back: ComplexPair  # b
    weight: ComplexPair  # B̄
    read: ComplexPair  # 2 C


class DPLREntries(NamedTuple):
    """What rebuilds the state after any row: states at chunk starts, and the rows in between."""

    starts: ComplexPair  # [K, N, D] float32: the state before the first row of each chunk
    u: Array  # [K, Q, D] float32
    segment: Array  # [K, Q] int32: resets so far in the chunk
    system: DPLRSystem


def dplr(
    u: Array,
    dt: Array,
    A: Array,
    P: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: ComplexPair | Array | None = None,
    return_final_state: bool = False,
    chunk_size: int = 16,
    method: str = "auto",
) -> Array | tuple[Array, ComplexPair]:
    """S4 over a batch of sequences; see `dplr_stream` for the arguments.

    Args:
      u: [B, T, D].
      dt: [D].
      A: [D, N].
      P: [D, N].
      B: [D, N].
      C: [D, N].
      D: [D] or None.
      reset: [B, T] bool or None.
      initial_state: [B, N, D] or None for zeros.
      return_final_state: also return the state after row T - 1.
      chunk_size: the longest chunk.
      method: one of `METHODS`.

    Returns:
      y [B, T, D] in the dtype of u, and the final state [B, N, D] where asked for.

    Raises:
      ValueError: shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(u, dt, A, P, B, C, D, reset, initial_state, "B T ", "B ")

    def stream(u, reset, initial_state):
        options: dict[str, Any] = {"chunk_size": chunk_size, "method": method}
        options |= {"reset": reset, "initial_state": initial_state}
        return dplr_stream(u, dt, A, P, B, C, D, **options)[:2]

    y, final_state = jax.vmap(stream)(u, reset, initial_state)
    return (y, final_state) if return_final_state else y


def dplr_stream(
    u: Array,
    dt: Array,
    A: Array,
    P: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: ComplexPair | Array | None = None,
    chunk_size: int = 16,
    method: str = "auto",
) -> tuple[Array, ComplexPair, DPLREntries]:
    """One single-input state-space model a channel, over one sequence of any length T ≥ 1.

    All arithmetic is float32 (float64 for float64 inputs) whatever the dtype of u. On accelerators
    float32 products follow `jax_default_matmul_precision`.

    Without an initial state, T ≤ `chunk_size` costs no state in the chunked method.

    Args:
      u: [T, D].
      dt: [D] step sizes ≥ 0.
      A: [D, N] complex or real Λ, Re Λ ≤ 0.
      P: [D, N] of the product that is taken off the diagonal.
      B: [D, N] input weights.
      C: [D, N] output weights.
      D: [D] weight of the skip, or None.
      reset: [T] bool; `reset[t]` empties the state before row t. None: never.
      initial_state: [N, D] `ComplexPair` or complex array, or None for zeros.
      chunk_size: the longest chunk.
      method: "chunked": a convolution inside chunks, products to and from the states at chunk
        starts, from one of which to the next Āᵠ leads; "recurrent": row by row; "auto": what
        `auto_method` says for the default backend.

    Returns:
      y [T, D] in the dtype of u, the state after the last row [N, D], and `DPLREntries`.

    Raises:
      ValueError: shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(u, dt, A, P, B, C, D, reset, initial_state, "T ")
    length, channels = u.shape
    shapes.check_chunking(length, chunk_size, method, METHODS)
    method = auto_method(jax.default_backend()) if method == "auto" else method
    wide = chunking.state_dtype(u)
    if reset is None:
        reset = jnp.zeros((length,), bool)
    if initial_state is not None:
        initial_state = diagonal.keep(~reset[0], diagonal.state_pair(initial_state, wide))
    system = _discretized(dt, A, P, B, C, wide)
    rows = [chunking.to_chunks(row, chunk_size) for row in (u.astype(wide), reset)]
    y, starts = _RUN[method](system, *rows, initial_state)
    y = diagonal.skip(y.reshape(-1, channels)[:length], D, u)
    segment = jnp.cumsum(rows[1].astype(jnp.int32), axis=1)
    entries = DPLREntries(starts, rows[0], segment, system)
    return y, dplr_state_at(entries, length - 1), entries


def auto_method(backend: str) -> str:
    """The method that "auto" stands for on `backend` ("cpu", "gpu", "tpu"): one for all."""
    del backend
    return "chunked"


def dplr_state_at(entries: DPLREntries, t: Array | int) -> ComplexPair:
    """The state [N, D] after t + 1 rows: the rows of one chunk once more.

    On CPU that takes less than half the time of products with a table of powers, which would have
    to be made for every t anew.

    Args:
      entries: of `dplr_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    size = entries.u.shape[1]
    start, u, segment = jax.tree.map(
        lambda leaf: leaf[t // size], (entries.starts, entries.u, entries.segment)
    )
    counts = jnp.arange(size) <= t % size
    # Not seen is 0, so that nothing of it is left in gradients either.
    u = jnp.where((counts & (segment == segment[t % size]))[:, None], u, 0)

    def one_row(state, row):
        u, counts = row
        after, _ = _row(entries.system, state, u)
        return diagonal.each(lambda new, old: jnp.where(counts, new, old), after, state), None

    start = diagonal.keep(segment[t % size] == 0, start)
    return jax.lax.scan(one_row, start, (u, counts))[0]


def dplr_step(
    state: ComplexPair,
    u: Array,
    dt: Array,
    A: Array,
    P: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
) -> tuple[ComplexPair, Array]:
    """One row of S4.

    Args:
      state: [N, D] float32.
      u: [D].
      dt: [D].
      A: [D, N].
      P: [D, N].
      B: [D, N].
      C: [D, N].
      D: [D] or None.

    Returns:
      The next state [N, D], and y [D] in the dtype of u.

    Raises ValueError where a shape is wrong.
    """
    _check(u, dt, A, P, B, C, D, None, state)
    wide = state.real.dtype
    system = _discretized(dt, A, P, B, C, wide)
    state, y = _row(system, state, u.astype(wide))
    return state, diagonal.skip(y, D, u)


def dplr_kernel(dt: Array, A: Array, P: Array, B: Array, C: Array, length: int) -> Array:
    """Taps 2 Re Σ C Āˡ B̄ of the convolution, l = 0 … length - 1: [length, D].

    Args:
      dt: [D].
      A: [D, N].
      P: [D, N].
      B: [D, N].
      C: [D, N].
      length: how many.
    """
    system = _discretized(dt, A, P, B, C, chunking.state_dtype(jnp.asarray(dt)))
    return _taps(system, _inputs(system, length))


# --------------------------------------------------------------------------------------- private


def _check(u, dt, A, P, B, C, D, reset, state, rows: str = "", batch: str = "") -> None:
    """Check the inputs; `rows` and `batch` are the axes before those of a row, a state."""
    shapes.check_axes(
        u=(u, rows + "D"),
        dt=(dt, "D"),
        A=(A, "D N"),
        P=(P, "D N"),
        B=(B, "D N"),
        C=(C, "D N"),
        D=(D, "D"),
        reset=(reset, rows.strip()),
        initial_state=(None if state is None else state.real, batch + "N D"),
    )
    shapes.check_reset(reset)


def _discretized(dt, A, P, B, C, wide: jnp.dtype) -> DPLRSystem:
    """The system of all channels by the equations above, from arrays [D, N] and dt [D]."""
    A, P, B, C = (diagonal.pair(jnp.asarray(array).T, wide) for array in (A, P, B, C))
    dt = jnp.asarray(dt).astype(wide)
    # With steps of 1 the gain is ρ: no division by dt, which may be 0.
    scaled = diagonal.each(lambda part: dt * part, A)
    decay, rho = diagonal.discretize_pair(scaled, jnp.ones_like(dt), "bilinear")
    share = 1 / (1 + dt * ((P.real**2 + P.imag**2) * rho.real).sum(0))
    out = diagonal.each(lambda part: share * part, diagonal.multiply(rho, P))
    back = diagonal.multiply(rho, diagonal.conjugate(P))
    fed = dt * _real_sum(back, B)
    weight = diagonal.each(lambda x, y: dt * (x - y * fed), diagonal.multiply(rho, B), out)
    back = diagonal.each(lambda part: 2 * dt * part, back)
    return DPLRSystem(decay, out, back, weight, diagonal.read_weights(C, True))


def _real_sum(a: ComplexPair, b: ComplexPair, axis: int = 0) -> Array:
    """Re Σ a b over the axis of the states."""
    return (a.real * b.real - a.imag * b.imag).sum(axis)


def _forward(system: DPLRSystem, x: ComplexPair) -> ComplexPair:
    """Ā x."""
    fed = _real_sum(system.back, x)
    kept = diagonal.multiply(system.decay, x)
    return diagonal.each(lambda part, out: part - out * fed, kept, system.out)


def _backward(system: DPLRSystem, w: ComplexPair) -> ComplexPair:
    """Of weights that read Re Σ w x those that read the same of Ā x."""
    fed = _real_sum(w, system.out)
    kept = diagonal.multiply(system.decay, w)
    return diagonal.each(lambda part, back: part - back * fed, kept, system.back)


def _row(system, state, u):
    """One row: the next state [N, D] and y [D] without the skip."""
    added = diagonal.each(lambda part: part * u[None], system.weight)
    state = diagonal.add(_forward(system, state), added)
    return state, _real_sum(system.read, state)


def _powers(advance: Callable, start: Any, size: int) -> Any:
    """start, advance(start), … along a new first axis: [size, …]."""
    return jax.lax.scan(lambda x, _: (advance(x), x), start, length=size)[1]


def _inputs(system: DPLRSystem, size: int) -> ComplexPair:
    """Āˡ B̄ [Q, N, D]."""
    return _powers(functools.partial(_forward, system), system.weight, size)


def _taps(system: DPLRSystem, inputs: ComplexPair) -> Array:
    """2 Re Σ C Āˡ B̄ [Q, D]."""
    return _real_sum(diagonal.each(lambda part: part[None], system.read), inputs, 1)


def _recurrent(system, u, reset, initial_state):
    def one_row(state, row):
        u, reset = row
        return _row(system, diagonal.keep(~reset, state), u)

    start: Any = initial_state or diagonal.each(jnp.zeros_like, system.decay)
    return chunking.scan_chunks(chunking.row_by_row(one_row), start, (u, reset))[:2]


def _chunked(system, u, reset, initial_state):
    size = u.shape[1]
    inputs = _inputs(system, size)
    ahead = lambda pair: (_forward(system, pair[0]), _backward(system, pair[1]))  # noqa: E731
    outs, reads = _powers(ahead, (system.out, _backward(system, system.read)), size)
    link = functools.partial(_link, system, outs)
    taps = _taps(system, inputs)
    return chunk_conv.convolve(taps, inputs, reads, link, u, reset, initial_state)


def _link(system, outs, rows, kept):
    """States at chunk starts [K, N, D]: rows, and Āᵠ times the one before where it is kept.

    Āᵠ x = λᵠ x - Σⱼ Āᵠ⁻¹⁻ʲ a Re Σₙ bₙ λₙʲ xₙ: as much work as Q rows, in two products.
    """
    size = len(outs.real)
    powers = diagonal.powers(system.decay, size + 1)
    whole = diagonal.each(lambda part: part[size], powers)
    backs = diagonal.multiply(
        diagonal.each(lambda part: part[:size], powers),
        diagonal.each(lambda part: part[None], system.back),
    )

    def next_chunk(x, row):
        row, kept = row
        fed = jnp.einsum("qnd,nd->qd", backs.real, x.real)
        fed = fed - jnp.einsum("qnd,nd->qd", backs.imag, x.imag)
        passed = diagonal.each(
            lambda part, out: part - jnp.einsum("qnd,qd->nd", out[::-1], fed),
            diagonal.multiply(whole, x),
            outs,
        )
        x = diagonal.add(row, diagonal.keep(kept, passed))
        return x, x

    start = diagonal.each(jnp.zeros_like, system.decay)
    return jax.lax.scan(next_chunk, start, (rows, kept))[1]


_RUN: dict[str, Callable] = {"chunked": _chunked, "recurrent": _recurrent}
