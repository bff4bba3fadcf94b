"""The recurrence of Mamba-1 and Mamba-2 as one GPU kernel each way, in Pallas.

A program of one warp carries the state [N, 32] of 32 channels in its registers from row to row and
writes nothing but results and the states at chunk starts. (In XLA what is computed row after row
goes through memory, and takes a kernel launch for each row.) Backward runs the rows of a chunk anew
from the state at its start and keeps them in registers as well, so its chunks are short.

Everything is for a single stream; `vmap` adds programs. On CPU the kernels are interpreted, which
is for tests alone.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array

MAX_ROWS = 8  # of a chunk: backward holds the states of all its rows in registers
MAX_STATES = 32  # N above which they would not fit
_CHANNELS = 32  # of a program: one for each thread of a warp


def fused_scan(rates: Array, state: Array, rows: tuple) -> tuple[Array, Array, Array]:
    """Sₜ = exp(Δₜ·rates) Sₜ₋₁ + Bₜ ⊗ inputsₜ and yₜ = Cₜ Sₜ, row after row.

    Args:
      rates: [N, D], or [1, D] where all states of a channel decay alike.
      state: [N, D] before the first row.
      rows: inputs [K, Q, D], Δ [K, Q, D] or, for heads of equally many channels that share it,
        [K, Q, H], B [K, Q, N], C [K, Q, N], reset [K, Q] bool.

    Returns:
      y [K, Q, D], states at chunk starts [K, N, D], final state [N, D].
    """
    inputs, delta, B, C, reset = rows
    num_states, channels = state.shape
    if delta.shape[-1] < channels and (channels // delta.shape[-1]) % _CHANNELS:
        delta = jnp.repeat(delta, channels // delta.shape[-1], axis=-1)
    # Registers come in powers of two. What is added starts at 0, gets no input and is not read.
    more_states = pl.next_power_of_2(num_states) - num_states
    more_channels = -channels % _CHANNELS
    rates = _pad(rates, more_states if len(rates) > 1 else 0, more_channels)
    state = _pad(state, more_states, more_channels)
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
def _scan(rates, state, rows):
    """`fused_scan` for sizes that fit the kernel, and `reset` as int32."""
    return _scan_forward(rates, state, rows)[0]


def _scan_forward(rates, state, rows):
    inputs, delta = rows[:2]
    results = (inputs.shape, (len(inputs), *state.shape), state.shape)
    specs = [_block(rates), _block(state), *_row_specs(rows)]
    out_specs = [_block(jax.ShapeDtypeStruct(shape, state.dtype)) for shape in results]
    y, starts, final_state = _call(
        _forward_kernel, (rates, state, *rows), specs, results, out_specs
    )
    return (y, starts, final_state), (rates, rows, starts)


def _scan_backward(residuals, bars):
    rates, rows, starts = residuals
    inputs, delta, B, _, reset = rows
    programs = inputs.shape[-1] // _CHANNELS
    # What sums over channels ends in the programs, which have 32 of them each.
    per_head = delta.shape[-1] < inputs.shape[-1]
    delta_shape = (programs, *reset.shape) if per_head else delta.shape
    parts = (programs, *B.shape)
    results = (rates.shape, starts.shape[1:], inputs.shape, delta_shape, parts, parts)
    specs = [_block(rates), *_row_specs(rows), *map(_block, (starts, *bars))]
    out_specs = [
        (_part if place >= 4 or (place == 3 and per_head) else _block)(
            jax.ShapeDtypeStruct(shape, inputs.dtype)
        )
        for place, shape in enumerate(results)
    ]
    bars = _call(_backward_kernel, (rates, *rows, starts, *bars), specs, results, out_specs)
    rates_bar, state_bar, inputs_bar, delta_bar, B_bar, C_bar = bars
    if per_head:
        delta_bar = delta_bar.reshape(delta.shape[-1], -1, *reset.shape).sum(1)
        delta_bar = jnp.moveaxis(delta_bar, 0, -1)
    return rates_bar, state_bar, (inputs_bar, delta_bar, B_bar.sum(0), C_bar.sum(0), None)


_scan.defvjp(_scan_forward, _scan_backward)


# ------------------------------------------------------------------------- blocks of a program


def _call(kernel, inputs: tuple, specs: list, results: tuple, out_specs: list) -> tuple:
    """Run `kernel` in a program for each 32 channels; `results`: shapes, in a state's dtype."""
    call = functools.partial(
        pl.pallas_call,
        kernel,
        grid=(inputs[0].shape[-1] // _CHANNELS,),
        in_specs=specs,
        out_specs=tuple(out_specs),
        out_shape=tuple(jax.ShapeDtypeStruct(shape, inputs[0].dtype) for shape in results),
    )
    compiled = call(compiler_params=triton.CompilerParams(num_warps=1, num_stages=1))
    return jax.lax.platform_dependent(
        *inputs, cpu=call(interpret=True), cuda=compiled, rocm=compiled
    )


def _row_specs(rows: tuple) -> list:
    """The blocks of inputs, Δ, B, C and reset."""
    inputs, delta, *shared = rows
    programs_of_head = inputs.shape[-1] // delta.shape[-1] // _CHANNELS
    head = pl.BlockSpec((*delta.shape[:2], None), lambda i: (0, 0, i // programs_of_head))
    return [_block(inputs), head if programs_of_head else _block(delta), *map(_whole, shared)]


def _block(x) -> pl.BlockSpec:
    """The 32 channels of a program, on the last axis."""
    return pl.BlockSpec((*x.shape[:-1], _CHANNELS), lambda i: (0,) * (x.ndim - 1) + (i,))


def _whole(x) -> pl.BlockSpec:
    """All of it, for every program."""
    return pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)


def _part(x) -> pl.BlockSpec:
    """The program's own row of the first axis."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda i: (i,) + (0,) * (x.ndim - 1))


# ---------------------------------------------------------------------------------------- kernels


def _forward_kernel(rates, state, inputs, delta, B, C, reset, y, starts, final_state):
    num_chunks, size = reset.shape
    rates = rates[...]

    def one_chunk(k, state):
        starts[k] = state
        rows = [(inputs[k, q], _kept(rates, delta[k, q], reset[k, q])) for q in range(size)]
        read = []
        for q, (row, kept) in enumerate(rows):
            state = kept * state + B[k, q][:, None] * row[None]
            read.append((C[k, q][:, None] * state).sum(0))
        # Last, so that no store stands between the loads and their use.
        for q, row in enumerate(read):
            y[k, q] = row
        return state

    final_state[...] = jax.lax.fori_loop(0, num_chunks, one_chunk, state[...])


def _kept(rates: Array, delta: Array, reset: Array) -> Array:
    """The share of the state that a row keeps: [N, 32], or [1, 32] for rates [1, 32]."""
    return jnp.where(reset != 0, 0, jnp.exp(delta[None] * rates))


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
            carried.append(_kept(rates, delta[k, q], reset[k, q]) * state)
            state = carried[q] + B[k, q][:, None] * inputs[k, q][None]
        back, total = carry
        for q in reversed(range(size)):
            B_row, row, row_bar = B[k, q][:, None], inputs[k, q][None], y_bar[k, q][None]
            C_bar[k, q] = ((carried[q] + B_row * row) * row_bar).sum(1)
            back = back + C[k, q][:, None] * row_bar
            B_bar[k, q] = (back * row).sum(1)
            inputs_bar[k, q] = (back * B_row).sum(0)
            exponent_bar = back * carried[q]
            if rates.shape[0] == 1:
                exponent_bar = exponent_bar.sum(0)[None]
            decay_bar = exponent_bar * rates
            delta_bar[k, q] = decay_bar.sum(0) if delta.ndim == 3 else decay_bar.sum()
            total = total + exponent_bar * delta[k, q][None]
            back = _kept(rates, delta[k, q], reset[k, q]) * back
        return back + starts_bar[k], total

    carry = (final_bar[...], jnp.zeros_like(rates))
    state_bar[...], rates_bar[...] = jax.lax.fori_loop(0, num_chunks, one_chunk, carry)
