"""What S4D and S5 share: complex pairs, discretisation, the diagonal linear recurrence.

Complex numbers are kept as pairs of real arrays: on XLA:CPU a step in complex64 takes about 1.5
times as long, every backend and checkpoint takes floats, and optimisers see real parameters.

Axes: `T` time, `*S` the axes of a state. Everything is for a single stream; `vmap` adds batches.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking

Array = jax.Array

# Below this |a| the quotient (e^a - 1) / a loses digits; the series takes over.
_SERIES_RADIUS = 0.5
_SERIES_TERMS = 14  # 0.5¹⁴/15! < 1e-16
# Compile time grows with an unrolled loop; up to here it beats the loop of `lax.scan`.
_MAX_UNROLLED = 8

RULES = ("zoh", "bilinear")


class ComplexPair(NamedTuple):
    """Complex numbers as two real arrays of one shape."""

    real: Array
    imag: Array


def pair(x: Array, dtype: jnp.dtype) -> ComplexPair:
    """The parts of a complex or real array, in `dtype`."""
    x = jnp.asarray(x)
    return ComplexPair(jnp.real(x).astype(dtype), jnp.imag(x).astype(dtype))


def multiply(a: ComplexPair, b: ComplexPair) -> ComplexPair:
    """a · b, element by element."""
    return ComplexPair(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


def add(a: ComplexPair, b: ComplexPair) -> ComplexPair:
    """a + b, element by element."""
    return ComplexPair(a.real + b.real, a.imag + b.imag)


def conjugate(a: ComplexPair) -> ComplexPair:
    """The complex conjugate."""
    return ComplexPair(a.real, -a.imag)


def each(function: Callable, *pairs: ComplexPair) -> ComplexPair:
    """Apply a function of real arrays to both parts."""
    return ComplexPair(*(function(*parts) for parts in zip(*pairs, strict=True)))


def keep(mask: Array, a: ComplexPair) -> ComplexPair:
    """`a` where `mask` (leading axes of a, or one that broadcasts), else exactly 0."""
    mask = mask.reshape(mask.shape + (1,) * (a.real.ndim - mask.ndim))
    return each(lambda part: jnp.where(mask, part, 0), a)


def powers(base: ComplexPair, count: int) -> ComplexPair:
    """base⁰ … base^(count - 1) along a new first axis, by doubling: [count, …]."""
    table = ComplexPair(jnp.ones_like(base.real)[None], jnp.zeros_like(base.imag)[None])
    while len(table.real) < count:
        more = multiply(table, each(lambda part: part[None], base))
        table, base = each(lambda *parts: jnp.concatenate(parts), table, more), multiply(base, base)
    return each(lambda part: part[:count], table)


def state_pair(state: ComplexPair | Array, dtype: jnp.dtype) -> ComplexPair:
    """A state given as a pair or as a complex array, in `dtype`."""
    return ComplexPair(jnp.asarray(state.real, dtype), jnp.asarray(state.imag, dtype))


def read_weights(C: ComplexPair, conjugate_pairs: bool) -> ComplexPair:
    """C, doubled where Re(C x) stands for the sum over both halves of conjugate pairs."""
    return each(lambda part: 2 * part, C) if conjugate_pairs else C


def skip(y: Array, D: Array | None, u: Array) -> Array:
    """y + D·u for y and u [..., D], in the dtype of u."""
    if D is not None:
        weights = D.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        y = y + weights * u.astype(y.dtype)
    return y.astype(u.dtype)


# -------------------------------------------------------------------------------- discretisation


def discretize(A: Array, dt: Array, rule: str = "zoh") -> tuple[Array, Array]:
    """Decays λ and input gains γ of x' = A x + B u, so that xₜ = λ xₜ₋₁ + γ B uₜ.

    "zoh" (u is held for a step): λ = exp(dt A), γ = (λ - 1) / A, which is dt at A = 0.
    "bilinear": λ = (1 + dt A/2) / (1 - dt A/2), γ = dt / (1 - dt A/2).
    Both are finite, with their gradients, for every dt ≥ 0 and Re A ≤ 0.

    Args:
      A: [...] complex or real.
      dt: [...] real step sizes, broadcast against A.
      rule: "zoh" or "bilinear".

    Returns:
      λ and γ, complex, of the broadcast shape.

    Raises:
      ValueError: the rule is unknown.
    """
    dt = jnp.asarray(dt)
    decay, gain = discretize_pair(pair(A, chunking.state_dtype(dt)), dt, rule)
    return jax.lax.complex(*decay), jax.lax.complex(*gain)


def discretize_pair(A: ComplexPair, dt: Array, rule: str) -> tuple[ComplexPair, ComplexPair]:
    """`discretize` of pairs; dt is cast to their dtype."""
    if rule not in RULES:
        raise ValueError(f"`rule` is {rule!r}, but one of {', '.join(RULES)} was expected.")
    return {"zoh": _zero_order_hold, "bilinear": _bilinear}[rule](A, dt.astype(A.real.dtype))


def _zero_order_hold(A: ComplexPair, dt: Array) -> tuple[ComplexPair, ComplexPair]:
    """exp(dt·A) and (exp(dt·A) - 1) / A, finite with their gradients at dt·A = 0."""
    a = each(lambda part: part * dt, A)
    size = jnp.exp(a.real)
    decay = ComplexPair(size * jnp.cos(a.imag), size * jnp.sin(a.imag))

    small = a.real * a.real + a.imag * a.imag < _SERIES_RADIUS**2
    near = each(lambda part: jnp.where(small, part, 0), a)
    far = ComplexPair(jnp.where(small, 1, a.real), jnp.where(small, 0, a.imag))
    series = ComplexPair(jnp.ones_like(dt * A.real), jnp.zeros_like(dt * A.real))
    for term in range(_SERIES_TERMS, 0, -1):  # 1 + a/2·(1 + a/3·(1 + …))
        series = each(lambda part, k=term: part / (k + 1), multiply(near, series))
        series = ComplexPair(1 + series.real, series.imag)
    # Not expm1: its derivative in jax, expm1(x) + 1, is 1e-7 where e^x is 0. Away from a = 0 the
    # difference loses no digits.
    quotient = _divide(ComplexPair(decay.real - 1, decay.imag), far)
    return decay, each(lambda s, q: dt * jnp.where(small, s, q), series, quotient)


def _bilinear(A: ComplexPair, dt: Array) -> tuple[ComplexPair, ComplexPair]:
    """(1 + dt·A/2) / (1 - dt·A/2) and dt / (1 - dt·A/2)."""
    half = each(lambda part: part * dt / 2, A)
    below = ComplexPair(1 - half.real, -half.imag)
    decay = _divide(ComplexPair(1 + half.real, half.imag), below)
    one = ComplexPair(jnp.ones_like(half.real), jnp.zeros_like(half.real))
    return decay, each(lambda part: dt * part, _divide(one, below))


def _divide(a: ComplexPair, b: ComplexPair) -> ComplexPair:
    size = b.real * b.real + b.imag * b.imag
    return each(lambda part: part / size, multiply(a, conjugate(b)))


# ------------------------------------------------------------------------------------ recurrence


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear_scan(decay: ComplexPair, inputs: ComplexPair, kept: Array, run: Callable) -> ComplexPair:
    """xₜ = keptₜ·decay·xₜ₋₁ + inputsₜ from x₋₁ = 0; an initial state goes into inputs₀.

    Backward is the same loop in reverse and stores nothing but the states.

    Args:
      decay: [*S].
      inputs: [T, *S].
      kept: [T] bool, False where the state is emptied; kept₀ does not matter.
      run: `rows_sequential`, `rows_associative`, or a `functools.partial` of the latter or of
        `rows_chunked`.

    Returns:
      States [T, *S].
    """
    return run(decay, inputs, kept)


def _linear_scan_forward(decay, inputs, kept, run):
    states = linear_scan(decay, inputs, kept, run)
    return states, (decay, kept, states)


def _linear_scan_backward(run, residuals, states_bar):
    decay, kept, states = residuals
    reverse = lambda x: jnp.flip(x, 0)  # noqa: E731
    # Row t is reached from row t + 1, through what row t + 1 kept.
    reverse_kept = jnp.concatenate([kept[:1], reverse(kept[1:])])
    back = linear_scan(conjugate(decay), each(reverse, states_bar), reverse_kept, run)
    inputs_bar = each(reverse, back)
    before = each(lambda part: part[:-1], states)
    after = keep(kept[1:], each(lambda part: part[1:], inputs_bar))
    decay_bar = each(lambda part: part.sum(0), multiply(conjugate(before), after))
    return decay_bar, inputs_bar, None


linear_scan.defvjp(_linear_scan_forward, _linear_scan_backward)


def rows_sequential(decay: ComplexPair, inputs: ComplexPair, kept: Array) -> ComplexPair:
    """`linear_scan` row by row; kept [T, …] may have more leading axes of the state."""

    def one_row(state, row):
        inputs_t, kept_t = row
        state = add(keep(kept_t, multiply(decay, state)), inputs_t)
        return state, state

    start = each(lambda part: jnp.zeros_like(part[0]), inputs)
    decay = each(lambda d, x: d.reshape((1,) * (x.ndim - d.ndim) + d.shape), decay, start)
    unroll = len(kept) <= _MAX_UNROLLED
    return jax.lax.scan(one_row, start, (inputs, kept), unroll=unroll)[1]


def rows_associative(
    decay: ComplexPair, inputs: ComplexPair, kept: Array, whole: int = 128
) -> ComplexPair:
    """`linear_scan` in log T parallel passes; `whole` as in `chunking.associative_scan`."""

    def after(first, second):
        (decay_1, state_1, kept_1), (decay_2, state_2, kept_2) = first, second
        carried = keep(kept_2, multiply(decay_2, state_1))
        return multiply(decay_1, decay_2), add(carried, state_2), kept_1 & kept_2

    # Masked in every pass rather than by a decay of 0, which would let NaN through a reset.
    spread = each(lambda d, x: jnp.broadcast_to(d[None], x.shape), decay, inputs)
    return chunking.associative_scan(after, (spread, inputs, kept), whole)[1]


def rows_chunked(size: int, decay: ComplexPair, inputs: ComplexPair, kept: Array) -> ComplexPair:
    """`linear_scan` of chunks of `size` rows side by side, and then from chunk to chunk."""
    length = len(kept)
    num_chunks = -(-length // size)
    padding = num_chunks * size - length

    def cut(x):  # [T, …] -> [Q, K, …]
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(num_chunks, size, *x.shape[1:]).swapaxes(0, 1)

    kept = cut(kept)
    local = rows_sequential(decay, each(cut, inputs), kept)  # [Q, K, *S]
    carried = jnp.cumprod(kept, 0, dtype=jnp.int32).astype(bool)  # no reset since the chunk began
    table = powers(decay, size + 1)
    ends = each(lambda part: part[-1], local)
    ends = rows_sequential(each(lambda part: part[-1], table), ends, carried[-1])
    starts = each(lambda part: jnp.pad(part[:-1], [(1, 0)] + [(0, 0)] * (part.ndim - 1)), ends)
    spread = each(lambda part: part[1:, None], table)
    read = keep(carried, multiply(spread, each(lambda part: part[None], starts)))
    states = add(local, read)
    return each(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:length], states)
