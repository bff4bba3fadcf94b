"""TD-MPC2's encoder of images against `lax`, and where the random shift moves them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks.shifted import LAYERS, ImageEncoder, random_shift, size_of

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = np.arange(5 * 4 * 2, dtype=np.float32).reshape(5, 4, 2)


def test_a_shift_is_a_piece_of_the_image_with_repeated_edges_and_all_pieces_are_as_likely():
    pad, draws = 1, 4_500
    keys = jax.random.split(jax.random.key(0), draws)
    found = np.asarray(jax.jit(jax.vmap(lambda k: random_shift(k, jnp.asarray(IMAGE), pad)))(keys))
    wide = np.pad(IMAGE, ((pad, pad), (pad, pad), (0, 0)), "edge")
    pieces = [wide[i : i + 5, j : j + 4] for i in range(3) for j in range(3)]
    counts = [int((found == piece).all((1, 2, 3)).sum()) for piece in pieces]
    assert sum(counts) == draws
    assert abs(np.asarray(counts) - draws / 9).max() < 5 * (draws / 9) ** 0.5


def test_nothing_is_moved_by_no_pixel():
    np.testing.assert_array_equal(random_shift(jax.random.key(0), jnp.asarray(IMAGE), 0), IMAGE)


def test_the_encoder_is_what_lax_computes():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 39, 39, 2))
    images = jnp.asarray(pixels, jnp.float32)
    net = ImageEncoder(channels=8, group=4)
    params = jax.jit(net.init)(jax.random.key(1), images)["params"]
    x = images.reshape(2, 39, 39, 2) / 255 - 0.5
    for i, (side, stride) in enumerate(LAYERS):
        kernel, bias = params[f"kernel_{i}"], params[f"bias_{i}"]
        bound = 1 / (side * side * x.shape[-1]) ** 0.5
        assert 0.8 * bound < abs(kernel).max() <= bound and abs(bias).max() <= bound
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            jax.nn.relu(x) if i else x, kernel, (stride, stride), "VALID", dimension_numbers=numbers
        )
        x = x + bias
    expected = jax.nn.softmax(x.reshape(2, 1, 2, 4)).reshape(2, 1, 8)
    found = jax.jit(net.apply)({"params": params}, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_published_sizes():
    assert size_of((64, 64, 9), 32) == 512
    with pytest.raises(ValueError, match="images of 38 × 39 are too small"):
        size_of((38, 39, 3), 32)
