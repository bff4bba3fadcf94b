"""What every form of a convolution shares: sizes, and which tap meets which pixel.

A strided convolution joins a fine grid [H, W] to a coarse one [Ho, Wo]: coarse pixel o sees the
fine pixels s·o + t - low for the taps t = 0 … k - 1. The convolution reads the fine grid, the
transposed convolution and the input gradient write it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]


class Geometry(NamedTuple):
    """The static part of a convolution; hashable."""

    fine: tuple[int, int]  # H, W
    kernel: tuple[int, int]
    stride: int
    padding: Padding  # (low, high) of rows and of columns

    @property
    def coarse(self) -> tuple[int, int]:
        """Ho, Wo."""
        rows, columns = (
            (size + sum(pads) - k) // self.stride + 1
            for size, k, pads in zip(self.fine, self.kernel, self.padding, strict=True)
        )
        return rows, columns


class Phase(NamedTuple):
    """The taps that reach the fine pixels s·m + r from the coarse pixels m + first … m + last."""

    taps: tuple[int, ...]  # one for each coarse pixel, from the first to the last
    first: int


def phases(k: int, stride: int, low: int) -> list[Phase]:
    """For each remainder r < stride: which taps write the fine pixels s·m + r, and from where."""
    found = []
    for r in range(stride):
        taps = tuple(range((r + low) % stride, k, stride))[::-1]  # the last tap: the least offset
        first = (r + low - taps[0]) // stride if taps else 0
        found.append(Phase(taps, first))
    return found


def phase_columns(k: int, stride: int, low: int) -> tuple[np.ndarray, int]:
    """All phases as one window over coarse pixels.

    Returns E [U, s, k], 1 where window position u feeds phase r through tap t, and the offset of
    the window's first pixel.
    """
    every = phases(k, stride, low)
    used = [phase for phase in every if phase.taps]
    first = min(phase.first for phase in used)
    last = max(phase.first + len(phase.taps) for phase in used)
    table = np.zeros((last - first, stride, k), np.float32)
    for r, phase in enumerate(every):
        for u, tap in enumerate(phase.taps):
            table[phase.first - first + u, r, tap] = 1.0
    return table, first


def merged_columns(k: int, low: int, group: int) -> tuple[np.ndarray, int]:
    """A window of stride 1 over pixels that lie merged in blocks of `group`.

    Returns E [U, g, g, k], 1 where pixel p of block m + first + u meets pixel r of block m
    through tap t, and `first`.
    """
    first = -low // group
    last = (group - 1 + k - 1 - low) // group
    table = np.zeros((last - first + 1, group, group, k), np.float32)
    for r in range(group):
        for tap in range(k):
            block, p = divmod(r + tap - low, group)
            table[block - first, p, r, tap] = 1.0
    return table, first


def contract(equation: str, table: np.ndarray, operand: Array) -> Array:
    """einsum of a table of zeros and ones with a kernel, exact on every backend."""
    ones = jnp.asarray(table, operand.dtype)
    return jnp.einsum(equation, ones, operand, precision=jax.lax.Precision.HIGHEST)


def correlate(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int = 1) -> Array:
    """`lax.conv_general_dilated` of [N, H, W, C] with [k, k, C, Co]; `dilation` of the window."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
