"""Perceptrons of both kinds of hidden layers against their equations; how they begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mbrl_jax.networks.heads import Mlp

pytestmark = pytest.mark.usefixtures("quick_compile")
HIDDEN = ("rms_silu", "layer_relu")


def _init(**settings):
    module = Mlp(5, width=64, layers=2, **settings)
    return module, module.init(jax.random.key(0), jnp.zeros(7))["params"]


def _hidden(x, layer, norm, hidden):
    x = x @ layer["kernel"]
    if hidden == "layer_relu":
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return np.maximum(x * norm["scale"] + norm["bias"], 0)
    x = x + layer["bias"]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * norm["scale"]
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("hidden", HIDDEN)
def test_outputs_equal_the_equations(hidden):
    module, params = _init(hidden=hidden)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), params)
    x = y = rng.normal(size=(4, 7))
    norm = {"rms_silu": "RMSNorm", "layer_relu": "LayerNorm"}[hidden]
    for i in range(2):
        y = _hidden(y, params[f"Dense_{i}"], params[f"{norm}_{i}"], hidden)
    y = y @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    small = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    np.testing.assert_allclose(module.apply({"params": small}, x), y, rtol=2e-5, atol=2e-5)


def test_layers_without_a_bias_begin_as_torchs():
    _, params = _init(hidden="layer_relu")
    for i, fan in enumerate((7, 64, 64)):
        layer = params[f"Dense_{i}"]
        assert ("bias" in layer) == (i == 2)
        np.testing.assert_allclose(np.abs(layer["kernel"]).max(), fan**-0.5, rtol=0.03)
    assert 0 < np.abs(params["Dense_2"]["bias"]).max() <= 1 / 8


def test_what_is_asked_for_counts_more_than_what_layers_begin_with():
    for hidden in HIDDEN:
        _, params = _init(hidden=hidden, output_init=nn.initializers.zeros)
        assert not np.asarray(params["Dense_2"]["kernel"]).any()
        assert not np.asarray(params["Dense_2"]["bias"]).any()
    _, params = _init()
    assert not np.asarray(params["Dense_2"]["bias"]).any()
    np.testing.assert_allclose(params["Dense_1"]["kernel"].std(), (2 / 128) ** 0.5, rtol=0.05)
