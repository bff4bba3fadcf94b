"""The selective scan as one GPU kernel each way, in Pallas.

A program of one warp carries the state of some channels in its registers from row to row and writes
nothing but results and the states at chunk starts. (In XLA what is computed row after row goes
through memory, and takes a kernel launch for each row.) Backward runs the rows of a chunk anew from
the state at its start and keeps them in registers as well, so its chunks are short.

The state of a program is a list of N vectors over its channels. One array [N, channels] would need
the weights B and C of a row spread over its other axis, which goes through shared memory.

Everything is for a single stream; `vmap` adds programs. On CPU the kernels are interpreted, which
is for tests alone.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array

MAX_STATES = 32  # N above which a state and its rows no longer fit in registers
MAX_ROWS = 8  # of a chunk: backward holds the states of all its rows in registers
# Channels of a program, one or more for each thread of a warp.
_FORWARD_CHANNELS = 32
_BACKWARD_CHANNELS = 32


class Rows(NamedTuple):
    """What a row brings, cut into K chunks of Q rows; in the dtype of a state."""

    u: Array  # [K, Q, D]
    delta: Array  # [K, Q, D]
    B: Array  # [K, Q, N]
    C: Array  # [K, Q, N]
    reset: Array  # [K, Q] int32


def fused_scan(rates: Array, state: Array, rows: tuple) -> tuple[Array, Array, Array]:
    """Sₜ = exp(Δₜ·rates) Sₜ₋₁ + Bₜ ⊗ (Δₜ·uₜ) and yₜ = Cₜ Sₜ, row after row.

    Args:
      rates: [N, D].
      state: [N, D] before the first row.
      rows: u [K, Q, D], Δ [K, Q, D], B [K, Q, N], C [K, Q, N], reset [K, Q] bool.

    Returns:
      y [K, Q, D], states at chunk starts [K, N, D], final state [N, D], in the dtype of `state`.
    """
    channels = state.shape[-1]
    # What is added starts at 0 and gets no input.
    add = -channels % max(_FORWARD_CHANNELS, _BACKWARD_CHANNELS)
    *rows, reset = rows
    rows = Rows(*(row.astype(state.dtype) for row in rows), reset.astype(jnp.int32))
    rows = rows._replace(u=_pad(rows.u, add), delta=_pad(rows.delta, add))
    results = _scan(_pad(rates, add), _pad(state, add), rows)
    return tuple(result[..., :channels] for result in results)


def _pad(x: Array, columns: int) -> Array:
    """Append zeros to the last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns)])


@jax.custom_vjp
def _scan(rates: Array, state: Array, rows: Rows) -> tuple[Array, Array, Array]:
    """`fused_scan` for whole programs."""
    return _scan_forward(rates, state, rows)[0]


def _scan_forward(rates, state, rows):
    shapes = rows.u.shape, (len(rows.u), *state.shape), state.shape
    block = functools.partial(_block, _FORWARD_CHANNELS)
    specs = [block(rates), block(state), *_row_specs(rows, block)]
    inputs = (rates, state, *rows)
    y, starts, final_state = _call(_forward_kernel, _FORWARD_CHANNELS, inputs, specs, shapes, block)
    return (y, starts, final_state), (rates, rows, starts)


def _scan_backward(residuals, bars):
    rates, rows, starts = residuals
    # Sums over channels end in the programs, which have some of them each.
    parts = (rates.shape[-1] // _BACKWARD_CHANNELS, *rows.B.shape)
    shapes = rates.shape, rates.shape, rows.u.shape, rows.u.shape, parts, parts
    block = functools.partial(_block, _BACKWARD_CHANNELS)
    specs = [block(rates), *_row_specs(rows, block), *map(block, (starts, *bars))]
    inputs = (rates, *rows, starts, *bars)
    results = _call(_backward_kernel, _BACKWARD_CHANNELS, inputs, specs, shapes, block)
    rates_bar, state_bar, u_bar, delta_bar, B_bar, C_bar = results
    return rates_bar, state_bar, Rows(u_bar, delta_bar, B_bar.sum(0), C_bar.sum(0), None)


_scan.defvjp(_scan_forward, _scan_backward)


# ------------------------------------------------------------------------- blocks of a program


def _call(kernel, channels: int, inputs: tuple, specs: list, shapes: tuple, block) -> tuple:
    """Run `kernel` in a program for each `channels`; `shapes`: of the results.

    Results of four axes with a first one for the programs are sums that each of them leaves.
    """
    programs = inputs[0].shape[-1] // channels
    results = tuple(jax.ShapeDtypeStruct(shape, inputs[0].dtype) for shape in shapes)
    call = functools.partial(
        pl.pallas_call,
        kernel,
        grid=(programs,),
        in_specs=specs,
        out_specs=tuple(_part(x) if x.ndim == 4 else block(x) for x in results),
        out_shape=results,
    )
    compiled = call(compiler_params=triton.CompilerParams(num_warps=1, num_stages=1))
    return jax.lax.platform_dependent(
        *inputs, cpu=call(interpret=True), cuda=compiled, rocm=compiled
    )


def _row_specs(rows: Rows, block) -> list:
    """Blocks of the rows: u and Δ of the program's channels, all of the others."""
    shared = [pl.BlockSpec(x.shape, functools.partial(_first, x.ndim)) for x in rows[2:]]
    return [block(rows.u), block(rows.delta), *shared]


def _first(ndim: int, program) -> tuple:
    return (0,) * ndim


def _block(channels: int, x) -> pl.BlockSpec:
    """The channels of a program, on the last axis."""
    return pl.BlockSpec((*x.shape[:-1], channels), lambda i: (0,) * (x.ndim - 1) + (i,))


def _part(x) -> pl.BlockSpec:
    """The program's own row of the first axis."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda i: (i,) + (0,) * (x.ndim - 1))


# ---------------------------------------------------------------------------------------- kernels


def _forward_kernel(rates, state, u, delta, B, C, reset, y, starts, final_state):
    num_chunks, size = reset.shape
    states = range(rates.shape[0])
    rates = [rates[n] for n in states]

    def one_chunk(k, state):
        for n in states:
            starts[k, n] = state[n]
        rows = [(u[k, q], delta[k, q], reset[k, q]) for q in range(size)]
        read = []
        for q, (u_row, step, is_reset) in enumerate(rows):
            inputs = step * u_row
            kept = [_kept(rates[n], step, is_reset) * state[n] for n in states]
            state = [kept[n] + B[k, q, n] * inputs for n in states]
            read.append(sum(C[k, q, n] * state[n] for n in states))
        # Last, so that no store stands between the loads and their use.
        for q, row in enumerate(read):
            y[k, q] = row
        return state

    state = jax.lax.fori_loop(0, num_chunks, one_chunk, [state[n] for n in states])
    for n in states:
        final_state[n] = state[n]


def _kept(rates: Array, step: Array, reset: Array) -> Array:
    """The share of one state that a row keeps, by channel."""
    return jnp.where(reset != 0, 0, jnp.exp(step * rates))


def _backward_kernel(rates, u, delta, B, C, reset, starts, y_bar, starts_bar, final_bar, *results):
    rates_bar, state_bar, u_bar, delta_bar, B_bar, C_bar = results
    num_chunks, size = reset.shape
    states = range(rates.shape[0])
    rates = [rates[n] for n in states]

    def one_chunk(i, carry):
        k = num_chunks - 1 - i
        state, carried = [starts[k, n] for n in states], []
        for q in range(size):
            step, is_reset = delta[k, q], reset[k, q]
            inputs = step * u[k, q]
            carried.append([_kept(rates[n], step, is_reset) * state[n] for n in states])
            state = [carried[q][n] + B[k, q, n] * inputs for n in states]
        back, total = carry
        for q in reversed(range(size)):
            back, total = one_row(k, q, carried[q], back, total)
        return [back[n] + starts_bar[k, n] for n in states], total

    def one_row(k, q, carried, back, total):
        u_row, step, row_bar, is_reset = u[k, q], delta[k, q], y_bar[k, q], reset[k, q]
        inputs = step * u_row
        inputs_bar = decay_bar = jnp.zeros_like(step)
        back, total = list(back), list(total)
        for n in states:
            weight = B[k, q, n]
            C_bar[k, q, n] = ((carried[n] + weight * inputs) * row_bar).sum()
            back[n] = back[n] + C[k, q, n] * row_bar
            B_bar[k, q, n] = (back[n] * inputs).sum()
            inputs_bar = inputs_bar + weight * back[n]
            exponent_bar = back[n] * carried[n]
            decay_bar = decay_bar + exponent_bar * rates[n]
            total[n] = total[n] + exponent_bar * step
            back[n] = _kept(rates[n], step, is_reset) * back[n]
        u_bar[k, q] = step * inputs_bar
        delta_bar[k, q] = decay_bar + u_row * inputs_bar
        return back, total

    zeros = [jnp.zeros_like(rate) for rate in rates]
    carry = ([final_bar[n] for n in states], zeros)
    back, total = jax.lax.fori_loop(0, num_chunks, one_chunk, carry)
    for n in states:
        state_bar[n], rates_bar[n] = back[n], total[n]
