"""Causal depthwise convolution of a short width W, with resets, as Mamba puts before its scan.

    y_t = bias + Σ_w weight[w] · x_{t-W+1+w}        weight[W-1] meets the newest row

The W taps are written out as shifted products: XLA fuses them into one pass, whereas the grouped
convolution of `lax` leaves the fast path (on CPU in its gradient above all). Rows before the last
reset count as zeros. All functions are for a single stream; no activation inside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import shapes

Array = jax.Array


class ConvEntries(NamedTuple):
    """What rebuilds the last W - 1 inputs after any row."""

    rows: Array  # [W - 1 + T, C] the history, then the inputs
    segment: Array  # [T] int32: resets so far; rows of one number see each other, the history has 0


def causal_conv_stream(
    x: Array,
    weight: Array,
    bias: Array,
    history: Array | None = None,
    reset: Array | None = None,
) -> tuple[Array, ConvEntries]:
    """Convolve one sequence.

    Args:
      x: [T, C].
      weight: [W, C].
      bias: [C].
      history: [W - 1, C] inputs of the rows before, oldest first; None for zeros.
      reset: [T] bool; `reset[t]` hides everything before row t. None: never.

    Returns:
      y [T, C] in the dtype of x (sums in float32), and `ConvEntries`.

    Raises:
      ValueError: a shape or the dtype of `reset` is wrong.
    """
    shapes.check_axes(x=(x, "T C"), weight=(weight, "W C"), bias=(bias, "C"), reset=(reset, "T"))
    shapes.check_reset(reset)
    (length, channels), width = x.shape, weight.shape[0]
    _check_history(history, width, channels)
    if history is None:
        history = jnp.zeros((width - 1, channels), x.dtype)
    if reset is None:
        reset = jnp.zeros((length,), bool)

    rows = jnp.concatenate([history.astype(x.dtype), x])
    entries = ConvEntries(rows, jnp.cumsum(reset.astype(jnp.int32)))
    segment = _all_segments(entries)
    taps = []
    for tap in range(width):
        seen = segment[tap : tap + length] == entries.segment
        taps.append(jnp.where(seen[:, None], rows[tap : tap + length], 0))
    return _weighted_sum(taps, weight[:, None], bias[None]), entries


def conv_history_at(entries: ConvEntries, t: Array | int) -> Array:
    """The last W - 1 inputs after t + 1 rows, [W - 1, C]; rows before the last reset are zero.

    Args:
      entries: of `causal_conv_stream`, or one stream of a vmapped call.
      t: [] row in 0 … T - 1, may be traced.
    """
    num_past = len(entries.rows) - len(entries.segment)
    rows, segment = (
        jax.lax.dynamic_slice_in_dim(array, t + 1, num_past)
        for array in (entries.rows, _all_segments(entries))
    )
    return jnp.where((segment == entries.segment[t])[:, None], rows, 0)


def causal_conv_step(history: Array, x: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Convolve one row.

    Args:
      history: [W - 1, C] inputs of the rows before, oldest first; zeros after a reset.
      x: [C].
      weight: [W, C].
      bias: [C].

    Returns:
      The next history [W - 1, C], and y [C] in the dtype of x.

    Raises:
      ValueError: a shape is wrong.
    """
    shapes.check_axes(x=(x, "C"), weight=(weight, "W C"), bias=(bias, "C"))
    _check_history(history, weight.shape[0], len(x))
    rows = jnp.concatenate([history, x[None].astype(history.dtype)])
    y = _weighted_sum([*history.astype(x.dtype), x], weight, bias)
    return rows[1:], y


def _weighted_sum(taps: list[Array], weight: Array, bias: Array) -> Array:
    """bias + Σ_w weight[w] · taps[w] in at least float32, returned in the dtype of the taps."""
    wide = jnp.promote_types(taps[0].dtype, jnp.float32)
    y = bias.astype(wide)
    for tap, tap_weight in zip(taps, weight.astype(wide), strict=True):
        y = y + tap_weight * tap.astype(wide)
    return y.astype(taps[0].dtype)


def _all_segments(entries: ConvEntries) -> Array:
    """[W - 1 + T] segment of every row, the history included."""
    num_past = len(entries.rows) - len(entries.segment)
    return jnp.concatenate([jnp.zeros((num_past,), jnp.int32), entries.segment])


def _check_history(history: Array | None, width: int, channels: int) -> None:
    if history is not None and jnp.shape(history) != (width - 1, channels):
        raise ValueError(
            f"`history` has shape {jnp.shape(history)}, but [W - 1, C] = "
            f"({width - 1}, {channels}) was expected."
        )
