"""Initial weights: golden 16 of shared/specs/drama.md."""

import jax
import numpy as np
import pytest

from mbrl_jax.networks import initializers


@pytest.fixture(scope="module")
def convolution():
    """Of the first convolution of the published encoder, 40 times."""
    init = jax.jit(jax.vmap(lambda key: initializers.glorot_truncated(key, (5, 5, 3, 16))))
    return np.asarray(init(jax.random.split(jax.random.key(0), 40)))


def test_standard_deviation_of_a_convolution_golden(convolution):
    np.testing.assert_allclose(convolution.std(), 0.0649, rtol=0.01)


def test_convolutions_are_truncated_at_two_standard_deviations_golden(convolution):
    assert 0.146 < np.abs(convolution).max() < 0.1476


def test_standard_deviation_of_a_linear_layer_golden():
    kernel = jax.jit(initializers.glorot_truncated, static_argnums=1)(
        jax.random.key(0), (1024, 1024)
    )
    np.testing.assert_allclose(np.asarray(kernel).std(), 0.03125, rtol=0.01)


def test_uniform_fan_in_fills_its_range():
    weights = np.asarray(initializers.uniform_fan_in(1024)(jax.random.key(0), (5000,)))
    np.testing.assert_allclose([weights.min(), weights.max()], [-1 / 32, 1 / 32], rtol=0.01)


def test_orthogonal_columns_have_the_gain_as_norm():
    kernel = np.asarray(initializers.orthogonal(0.5)(jax.random.key(0), (6, 3)))
    np.testing.assert_allclose(kernel.T @ kernel, 0.25 * np.eye(3), atol=1e-6)


def test_orthogonal_of_gain_zero_is_zero():
    assert not np.asarray(initializers.orthogonal(0.0)(jax.random.key(0), (3, 3))).any()


@pytest.mark.parametrize("shape, fan", [((256, 64), 256), ((4, 64, 64), 256)])
def test_fan_in_counts_the_blocks_and_is_truncated(shape, fan):
    kernel = np.asarray(initializers.fan_in_truncated(0.5)(jax.random.key(0), shape))
    np.testing.assert_allclose(kernel.std(), 0.5 / fan**0.5, rtol=0.03)
    limit = 2 * 0.5 / fan**0.5 / initializers.TRUNCATED_STD
    assert 0.95 * limit < np.abs(kernel).max() <= 1.001 * limit


def test_fan_in_of_gain_zero_is_zero():
    assert not np.asarray(initializers.fan_in_truncated(0.0)(jax.random.key(0), (3, 3))).any()
