"""STORM's image layers: textbook maps, published shapes and sizes, torch's first weights.

Golden numbers: shared/specs/world_models.md section 2.1, counted by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import decoders, encoders
from mbrl_jax.networks.encoders import STORM, ImageLayers
from mbrl_jax.types import ArraySpec

pytestmark = pytest.mark.usefixtures("quick_compile")
IMAGE = ArraySpec((64, 64, 3), "uint8")
MULTIPLIERS = (1, 2, 4, 8)
ENCODER = encoders.Image64(32, MULTIPLIERS, STORM)
DECODER = decoders.Image64(32, MULTIPLIERS, STORM)


def _init(config, x):
    module = config.make(IMAGE)
    return module, jax.jit(lambda key: module.init(key, x, True))(jax.random.key(0))


def _shapes(config, x, layer):
    """Shapes of the output and of each convolution's, nothing computed."""
    module = config.make(IMAGE)

    def run(key):
        variables = module.init(key, x, True)
        y, kept = module.apply(variables, x, False, capture_intermediates=True)
        maps = kept["intermediates"]
        return y, [maps[f"{layer}_{i}"]["__call__"][0][0] for i in range(4)]

    y, maps = jax.tree.map(lambda x: x.shape, jax.eval_shape(run, jax.random.key(0)))
    return y, [shape[1:] for shape in maps]


def test_shapes_golden():
    y, maps = _shapes(ENCODER, jnp.zeros((2, 3, 64, 64, 3)), "Conv")
    assert y == (2, 3, 4096)
    assert maps == [(32, 32, 32), (16, 16, 64), (8, 8, 128), (4, 4, 256)]
    y, maps = _shapes(DECODER, jnp.zeros((2, 3, 1024)), "ConvTranspose")
    assert y == (2, 3, 64, 64, 3)
    assert maps == [(8, 8, 128), (16, 16, 64), (32, 32, 32), (64, 64, 3)]


@pytest.mark.parametrize(
    "config, x, wanted",
    [
        (ENCODER, (64, 64, 3), 16 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256) + 2 * 480),
        (
            DECODER,
            (1024,),
            1024 * 4096 + 16 * (256 * 128 + 128 * 64 + 64 * 32 + 32 * 3) + 3 + 2 * 480,
        ),
    ],
)
def test_published_parameters(config, x, wanted):
    module = config.make(IMAGE)
    init = lambda key: module.init(key, jnp.zeros((1, *x)), True)  # noqa: E731
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == wanted


def test_first_weights_are_torchs():
    """U(±1/√fan), the fan of a transposed convolution counted with its output."""
    _, variables = _init(encoders.Image64(8, MULTIPLIERS, STORM), jnp.zeros((1, 64, 64, 3)))
    found = [variables["params"][f"Conv_{i}"] for i in range(4)]
    for layer, channels in zip(found, (3, 8, 16, 32), strict=True):
        assert set(layer) == {"kernel"}
        np.testing.assert_allclose(
            np.abs(layer["kernel"]).max(), (16 * channels) ** -0.5, rtol=0.02
        )
    _, variables = _init(decoders.Image64(8, MULTIPLIERS, STORM), jnp.zeros((1, 100)))
    params = variables["params"]
    assert set(params["Dense_0"]) == {"kernel"}
    np.testing.assert_allclose(np.abs(params["Dense_0"]["kernel"]).max(), 0.1, rtol=0.01)
    for i, channels in enumerate((32, 16, 8, 3)):
        layer = params[f"ConvTranspose_{i}"]
        bound = (16 * channels) ** -0.5
        np.testing.assert_allclose(np.abs(layer["kernel"]).max(), bound, rtol=0.02)
        assert ("bias" in layer) == (i == 3)
    assert 0 < np.abs(params["ConvTranspose_3"]["bias"]).max() <= bound


# ----------------------------------------------------------------------------------------- textbook


def _norm_relu(x, params, i):
    norm = params[f"BatchNorm_{i}"]
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    return np.maximum(x * norm["scale"] + norm["bias"], 0)


def _convolve(x, kernel):
    """Pixel by pixel: sides 4, stride 2, one row of zeros around."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    side = (x.shape[1] - 4) // 2 + 1
    y = np.zeros((len(x), side, side, kernel.shape[-1]))
    for r in range(side):
        for c in range(side):
            window = x[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4]
            y[:, r, c] = np.einsum("nhwc,hwcf->nf", window, kernel)
    return y


def _transpose(x, kernel):
    """Kernels laid two pixels apart, one row cut off on each side."""
    side = x.shape[1]
    y = np.zeros((len(x), 2 * side + 2, 2 * side + 2, kernel.shape[-1]))
    for r in range(side):
        for c in range(side):
            laid = np.einsum("nc,hwcf->nhwf", x[:, r, c], kernel)
            y[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4] += laid
    return y[:, 1:-1, 1:-1]


def _moved(variables):
    """Parameters moved at random, in float64: scales and biases count too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), variables["params"])


def _outputs(module, variables, params, x):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    run = jax.jit(lambda x: module.apply(variables | {"params": params}, x, True, mutable=True)[0])
    return run(jnp.asarray(x, jnp.float32))


def test_the_encoder_is_the_textbooks():
    x = np.random.default_rng(1).uniform(size=(3, 64, 64, 3))
    module, variables = _init(encoders.Image64(2, MULTIPLIERS, STORM), x)
    params, y = _moved(variables), x
    for i in range(4):
        y = _norm_relu(_convolve(y, params[f"Conv_{i}"]["kernel"]), params, i)
    expected = np.moveaxis(y, -1, 1).reshape(3, -1)  # channel-first
    np.testing.assert_allclose(_outputs(module, variables, params, x), expected, atol=2e-4)


def test_the_decoder_is_the_textbooks():
    z = np.random.default_rng(1).normal(size=(3, 10))
    module, variables = _init(decoders.Image64(2, MULTIPLIERS, STORM), z)
    params = _moved(variables)
    y = np.moveaxis((z @ params["Dense_0"]["kernel"]).reshape(3, 16, 4, 4), 1, -1)
    for i in range(4):
        y = _transpose(_norm_relu(y, params, i), params[f"ConvTranspose_{i}"]["kernel"])
    expected = y + params["ConvTranspose_3"]["bias"]
    np.testing.assert_allclose(_outputs(module, variables, params, z), expected, atol=2e-4)


# ---------------------------------------------------------------------------------------- refusals


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="use an odd kernel, or outer_stride=2"):
        ImageLayers(kernel=4).validate()
    STORM.validate()
    with pytest.raises(ValueError, match="4 multipliers with outer_stride=1 would .* of 8×8"):
        decoders.Image64(32, MULTIPLIERS).make(IMAGE)
