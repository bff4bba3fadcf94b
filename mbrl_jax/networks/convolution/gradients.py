"""Large convolutions on CPU: the form of each pass that stays on XLA's fast path.

XLA:CPU hands a convolution to its kernel library only if neither input is dilated, the operands
lie as [N, H, W, C] and [k, k, C, Co] in memory, and one side has more than 16 channels. The
gradients that autodiff writes, and few channels, fail one of these and run 2 to 100 times slower.
Here

- the fine side is written (input gradient, transposed convolution) by one undilated convolution
  for each phase of the rows, with the phases of the columns as channels: `[N, h, w, s·C]` is
  `[N, h, s·w, C]` as it lies in memory (sub-pixel convolution, Shi et al., arXiv 1609.05158);
- the weight gradient is a convolution of the channel-major input over frames, in a scan over
  groups of frames whose operands stay in the cache;
- with few channels and stride 1, neighbouring columns are merged into channels.

Seeds with weights of their own are unrolled: under vmap XLA would see a grouped convolution.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from mbrl_jax.networks.convolution.geometry import (
    Array,
    Geometry,
    contract,
    correlate,
    merged_columns,
    phase_columns,
    phases,
)

FEW_CHANNELS = 16  # XLA's kernel library takes convolutions with more than this on one side
CHANNEL_MULTIPLE = 8  # of output channels, where there are few
GROUP_ELEMENTS = 2**18  # of the larger side, in one group of frames of the weight gradient
UNROLL = 16  # at most so many lanes are written out one by one

# -------------------------------------------------------------------------------- differentiable


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """x [N, H, W, C] and kernel [k, k, C, Co] to [N, Ho, Wo, Co], in the dtype of x."""
    return _read(geometry)(x, kernel)


def _convolution_forward(x, kernel, geometry):
    return _read(geometry)(x, kernel), (x, kernel)


def _convolution_backward(geometry, kept, dy):
    x, kernel = kept
    return _write(geometry)(dy, kernel), _weights(geometry)(x, dy).astype(kernel.dtype)


convolution.defvjp(_convolution_forward, _convolution_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def transposed(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """x [N, Ho, Wo, Co] and kernel [k, k, C, Co] to [N, H, W, C], in the dtype of x."""
    return _write(geometry)(x, kernel)


def _transposed_forward(x, kernel, geometry):
    return _write(geometry)(x, kernel), (x, kernel)


def _transposed_backward(geometry, kept, dy):
    x, kernel = kept
    return _read(geometry)(dy, kernel), _weights(geometry)(dy, x).astype(kernel.dtype)


transposed.defvjp(_transposed_forward, _transposed_backward)

# -------------------------------------------------------------------------------------- vmapping


def _frames_merge(run, num_frame_args: int):
    """`run(a, b)` under vmap: lanes of shared weights become frames, others are unrolled.

    Args:
      run: a function of two arrays; the first `num_frame_args` have a leading axis of frames.
    """
    mapped = custom_vmap(run)

    @mapped.def_vmap
    def rule(axis_size, batched, a, b):
        if num_frame_args == 1 and not batched[1]:
            y = mapped(a.reshape((-1,) + a.shape[2:]), b)
            return y.reshape(a.shape[:2] + y.shape[1:]), True
        lane = lambda i: (a[i] if batched[0] else a, b[i] if batched[1] else b)  # noqa: E731
        if axis_size <= UNROLL:
            return jnp.stack([mapped(*lane(i)) for i in range(axis_size)]), True
        return jax.lax.map(lambda i: mapped(*lane(i)), jnp.arange(axis_size)), True

    return mapped


@functools.cache
def _read(geometry: Geometry):
    return _frames_merge(functools.partial(_read_fine, geometry), 1)


@functools.cache
def _write(geometry: Geometry):
    return _frames_merge(functools.partial(_write_fine, geometry), 1)


@functools.cache
def _weights(geometry: Geometry):
    return _frames_merge(functools.partial(_weight_gradient, geometry), 2)


# ------------------------------------------------------------------------------------ the passes


def _read_fine(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """The convolution: [N, H, W, C] and [k, k, C, Co] to [N, Ho, Wo, Co]."""
    y = _undilated(_wide(x), _wide(kernel), geometry.stride, geometry.padding)
    return y.astype(x.dtype)


def _write_fine(geometry: Geometry, y: Array, kernel: Array) -> Array:
    """The adjoint of `_read_fine`: [N, Ho, Wo, Co] and [k, k, C, Co] to [N, H, W, C]."""
    stride, (height, width) = geometry.stride, geometry.fine
    rows, columns = -(-height // stride), -(-width // stride)
    table, first = phase_columns(geometry.kernel[1], stride, geometry.padding[1][0])
    # [k, U, Co, s·C]: a window over coarse columns that gives all phases of the fine ones.
    wide = contract("urt,htio->huori", table, _wide(kernel))
    wide = wide.reshape(wide.shape[:3] + (-1,))
    column_pads = _window_pads(geometry.coarse[1], columns, len(table), first)
    parts = []
    for phase in phases(geometry.kernel[0], stride, geometry.padding[0][0]):
        if not phase.taps:
            parts.append(jnp.zeros((y.shape[0], rows, columns, wide.shape[-1]), wide.dtype))
            continue
        row_pads = _window_pads(geometry.coarse[0], rows, len(phase.taps), phase.first)
        taps = jnp.stack([wide[tap] for tap in phase.taps])
        parts.append(_undilated(_wide(y), taps, 1, (row_pads, column_pads)))
    fine = _interleave_rows(parts).reshape(y.shape[0], rows * stride, columns * stride, -1)
    return fine[:, :height, :width].astype(y.dtype)


def _interleave_rows(parts: list[Array]) -> Array:
    """[N, h, w, F] of each phase to [N, h, s, w, F].

    By selection: inside a fusion XLA:CPU vectorises it, and a concatenation not.
    """
    phase = jnp.arange(len(parts))[:, None, None]
    fine = parts[0][:, :, None]
    for r, part in enumerate(parts[1:], start=1):
        fine = jnp.where(phase == r, part[:, :, None], fine)
    return fine


def _weight_gradient(geometry: Geometry, x: Array, dy: Array) -> Array:
    """dK [k, k, C, Co] float32 from the fine side [N, H, W, C] and the coarse [N, Ho, Wo, Co]."""
    group = _column_group(x, dy) if geometry.coarse[1] == geometry.fine[1] else 1
    if group == 1:
        window = [
            (low, k + (coarse - 1) * geometry.stride - fine - low)
            for (low, _), k, coarse, fine in zip(
                geometry.padding, geometry.kernel, geometry.coarse, geometry.fine, strict=True
            )
        ]
        return _sum_over_groups(x, dy, geometry.stride, tuple(window))
    table, first = merged_columns(geometry.kernel[1], geometry.padding[1][0], group)
    row_pads = geometry.padding[0]
    column_pads = (-first, len(table) - 1 + first)
    wide = _sum_over_groups(
        _merge_columns(x, group), _merge_columns(dy, group), 1, (row_pads, column_pads)
    )
    k, num_blocks = wide.shape[:2]
    wide = wide.reshape(k, num_blocks, group, x.shape[-1], group, dy.shape[-1])
    return contract("uprt,hupiro->htio", table, wide)


def _sum_over_groups(x: Array, dy: Array, dilation: int, padding) -> Array:
    """Products of all windows of x with dy, summed over frames group by group."""
    # The kernel library multiplies several windows of a line at once: lines are the axis with more.
    num_rows, num_columns = (
        a + sum(pads) - dilation * (b - 1)
        for a, b, pads in zip(x.shape[1:3], dy.shape[1:3], padding, strict=True)
    )
    axes = (2, 1) if num_rows > num_columns else (1, 2)
    if num_rows > num_columns:
        padding = padding[::-1]
    num_frames = x.shape[0]
    size = _group_size(x, dy)
    whole = num_frames // size

    def product(x, dy):
        x, dy = _wide(x).transpose(3, *axes, 0), _wide(dy).transpose(*axes, 0, 3)
        return correlate(x, dy, 1, padding, dilation)  # [C, k, k, Co]

    if whole <= 1:
        return product(x, dy).transpose(*axes, 0, 3)

    def groups(a):
        return a[: whole * size].reshape((whole, size) + a.shape[1:])

    shape = jax.eval_shape(product, x, dy)
    total = jnp.zeros(shape.shape, shape.dtype)
    total, _ = jax.lax.scan(
        lambda total, pair: (total + product(*pair), None), total, (groups(x), groups(dy))
    )
    if whole * size < num_frames:
        total += product(x[whole * size :], dy[whole * size :])
    return total.transpose(*axes, 0, 3)


def _group_size(x: Array, dy: Array) -> int:
    """Frames of one group: a power of two, so that small batches divide evenly."""
    fit = GROUP_ELEMENTS // max(math.prod(x.shape[1:]), math.prod(dy.shape[1:]))
    return max(4, 1 << max(fit, 1).bit_length() - 1)


# --------------------------------------------------------------------------------------- helpers


def _wide(x: Array) -> Array:
    """Half precision as float32, which CPUs multiply faster."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _window_pads(size: int, wanted: int, window: int, first: int) -> tuple[int, int]:
    """Padding for `wanted` windows, the first of which begins at pixel `first` of `size`."""
    return -first, wanted - 1 + first + window - size


def _undilated(x: Array, kernel: Array, stride: int, padding) -> Array:
    """A convolution on the fast path, with columns merged where channels are few."""
    same_width = stride == 1 and sum(padding[1]) == kernel.shape[1] - 1
    group = _column_group(x, kernel) if same_width else 1
    if group == 1:
        return correlate(x, kernel, stride, padding)
    table, first = merged_columns(kernel.shape[1], padding[1][0], group)
    features = kernel.shape[-1]
    wide = contract("uprt,htio->hupiro", table, kernel)
    wide = wide.reshape(kernel.shape[0], len(table), group * x.shape[-1], group * features)
    used = wide.shape[-1]
    wide = jnp.pad(wide, ((0, 0),) * 3 + ((0, -used % CHANNEL_MULTIPLE),))
    pads = (padding[0], (-first, len(table) - 1 + first))
    y = correlate(_merge_columns(x, group), wide, 1, pads)[..., :used]
    return y.reshape(y.shape[:2] + (-1, features))


def _column_group(x: Array, other: Array) -> int:
    """How many columns to merge into channels where both sides are equally wide; 1: none.

    `other` has the channels of the other side last.
    """
    channels = max(x.shape[-1], other.shape[-1])
    few = FEW_CHANNELS // 2 < channels <= FEW_CHANNELS
    return 2 if few and x.shape[2] % 2 == 0 else 1


def _merge_columns(x: Array, group: int) -> Array:
    n, height, width, channels = x.shape
    return x.reshape(n, height, width // group, group * channels)
