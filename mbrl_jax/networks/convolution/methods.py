"""Two-dimensional convolutions, channels last, in the form that is fastest on the backend.

    y = convolution(x, kernel, stride=2, padding=2)
    x = transposed_convolution(y, kernel, stride=2, padding=2, output_padding=1)

`method` names the form; all compute the same numbers:

- "lax": `lax.conv_general_dilated`, for accelerators;
- "subpixel": gradients written so that XLA:CPU stays fast (`gradients`);
- "slices": slices and matrix products (`slices`), for small networks on CPU whose
  weights have a seed axis;
- "auto": what `auto_method` says for the default backend and the sizes.
"""

import functools
from collections.abc import Iterable

import jax

from mbrl_jax.networks.convolution import gradients, slices
from mbrl_jax.networks.convolution.geometry import Array, Geometry, Padding, correlate

METHODS = ("auto", "lax", "subpixel", "slices")


def auto_method(backend: str, channels: tuple[int, int]) -> str:
    """The method that "auto" stands for.

    Args:
      backend: "cpu", "gpu" or "tpu".
      channels: of the input and of the output.
    """
    if backend != "cpu":
        return "lax"
    return "subpixel" if max(channels) > 8 else "slices"


def convolution(
    x: Array,
    kernel: Array,
    stride: int = 1,
    padding: int | Padding | None = None,
    method: str = "auto",
) -> Array:
    """Correlate images with a kernel, as `torch.nn.functional.conv2d` does.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, Co].
      stride: of rows and columns.
      padding: zeros around the image: one number, ((low, high), (low, high)) of rows and columns,
        or None for k // 2.
      method: one of `METHODS`.

    Returns:
      [B, Ho, Wo, Co] in the dtype of x, Ho = (H + low + high - k) // stride + 1.

    Raises:
      ValueError: shapes, stride, padding or method are wrong.
    """
    _check(x, kernel, stride, method)
    if x.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"`x` {x.shape} and `kernel` {kernel.shape} differ in their channels")
    geometry = Geometry(_two(x.shape[1:3]), _two(kernel.shape), stride, _pairs(padding, kernel))
    if min(geometry.coarse) < 1:
        raise ValueError(f"images {x.shape[1:3]} are smaller than the kernel {kernel.shape[:2]}")
    method = _method(method, kernel)
    kernel = kernel.astype(x.dtype)
    if method == "lax":
        return correlate(x, kernel, stride, geometry.padding)
    if method == "slices":
        return slices.convolution(x, kernel, geometry)
    return gradients.convolution(x, kernel, geometry)


def transposed_convolution(
    x: Array,
    kernel: Array,
    stride: int = 1,
    padding: int | None = None,
    output_padding: int = 0,
    method: str = "auto",
) -> Array:
    """Lay the kernel, weighted by each pixel, `stride` pixels apart: torch's ConvTranspose2d.

    Args:
      x: [B, h, w, C].
      kernel: [k, k, C, Co] in torch's spatial orientation.
      stride: of rows and columns in the result.
      padding: rows and columns cut from each side of the result, or None for k // 2.
      output_padding: rows and columns added below and on the right, less than `stride`.
      method: one of `METHODS`.

    Returns:
      [B, H, W, Co] in the dtype of x, H = (h - 1) · stride + k - 2 · padding + output_padding.

    Raises:
      ValueError: shapes, stride, padding or method are wrong.
    """
    _check(x, kernel, stride, method)
    if x.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"`x` {x.shape} and `kernel` {kernel.shape} differ in their channels")
    if not 0 <= output_padding < stride:
        raise ValueError(f"output_padding {output_padding} must be in 0 … stride - 1 ({stride})")
    pairs = _pairs(padding, kernel)
    fine = _two(
        (size - 1) * stride + k - sum(pads) + output_padding
        for size, k, pads in zip(x.shape[1:3], kernel.shape[:2], pairs, strict=True)
    )
    if min(fine) < 1:
        raise ValueError(f"padding {padding} leaves nothing of the result {fine}")
    geometry = Geometry(fine, _two(kernel.shape), stride, pairs)
    method = _method(method, kernel)
    kernel = kernel.astype(x.dtype)
    adjoint = kernel.swapaxes(2, 3)  # of the convolution that this one is the transpose of
    if method == "lax":
        return _lax_transposed(x, adjoint, geometry)
    if method == "slices":
        return slices.transposed(x, adjoint, geometry)
    return gradients.transposed(x, adjoint, geometry)


# --------------------------------------------------------------------------------------- private


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lax_transposed(x: Array, adjoint: Array, geometry: Geometry) -> Array:
    """Zeros between the pixels, then a correlation with the flipped kernel.

    Gradients are those of the convolution that this is the transpose of: for the kernel of a
    dilated convolution autodiff writes one that cuDNN has no form for (H200, 2,048 frames, 32→16 at
    64²: 16 ms and 17 GB forward and backward, against 3.8 ms and 0.8 GB).
    """
    sizes = zip(geometry.kernel, geometry.padding, geometry.fine, geometry.coarse, strict=True)
    pads = tuple(
        (k - 1 - low, fine - 1 + low - geometry.stride * (coarse - 1))
        for k, (low, _), fine, coarse in sizes
    )
    return jax.lax.conv_general_dilated(
        x,
        adjoint.swapaxes(2, 3)[::-1, ::-1],
        (1, 1),
        pads,
        lhs_dilation=(geometry.stride, geometry.stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _lax_transposed_forward(x, adjoint, geometry):
    return _lax_transposed(x, adjoint, geometry), (x, adjoint)


def _lax_transposed_backward(geometry, kept, dy):
    x, adjoint = kept
    read = functools.partial(correlate, dy, stride=geometry.stride, padding=geometry.padding)
    dx, pull = jax.vjp(read, adjoint)
    return dx, *pull(x)


_lax_transposed.defvjp(_lax_transposed_forward, _lax_transposed_backward)


def _method(method: str, kernel: Array) -> str:
    return (
        auto_method(jax.default_backend(), _two(kernel.shape[-2:])) if method == "auto" else method
    )


def _pairs(padding: int | Padding | None, kernel: Array) -> Padding:
    if padding is None:
        rows, columns = (k // 2 for k in kernel.shape[:2])
        return ((rows, rows), (columns, columns))
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    of_rows, of_columns = ((int(low), int(high)) for low, high in padding)
    return of_rows, of_columns


def _two(sizes: Iterable[int]) -> tuple[int, int]:
    """The first two of some sizes."""
    rows, columns, *_ = sizes
    return rows, columns


def _check(x: Array, kernel: Array, stride: int, method: str) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"`x` must be [B, H, W, C] and `kernel` [k, k, C, Co], not {x.shape}, {kernel.shape}"
        )
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, not {method!r}")
