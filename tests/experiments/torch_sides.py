"""What tests need that hold PyTorch's side of a benchmark against ours."""

import jax
import numpy as np


def assert_close(torch_value, value, tolerance=2e-5, scale=1.0):
    found, wanted = np.asarray(torch_value.detach()), np.asarray(value)
    assert found.shape == wanted.shape
    largest = max(scale, np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * largest)


def assert_gradients_close(module, wanted):
    """Parameters of `wanted` hold gradients; a zero one but for rounding has its layer's scale.

    Such are biases in front of a normalisation, and scales between two where ReLU is between.
    """
    found, wanted = dict(module.named_parameters()), dict(wanted.named_parameters())
    scales = {}
    for name, gradient in wanted.items():
        layer = name.rpartition(".")[0]
        scales[layer] = max(scales.get(layer, 0.0), float(gradient.detach().abs().max()))
    for name, gradient in wanted.items():
        assert_close(found[name].grad, gradient.detach(), 1e-4, scales[name.rpartition(".")[0]])


def model_uniforms(key, shape, groups):
    """What `drama.loss` compares with the cumulated probabilities of each row."""
    keys = jax.vmap(lambda k: jax.random.split(k, shape[1]))(jax.random.split(key, shape[0]))
    return jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (groups,))))(keys)
