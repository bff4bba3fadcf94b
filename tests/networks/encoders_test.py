"""Encoders: the published shapes, the channel-first order, batch axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import encoders
from mbrl_jax.networks.norms import activate
from mbrl_jax.types import ArraySpec

IMAGE = ArraySpec((64, 64, 3), "uint8")


def _shapes(depth, observation):
    """Shapes of the output and of each convolution's, nothing computed."""
    module = encoders.Image64(depth).make(IMAGE)

    def run(key, x):
        variables = module.init(key, x, True)
        y, kept = module.apply(variables, x, False, capture_intermediates=True)
        maps = kept["intermediates"]
        return y, [maps[f"Conv_{i}"]["__call__"][0][0] for i in range(5)]

    return jax.tree.map(lambda x: x.shape, jax.eval_shape(run, jax.random.key(0), observation))


def test_image_encoder_shapes_golden():
    _, maps = _shapes(16, jnp.zeros((1, 64, 64, 3)))
    assert [shape[1:] for shape in maps] == [
        (64, 64, 16),
        (32, 32, 32),
        (16, 16, 48),
        (8, 8, 64),
        (4, 4, 64),
    ]


def test_image_encoder_keeps_all_batch_axes():
    assert _shapes(16, jnp.zeros((2, 3, 64, 64, 3)))[0] == (2, 3, 1024)


def test_image_encoder_flattens_channel_first():
    module = encoders.Image64(depth=1).make(IMAGE)
    x = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3))

    @jax.jit
    def run(key):
        return module.apply(module.init(key, x, True), x, False, capture_intermediates=True)

    y, kept = run(jax.random.key(1))
    last = kept["intermediates"]["Conv_4"]["__call__"][0][0]  # [1, 4, 4, C]
    affine = kept["intermediates"]["BatchNorm_4"]["__call__"][0]
    expected = np.asarray(activate(last, affine))[0].transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (32, 32, 3), (3, 64, 64)])
def test_image_encoder_refuses_other_observations_by_their_shape(shape):
    with pytest.raises(ValueError, match=str(shape[0])):
        encoders.Image64().make(ArraySpec(shape, "uint8"))


def test_dense_encoder_flattens_the_observation_alone():
    module = encoders.Dense(width=7).make(ArraySpec((4, 5), "float32"))
    x = jnp.zeros((2, 3, 4, 5))
    init = functools.partial(module.init_with_output, train=True)
    assert jax.eval_shape(init, jax.random.key(0), x)[0].shape == (2, 3, 7)
