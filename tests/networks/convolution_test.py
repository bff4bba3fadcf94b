"""Convolutions with gradients of their own against those of `lax`, alone and under `vmap`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import convolution

METHODS = ("lax", "subpixel", "slices")
# Side, channels in, channels out, kernel, stride.
SHAPES = [(8, 3, 4, 5, 1), (8, 3, 4, 5, 2), (7, 2, 3, 3, 2), (6, 2, 3, 3, 1), (8, 2, 3, 4, 2)]


def inputs(shape, lead=()):
    side, channels, out, size, _ = shape
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (*lead, 2, side, side, channels))
    return x, jax.random.normal(keys[1], (*lead, size, size, channels, out))


def plain(transposed, stride, x, kernel):
    """`lax.conv_general_dilated`, to be differentiated by jax."""
    size = kernel.shape[0]
    numbers = ("NHWC", "HWIO", "NHWC")
    if not transposed:
        pads = [(size // 2, size // 2)] * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, dimension_numbers=numbers
        )
    low = size - 1 - (size - 1) // 2
    pads = [(low, low + (stride - 1) * (size % 2))] * 2
    flipped = kernel[::-1, ::-1]
    return jax.lax.conv_general_dilated(
        x, flipped, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=numbers
    )


def both(method, transposed, stride, x, kernel):
    """Output, and gradients of x and the kernel; `method` "plain" is the reference."""
    side = kernel.shape[0]
    if method == "plain":
        op = lambda x, kernel, method: plain(transposed, stride, x, kernel)  # noqa: E731
    elif transposed:
        op = functools.partial(
            convolution.transposed_convolution,
            stride=stride,
            padding=(side - 1) // 2,
            output_padding=(stride - 1)
            * (side % 2),  # so that the result is `stride` times as large
        )
    else:
        op = functools.partial(convolution.convolution, stride=stride)

    def objective(x, kernel):
        y = op(x, kernel, method=method)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))), y

    grads, y = jax.grad(objective, (0, 1), has_aux=True)(x, kernel)
    return y, *grads


def assert_equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_equal_to_lax_and_its_autodiff(method, shape, transposed):
    x, kernel = inputs(shape)
    run = jax.jit(both, static_argnums=(0, 1, 2))
    assert_equal(
        run(method, transposed, shape[-1], x, kernel),
        run("plain", transposed, shape[-1], x, kernel),
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_each_seed(method, transposed):
    xs, kernels = inputs(SHAPES[1], lead=(3,))

    def over_seeds(method):
        return jax.jit(jax.vmap(functools.partial(both, method, transposed, 2)))(xs, kernels)

    assert_equal(over_seeds(method), over_seeds("plain"))


def test_bfloat16_stays_bfloat16():
    x, kernel = inputs(SHAPES[1])
    wanted = both("plain", False, 2, x, kernel)[0]
    for method in METHODS:
        y = both(method, False, 2, x.astype(jnp.bfloat16), kernel)[0]
        assert y.dtype == jnp.bfloat16
        assert np.abs(y.astype(jnp.float32) - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("method", METHODS)
def test_lowers_for_accelerators(method):
    program = jax.jit(functools.partial(both, method, False, 2))
    exported = jax.export.export(program, platforms=["cuda", "tpu"])(*inputs(SHAPES[1]))
    assert exported.platforms == ("cuda", "tpu")
