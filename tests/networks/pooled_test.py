"""DreamerV3's image networks against float64 loops, and the sizes that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import decoders, encoders
from mbrl_jax.types import ArraySpec

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = ArraySpec((12, 12, 2), "uint8")


def _float64(params):
    noise = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64) + 0.1 * noise.normal(size=x.shape), params
    )


def _conv(x, params):
    """Correlation of [H, W, C] with zeros around it, place by place."""
    kernel, padded = params["kernel"], np.pad(x, ((2, 2), (2, 2), (0, 0)))
    y = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for i, j in np.ndindex(x.shape[:2]):
        y[i, j] = np.einsum("abc,abcd->d", padded[i : i + 5, j : j + 5], kernel) + params["bias"]
    return y


def _activate(x, norm):
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-4) * norm["scale"]
    return x / (1.0 + np.exp(-x))


def _dense(x, params):
    return x @ params["kernel"] + params["bias"]


def _doubled(x):
    return x.repeat(2, axis=0).repeat(2, axis=1)


def test_the_encoder_is_the_plain_loop():
    module = encoders.Pooled(depth=1, multipliers=(2, 3)).make(IMAGE)
    x = jax.random.uniform(jax.random.key(0), (2, 1, *IMAGE.shape))
    params = _float64(jax.jit(module.init, static_argnums=2)(jax.random.key(1), x, True)["params"])
    found = jax.jit(lambda p: module.apply({"params": p}, x, False))(params)
    y = np.asarray(x[1, 0], np.float64) - 0.5
    for stage in range(2):
        y = _conv(y, params[f"Conv_{stage}"])
        rows, columns, width = y.shape
        y = y.reshape(rows // 2, 2, columns // 2, 2, width).max(axis=(1, 3))
        y = _activate(y, params[f"RMSNorm_{stage}"])
    assert found.shape == (2, 1, 3 * 3 * 3)
    np.testing.assert_allclose(found[1, 0], y.reshape(-1), atol=1e-5)


def test_the_decoder_is_the_plain_loop():
    deter, stoch, blocks = 4, 3, 2
    config = decoders.Pooled(1, (2, 4), units=5, deter=deter, blocks=blocks)
    module = config.make(IMAGE)
    z = jax.random.normal(jax.random.key(0), (2, deter + stoch))
    params = _float64(jax.jit(module.init, static_argnums=2)(jax.random.key(1), z, True)["params"])
    found = jax.jit(lambda p: module.apply({"params": p}, z, False))(params)
    h, s = np.split(np.asarray(z[1], np.float64), [deter])
    hidden = _activate(_dense(s, params["Dense_0"]), params["RMSNorm_0"])
    y = _dense(hidden, params["Dense_1"]).reshape(3, 3, 4)
    linear = params["BlockLinear_0"]
    for g in range(blocks):  # a block reads its part of h and writes its own channels
        own = h[2 * g : 2 * g + 2] @ linear["kernel"][g] + linear["bias"][g]
        y[:, :, 2 * g : 2 * g + 2] += own.reshape(3, 3, 2)
    y = _activate(y, params["RMSNorm_1"])
    y = _activate(_conv(_doubled(y), params["Conv_0"]), params["RMSNorm_2"])
    y = _conv(_doubled(y), params["Conv_1"])
    np.testing.assert_allclose(found[1], y, atol=1e-5)


def test_published_shapes_golden():
    """64×64 images at depth 16: 1,024 numbers, and back."""
    spec = ArraySpec((64, 64, 3), "uint8")
    encoder, decoder = encoders.Pooled().make(spec), decoders.Pooled(deter=16, units=4).make(spec)
    key = jax.random.key(0)
    x, z = jnp.zeros((5, 64, 64, 3)), jnp.zeros((5, 20))
    token = jax.eval_shape(lambda: encoder.init_with_output(key, x, True)[0])
    image = jax.eval_shape(lambda: decoder.init_with_output(key, z, True)[0])
    assert (token.shape, image.shape) == ((5, 1024), (5, 64, 64, 3))


@pytest.mark.parametrize("shape", [(12, 12), (10, 12, 1), (2, 2, 3), (512, 512, 3)])
def test_images_of_other_sides_are_refused(shape):
    with pytest.raises(ValueError, match="multipliers"):
        encoders.Pooled(1, (1, 1)).make(ArraySpec(shape, "uint8"))


def test_a_decoder_with_blocks_that_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="must divide"):
        decoders.Pooled(1, (2, 4), deter=5, blocks=2).make(IMAGE)
