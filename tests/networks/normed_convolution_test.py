"""Layers that normalise where they read: against textbook batch normalisation and its autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import normed_convolution
from mbrl_jax.networks.convolution import convolution, transposed_convolution
from mbrl_jax.networks.norms import EPS, Affine, activate

FRAMES, SIDE = 6, 8
DOWN = functools.partial(convolution, stride=2, method="subpixel")
UP = functools.partial(transposed_convolution, stride=2, output_padding=1, method="subpixel")
LAX = {
    DOWN: functools.partial(convolution, stride=2, method="lax"),
    UP: functools.partial(transposed_convolution, stride=2, output_padding=1, method="lax"),
}
CHANNELS = (3, 4, 5, 2)
NETS = {"down, down, up": (DOWN, DOWN, UP), "up, up, down": (UP, UP, DOWN)}


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _params(seed=0):
    layers = []
    for i, (before, after) in enumerate(zip(CHANNELS, CHANNELS[1:], strict=False)):
        numbers = (_normal(seed + 10 * i + j, after) for j in range(3))
        kernel = 0.3 * _normal(seed + 10 * i + 3, 5, 5, before, after)
        layers.append((kernel, *numbers))  # kernel, bias, scale and offset of the norm behind
    return layers


def _lazy(net, params, x, activation="silu"):
    """Three layers; the last map is read with its normalisation, as the encoder reads it."""
    affine, all_moments = None, []
    for convolve, (kernel, bias, scale, offset) in zip(net, params, strict=True):
        x, found = normed_convolution.layer(convolve, x, affine, kernel, bias, activation)
        slope = scale * jax.lax.rsqrt(found.var + EPS)
        affine = Affine(slope, offset - found.mean * slope)
        all_moments.append(found)
    return activate(x, affine, activation), all_moments


def _textbook(net, params, x, activation="silu"):
    all_moments = []
    for convolve, (kernel, bias, scale, offset) in zip(net, params, strict=True):
        x = LAX[convolve](x, kernel) + bias
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        all_moments.append((mean, var))
        x = getattr(jax.nn, activation)((x - mean) / jnp.sqrt(var + EPS) * scale + offset)
    return x, all_moments


def _loss(run, params, x):
    """Depends on the result and, by itself, on every moment."""
    y, all_moments = run(params, x)
    extra = sum((0.1 * m + jnp.sin(v)).sum() for m, v in all_moments)
    return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum() + extra


def _assert_close(found, wanted, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # At least 1: what a bias in front of a normalisation does cancels over all pixels.
        own = max(float(jnp.abs(b).max()), 1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * own)


@pytest.fixture(params=["one group", "groups of 2", "groups of 1"])
def _groups(request, monkeypatch):
    frames = {"one group": FRAMES, "groups of 2": 2, "groups of 1": 1}[request.param]
    sizes = lambda x, y: frames  # noqa: E731
    monkeypatch.setattr(normed_convolution, "_group_size", sizes)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.usefixtures("_groups")
def test_values_moments_and_gradients_are_those_of_the_textbook(net):
    _hold_against_the_textbook(NETS[net])


def test_with_relu_too():
    _hold_against_the_textbook(NETS["down, down, up"], activation="relu")


def _hold_against_the_textbook(net, **activation):
    params, x = _params(), _normal(99, FRAMES, SIDE, SIDE, CHANNELS[0])
    runs = [functools.partial(run, net, **activation) for run in (_lazy, _textbook)]
    values = [jax.jit(run)(params, x) for run in runs]
    _assert_close(*values)
    slopes = [jax.jit(jax.grad(functools.partial(_loss, run), (0, 1)))(params, x) for run in runs]
    _assert_close(*slopes)


def test_seeds_with_weights_of_their_own_do_what_each_does_alone():
    x = _normal(5, 2, FRAMES, SIDE, SIDE, CHANNELS[0])
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), _params(), _params(seed=50))
    run = jax.grad(functools.partial(_loss, functools.partial(_lazy, NETS["down, down, up"])))
    together = jax.jit(jax.vmap(run))(params, x)
    alone = jax.jit(run)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (together, params, x))
        _assert_close(one[0], alone(*one[1:]), 1e-6)


def test_shared_maps_under_seeds():
    x = _normal(5, FRAMES, SIDE, SIDE, CHANNELS[0])
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), _params(), _params(seed=50))
    run = functools.partial(_lazy, NETS["down, down, up"])
    together = jax.jit(jax.vmap(run, (0, None)))(params, x)
    first = jax.tree.map(lambda leaf: leaf[0], (together, params))
    _assert_close(first[0], jax.jit(run)(first[1], x), 1e-6)


def test_moments_keep_their_digits_beside_a_large_mean():
    kernel = jnp.zeros((5, 5, 1, 1)).at[2, 2].set(1.0)
    x = 1e3 + _normal(0, 4, 8, 8, 1)
    _, found = jax.jit(functools.partial(normed_convolution.layer, convolution))(
        x, None, kernel, jnp.zeros(1)
    )
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(found.mean[0], wide.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.var[0], wide.var(), rtol=1e-3)


@pytest.mark.parametrize(("frames", "wanted"), [(64, 16), (30, 15), (7, 7), (17, 1)])
def test_groups_divide_the_frames(frames, wanted):
    x = jax.ShapeDtypeStruct((frames, 64, 64, 16), jnp.float32)
    assert normed_convolution._group_size(x, x) == wanted
