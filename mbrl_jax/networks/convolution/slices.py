"""Small convolutions on CPU as slices of the input and plain matrix products.

Under `vmap` over weights (one network for each seed) a product stays a batched product, where
`lax.conv` becomes a grouped convolution. Gradients are autodiff's: products and slices again.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.networks.convolution.geometry import (
    Array,
    Geometry,
    contract,
    phase_columns,
)

IM2COL_KERNEL = 3  # up to this side all taps go into one product, beyond it each row has its own


def convolution(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """x [N, H, W, C] and kernel [k, k, C, Co] to [N, Ho, Wo, Co]."""
    x = _pad(x, geometry.padding)
    return _window_products(x, kernel, geometry.stride, geometry.coarse)


def transposed(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """x [N, Ho, Wo, Co] and kernel [k, k, C, Co] to [N, H, W, C], the adjoint of `convolution`.

    The phases of rows and columns are channels of the product and then take their places. With
    stride 1 and a small kernel the product comes first and its taps are added up: the rows of the
    product are then the pixels of x, which are fewer than those of the result without padding.
    """
    stride, (height, width) = geometry.stride, geometry.fine
    if stride == 1 and max(geometry.kernel) <= IM2COL_KERNEL:
        result = jax.ShapeDtypeStruct((x.shape[0], height, width, kernel.shape[2]), x.dtype)
        return jax.linear_transpose(lambda y: convolution(y, kernel, geometry), result)(x)[0]
    sizes = (-(-height // stride), -(-width // stride))
    tables, pads = [], []
    for axis in (0, 1):
        table, first = phase_columns(geometry.kernel[axis], stride, geometry.padding[axis][0])
        tables.append(table)
        high = sizes[axis] - 1 + first + len(table) - geometry.coarse[axis]
        pads.append((-first, high))
    wide = contract("urt,htio->huori", tables[1], kernel)
    wide = contract("vsh,huori->vuosri", tables[0], wide)
    channels = wide.shape[-1]
    wide = wide.reshape(wide.shape[:3] + (-1,))
    y = _window_products(_pad(x, tuple(pads)), wide, 1, sizes)
    y = y.reshape(-1, *sizes, stride, stride, channels).swapaxes(2, 3)
    y = y.reshape(-1, sizes[0] * stride, sizes[1] * stride, channels)
    return y[:, :height, :width]


def _pad(x: Array, padding) -> Array:
    """Rows and columns of zeros; negative numbers cut."""
    config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _window_products(x: Array, kernel: Array, stride: int, sizes: tuple[int, int]) -> Array:
    """All windows of x [N, Hp, Wp, C] times kernel [kr, kc, C, F]: [N, *sizes, F]."""
    num_rows, num_columns, _, features = kernel.shape
    height, width = sizes
    columns = jnp.concatenate(
        [_strided(x, tap, width, stride, axis=2) for tap in range(num_columns)], axis=-1
    )
    rows = [_strided(columns, tap, height, stride, axis=1) for tap in range(num_rows)]
    if max(num_rows, num_columns) <= IM2COL_KERNEL:
        rows, kernel = [jnp.concatenate(rows, axis=-1)], kernel.reshape(1, -1, features)
    else:
        kernel = kernel.reshape(num_rows, -1, features)
    y = sum(row.reshape(-1, row.shape[-1]) @ taps for row, taps in zip(rows, kernel, strict=True))
    return y.reshape(-1, height, width, features)


def _strided(x: Array, start: int, count: int, stride: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)
