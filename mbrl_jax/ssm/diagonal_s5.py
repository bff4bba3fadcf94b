"""S5: one diagonal complex state-space model for all channels (Smith et al., arXiv 2208.04933).

With P states, decays λ and input gains γ from discretising A (`diagonal.discretize`); the states
are halves of conjugate pairs, hence the 2 (as an option):

    xₜ = λ xₜ₋₁ + γ (B uₜ)        yₜ = 2 Re(C xₜ) + D uₜ

B u and C x are matrix products over all rows; what is left for the loop over time is P numbers a
row. A state is a `ComplexPair` of real `[P]` arrays.

Axes: `T` time, `D` channels, `P` states. Everything but `s5` is for a single stream; `vmap` adds
batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking, diagonal, shapes
from mbrl_jax.ssm.diagonal import ComplexPair

Array = jax.Array

METHODS = ("auto", "associative", "chunked", "recurrent")


class S5Entries(NamedTuple):
    """The states after all rows: they are no larger than the outputs."""

    states: ComplexPair  # [T, P] float32


def auto_method(backend: str) -> str:
    """The method that "auto" stands for on `backend` ("cpu", "gpu", "tpu")."""
    return "recurrent" if backend == "cpu" else "associative"


def s5(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: ComplexPair | Array | None = None,
    return_final_state: bool = False,
    rule: str = "zoh",
    conjugate_pairs: bool = True,
    chunk_size: int = 16,
    method: str = "auto",
) -> Array | tuple[Array, ComplexPair]:
    """S5 over a batch of sequences; see `s5_stream` for the arguments.

    Args:
      u: [B, T, D].
      dt: [P].
      A: [P].
      B: [P, D].
      C: [D, P].
      D: [D] or None.
      reset: [B, T] bool or None.
      initial_state: [B, P] or None for zeros.
      return_final_state: also return the state after row T - 1.
      rule: "zoh" or "bilinear", of `discretize`.
      conjugate_pairs: read 2·Re instead of Re.
      chunk_size: the longest chunk of method "chunked".
      method: one of `METHODS`.

    Returns:
      y [B, T, D] in the dtype of u, and the final state [B, P] where asked for.

    Raises:
      ValueError: shapes, dtype of `reset`, `rule`, `chunk_size` or `method` are wrong.
    """
    _check(u, dt, A, B, C, D, reset, initial_state, "B T ", "B ")

    def stream(u, reset, initial_state):
        options: dict[str, Any] = {
            "rule": rule,
            "conjugate_pairs": conjugate_pairs,
            "method": method,
        }
        options |= {"reset": reset, "initial_state": initial_state, "chunk_size": chunk_size}
        return s5_stream(u, dt, A, B, C, D, **options)[:2]

    y, final_state = jax.vmap(stream)(u, reset, initial_state)
    return (y, final_state) if return_final_state else y


def s5_stream(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    reset: Array | None = None,
    initial_state: ComplexPair | Array | None = None,
    rule: str = "zoh",
    conjugate_pairs: bool = True,
    chunk_size: int = 16,
    method: str = "auto",
) -> tuple[Array, ComplexPair, S5Entries]:
    """One state-space model for all channels, over one sequence of any length T ≥ 1.

    All arithmetic is float32 (float64 for float64 inputs) whatever the dtype of u. On accelerators
    float32 products follow `jax_default_matmul_precision`.

    Args:
      u: [T, D].
      dt: [P] step sizes > 0.
      A: [P] complex or real, Re A ≤ 0.
      B: [P, D] input weights.
      C: [D, P] output weights.
      D: [D] weight of the skip, or None.
      reset: [T] bool; `reset[t]` empties the state before row t. None: never.
      initial_state: [P] `ComplexPair` or complex array, or None for zeros.
      rule: "zoh" or "bilinear", of `discretize`.
      conjugate_pairs: the states are halves of conjugate pairs, so y is 2·Re and not Re.
      chunk_size: the longest chunk of method "chunked".
      method: how states follow each other between the two matrix products. "associative": an
        associative scan; "chunked": rows of all chunks side by side, then chunk to chunk;
        "recurrent": row by row; "auto": what `auto_method` says for the default backend.

    Returns:
      y [T, D] in the dtype of u, the state after the last row [P], and `S5Entries`.

    Raises:
      ValueError: shapes, dtype of `reset`, `rule`, `chunk_size` or `method` are wrong.
    """
    _check(u, dt, A, B, C, D, reset, initial_state, "T ")
    length = u.shape[0]
    shapes.check_chunking(length, chunk_size, method, METHODS)
    method = auto_method(jax.default_backend()) if method == "auto" else method
    wide = chunking.state_dtype(u)
    if reset is None:
        reset = jnp.zeros((length,), bool)

    decay, weight, out = _system(dt, A, B, C, rule, conjugate_pairs, wide)
    inputs = diagonal.each(lambda part: u.astype(wide) @ part.T, weight)  # [T, P]
    if initial_state is not None:
        state = diagonal.keep(~reset[0], diagonal.state_pair(initial_state, wide))
        carried = diagonal.multiply(decay, state)
        inputs = diagonal.each(lambda part, first: part.at[0].add(first), inputs, carried)
    states = diagonal.linear_scan(decay, inputs, ~reset, _rows(method, chunk_size))
    y = states.real @ out.real.T - states.imag @ out.imag.T
    final_state = diagonal.each(lambda part: part[-1], states)
    return diagonal.skip(y, D, u), final_state, S5Entries(states)


def _rows(method: str, chunk_size: int) -> Callable:
    """How states follow each other."""
    if method == "chunked":
        return functools.partial(diagonal.rows_chunked, chunk_size)
    return diagonal.rows_associative if method == "associative" else diagonal.rows_sequential


def s5_state_at(entries: S5Entries, t: Array | int) -> ComplexPair:
    """The state [P] after t + 1 rows.

    Args:
      entries: of `s5_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    return diagonal.each(lambda part: part[t], entries.states)


def s5_step(
    state: ComplexPair,
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    *,
    rule: str = "zoh",
    conjugate_pairs: bool = True,
) -> tuple[ComplexPair, Array]:
    """One row of S5.

    Args:
      state: [P] float32.
      u: [D].
      dt: [P].
      A: [P].
      B: [P, D].
      C: [D, P].
      D: [D] or None.
      rule: "zoh" or "bilinear", of `discretize`.
      conjugate_pairs: read 2·Re instead of Re.

    Returns:
      The next state [P], and y [D] in the dtype of u.

    Raises:
      ValueError: a shape or the rule is wrong.
    """
    _check(u, dt, A, B, C, D, None, state)
    wide = state.real.dtype
    decay, weight, out = _system(dt, A, B, C, rule, conjugate_pairs, wide)
    inputs = diagonal.each(lambda part: part @ u.astype(wide), weight)
    state = diagonal.add(diagonal.multiply(decay, state), inputs)
    y = out.real @ state.real - out.imag @ state.imag
    return state, diagonal.skip(y, D, u)


# --------------------------------------------------------------------------------------- private


def _check(u, dt, A, B, C, D, reset, state, rows: str = "", batch: str = "") -> None:
    """Check the inputs of S5; `rows` and `batch` are the axes before those of a row, a state."""
    shapes.check_axes(
        u=(u, rows + "D"),
        dt=(dt, "P"),
        A=(A, "P"),
        B=(B, "P D"),
        C=(C, "D P"),
        D=(D, "D"),
        reset=(reset, rows.strip()),
        initial_state=(None if state is None else state.real, batch + "P"),
    )
    shapes.check_reset(reset)


def _system(dt, A, B, C, rule: str, conjugate_pairs: bool, wide: jnp.dtype):
    """Decay [P], input weights [P, D], output weights [D, P]."""
    A, B, C = (diagonal.pair(array, wide) for array in (A, B, C))
    decay, gain = diagonal.discretize_pair(A, jnp.asarray(dt), rule)
    gain = diagonal.each(lambda part: part[:, None], gain)
    return decay, diagonal.multiply(gain, B), diagonal.read_weights(C, conjugate_pairs)
