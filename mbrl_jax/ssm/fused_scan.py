"""The selective scan as one GPU kernel each way, in Pallas.

A program of one warp carries the state [N, 32] of 32 channels in its registers from row to row and
writes nothing but results and the states at chunk starts. (In XLA what is computed row after row
goes through memory, and takes a kernel launch for each row.) Backward runs the rows of a chunk anew
from the state at its start and keeps them in registers as well, so its chunks are short.

It is for many streams of moderate length, as in training: rows follow one another, so that a single
long stream leaves most of a GPU idle, and there the associative scan is faster.

Everything is for a single stream; `vmap` adds programs. On CPU the kernels are interpreted, which
is for tests alone.
"""

import functools
import importlib.util
import warnings

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

Array = jax.Array

MAX_ROWS = 8  # of a chunk: backward holds the states of all its rows in registers
MAX_STATES = 32  # N above which they would not fit
_CHANNELS = 32  # of a program: one for each thread of a warp


def available() -> bool:
    """Whether JAX can compile the kernels: after 0.11 its Triton backend may go."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


_ABSENT = "this version of JAX has no Triton backend, which the method fused needs"


def found() -> bool:
    """`available`, with a warning where not: another method, which rounds otherwise, is taken."""
    if not (is_there := available()):
        warnings.warn(f"{_ABSENT}: the selective scan takes the associative method", stacklevel=4)
    return is_there


def require() -> None:
    """Raise ValueError where JAX cannot compile the kernels."""
    if not available():
        raise ValueError(f"{_ABSENT}; use method='auto'")


def fused_scan(rates: Array, state: Array, rows: tuple) -> tuple[Array, Array, Array]:
    """Sₜ = exp(Δₜ·rates) Sₜ₋₁ + Bₜ ⊗ (Δₜ·uₜ) and yₜ = Cₜ Sₜ, row after row.

    Args:
      rates: [N, D].
      state: [N, D] before the first row.
      rows: u [K, Q, D], Δ [K, Q, D], B [K, Q, N], C [K, Q, N], reset [K, Q] bool.

    Returns:
      y [K, Q, D], states at chunk starts [K, N, D], final state [N, D], in the dtype of `state`.
    """
    u, delta, B, C, reset = rows
    num_states, channels = state.shape
    # Registers come in powers of two. What is added starts at 0, gets no input and is not read.
    more_states = pl.next_power_of_2(num_states) - num_states
    more_channels = -channels % _CHANNELS
    rates, state = (_pad(x, more_states, more_channels) for x in (rates, state))
    inputs = delta * u.astype(delta.dtype)
    inputs, delta = (_pad(row, 0, more_channels) for row in (inputs, delta))
    B, C = (_pad(row.astype(state.dtype), 0, more_states) for row in (B, C))
    y, starts, final_state = _scan(rates, state, (inputs, delta, B, C, reset.astype(jnp.int32)))
    return (
        y[..., :channels],
        starts[:, :num_states, :channels],
        final_state[:num_states, :channels],
    )


def _pad(x: Array, rows: int, columns: int) -> Array:
    """Append zeros to the last two axes."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows), (0, columns)])


@jax.custom_vjp
def _scan(rates: Array, state: Array, rows: tuple) -> tuple[Array, Array, Array]:
    """`fused_scan` for sizes that fit; rows: inputs Δ·u, Δ, B, C, and `reset` as int32."""
    return _scan_forward(rates, state, rows)[0]


def _scan_forward(rates, state, rows):
    shapes = (rows[0].shape, (len(rows[0]), *state.shape), state.shape)
    specs = [_block(rates.shape), _block(state.shape), *_row_specs(rows)]
    out_specs = map(_block, shapes)
    y, starts, final = _call(_forward_kernel, (rates, state, *rows), specs, shapes, out_specs)
    return (y, starts, final), (rates, rows, starts)


def _scan_backward(residuals, bars):
    rates, rows, starts = residuals
    inputs, _, B, _, _ = rows
    # Sums over channels end in the programs, which have 32 of them each.
    parts = (inputs.shape[-1] // _CHANNELS, *B.shape)
    blocks = (rates.shape, rates.shape, inputs.shape, inputs.shape)
    specs = [_block(rates.shape), *_row_specs(rows), *(_block(x.shape) for x in (starts, *bars))]
    out_specs = [*map(_block, blocks), _part(parts), _part(parts)]
    arguments = (rates, *rows, starts, *bars)
    bars = _call(_backward_kernel, arguments, specs, (*blocks, parts, parts), out_specs)
    rates_bar, state_bar, inputs_bar, delta_bar, B_bar, C_bar = bars
    return rates_bar, state_bar, (inputs_bar, delta_bar, B_bar.sum(0), C_bar.sum(0), None)


_scan.defvjp(_scan_forward, _scan_backward)


# ------------------------------------------------------------------------- blocks of a program


def _call(kernel, inputs: tuple, specs: list, shapes: tuple, out_specs) -> tuple:
    """Run `kernel` in a program for each 32 channels; `shapes`: of results in a state's dtype."""
    from jax.experimental.pallas import triton  # here, so that JAX may lack it

    call = functools.partial(
        pl.pallas_call,
        kernel,
        grid=(inputs[0].shape[-1] // _CHANNELS,),
        in_specs=specs,
        out_specs=tuple(out_specs),
        out_shape=tuple(jax.ShapeDtypeStruct(shape, inputs[0].dtype) for shape in shapes),
    )
    compiled = call(compiler_params=triton.CompilerParams(num_warps=1, num_stages=1))
    return jax.lax.platform_dependent(
        *inputs, cpu=call(interpret=True), cuda=compiled, rocm=compiled
    )


def _row_specs(rows: tuple) -> list:
    """Blocks of inputs and Δ, and all of B, C and reset for every program."""
    inputs, delta, *shared = rows
    whole = [pl.BlockSpec(x.shape, lambda i, ndim=x.ndim: (0,) * ndim) for x in shared]
    return [_block(inputs.shape), _block(delta.shape), *whole]


def _block(shape: tuple) -> pl.BlockSpec:
    """The 32 channels of a program, on the last axis."""
    return pl.BlockSpec((*shape[:-1], _CHANNELS), lambda i: (0,) * (len(shape) - 1) + (i,))


def _part(shape: tuple) -> pl.BlockSpec:
    """The program's own row of the first axis."""
    return pl.BlockSpec((None, *shape[1:]), lambda i: (i,) + (0,) * (len(shape) - 1))


# ---------------------------------------------------------------------------------------- kernels


def _forward_kernel(rates, state, inputs, delta, B, C, reset, y, starts, final_state):
    num_chunks, size = reset.shape
    rates = rates[...]

    def one_chunk(k, state):
        starts[k] = state
        rows = [(inputs[k, q], jnp.exp(delta[k, q][None] * rates)) for q in range(size)]
        read = []
        for q, (row, kept) in enumerate(rows):
            state = _unless(reset[k, q], kept * state) + B[k, q][:, None] * row[None]
            read.append((C[k, q][:, None] * state).sum(0))
        # Last, so that no store stands between the loads and their use.
        for q, row in enumerate(read):
            y[k, q] = row
        return state

    final_state[...] = jax.lax.fori_loop(0, num_chunks, one_chunk, state[...])


def _unless(reset: Array, state: Array) -> Array:
    """The state [N, 32], or 0 after a reset; chosen, because 0 · NaN is NaN."""
    return jnp.where(reset != 0, 0, state)


def _backward_kernel(
    rates, inputs, delta, B, C, reset, starts, y_bar, starts_bar, final_bar, *results
):
    rates_bar, state_bar, inputs_bar, delta_bar, B_bar, C_bar = results
    num_chunks, size = reset.shape
    rates = rates[...]

    def one_chunk(i, carry):
        k = num_chunks - 1 - i
        state, carried = starts[k], []
        for q in range(size):
            kept = jnp.exp(delta[k, q][None] * rates)
            carried.append(_unless(reset[k, q], kept * state))
            state = carried[q] + B[k, q][:, None] * inputs[k, q][None]
        back, total = carry
        for q in reversed(range(size)):
            B_row, row, row_bar = B[k, q][:, None], inputs[k, q][None], y_bar[k, q][None]
            C_bar[k, q] = ((carried[q] + B_row * row) * row_bar).sum(1)
            back = back + C[k, q][:, None] * row_bar
            B_bar[k, q] = (back * row).sum(1)
            inputs_bar[k, q] = (back * B_row).sum(0)
            exponent_bar = back * carried[q]
            delta_bar[k, q] = (exponent_bar * rates).sum(0)
            total = total + exponent_bar * delta[k, q][None]
            back = _unless(reset[k, q], jnp.exp(delta[k, q][None] * rates) * back)
        return back + starts_bar[k], total

    carry = (final_bar[...], jnp.zeros_like(rates))
    state_bar[...], rates_bar[...] = jax.lax.fori_loop(0, num_chunks, one_chunk, carry)
