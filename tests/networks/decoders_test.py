"""Decoders: torch's transposed convolution, the published shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import decoders
from mbrl_jax.networks.convolution import transposed_convolution
from mbrl_jax.types import ArraySpec

IMAGE = ArraySpec((64, 64, 3), "uint8")


def _scatter(x, kernel, stride):
    """Transposed convolution as a sum of kernels laid at each input pixel; padding 2."""
    height, width, _ = x.shape
    canvas = np.zeros((stride * height + 5, stride * width + 5, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            top, left = stride * row, stride * column
            canvas[top : top + 5, left : left + 5] += np.einsum(
                "i,hwio->hwo", x[row, column], kernel
            )
    return canvas[2 : 2 + stride * height, 2 : 2 + stride * width]


@pytest.mark.parametrize("method", ["lax", "subpixel", "slices"])
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolution_lays_kernels_at_each_input_pixel(stride, method):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 2)), rng.normal(size=(5, 5, 2, 3))
    run = jax.jit(
        functools.partial(
            transposed_convolution, stride=stride, output_padding=stride - 1, method=method
        )
    )
    y = run(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    expected = [_scatter(image, kernel, stride) for image in x]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lax", "subpixel", "slices"])
def test_impulse_golden(method):
    impulse = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(1.0)
    kernel = jnp.arange(25.0).reshape(5, 5, 1, 1)
    y = transposed_convolution(impulse, kernel, 2, output_padding=1, method=method)
    expected = [[12, 13, 14, 0], [17, 18, 19, 0], [22, 23, 24, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(y[0, :, :, 0], expected)


def _shapes(z):
    module = decoders.Image64().make(IMAGE)

    def run(key):
        variables = module.init(key, z, True)
        y, kept = module.apply(variables, z, False, capture_intermediates=True)
        maps = kept["intermediates"]
        convolved = [maps[f"ConvTranspose_{i}"]["__call__"][0][0] for i in range(5)]
        return y, [maps["Dense_0"]["__call__"][0], *convolved]

    return jax.tree.map(lambda x: x.shape, jax.eval_shape(run, jax.random.key(0)))


def test_image_decoder_shapes_golden():
    _, maps = _shapes(jnp.zeros((1, 1024)))
    assert [shape[1:] for shape in maps] == [
        (4 * 4 * 64,),
        (8, 8, 64),
        (16, 16, 48),
        (32, 32, 32),
        (64, 64, 16),
        (64, 64, 3),
    ]


def test_image_decoder_keeps_all_batch_axes():
    assert _shapes(jnp.zeros((2, 3, 1024)))[0] == (2, 3, 64, 64, 3)


def test_image_decoder_refuses_other_observations():
    with pytest.raises(ValueError, match="decoder=Grid"):
        decoders.Image64().make(ArraySpec((10, 10, 4), "float32"))


def test_dense_decoder_has_the_shape_of_the_observation():
    module = decoders.Dense(width=7).make(ArraySpec((4, 5), "float32"))
    init = functools.partial(module.init_with_output, train=True)
    shape = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 3, 6)))[0].shape
    assert shape == (2, 3, 4, 5)
