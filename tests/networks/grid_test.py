"""Grid encoder and decoder: against plain `lax` convolutions, sizes, seeds, what they refuse."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drama_minatar
from mbrl_jax import testing
from mbrl_jax.experiment import config
from mbrl_jax.networks import decoders, encoders, grid
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

BREAKOUT = ArraySpec((10, 10, 4), "float32")
SMALL = ArraySpec((7, 5, 3), "float32")  # rows and columns differ
LATENT = 6


def make(kind, spec=SMALL):
    """(module, an input [2, 3, ...])."""
    made = encoders.Grid(depth=2, width=7) if kind == "encoder" else decoders.Grid(depth=2)
    module = made.make(spec)
    shape = spec.shape if kind == "encoder" else (LATENT,)
    return module, jax.random.normal(jax.random.key(1), (2, 3, *shape))


def random_params(module, key, x):
    """Initial parameters with noise, so that no bias is 0 and no scale 1."""
    params = module.init(key, x, True)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return tree.unflatten(noisy)


# --------------------------------------------------------------------------------- the plain form


def normed(x, scale, axes):
    return jax.nn.silu(x / jnp.sqrt(jnp.square(x).mean(axes, keepdims=True) + 1e-6) * scale)


def correlated(x, layer, padding):
    y = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (1, 1),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return y + layer["bias"]


def dense(x, layer):
    return jnp.dot(x, layer["kernel"], precision="highest") + layer["bias"]


def plain_encoder(params, x):
    y = x.reshape(-1, *x.shape[-3:])
    for i in (0, 1):
        y = correlated(y, params[f"_Conv_{i}"], 0)
        y = normed(y, params[f"RMSNorm_{i}"]["scale"], (1, 2, 3))
    y = dense(y.reshape(*x.shape[:-3], -1), params["Dense_0"])
    return normed(y, params["RMSNorm_2"]["scale"], -1)


def plain_decoder(shape, params, z):
    y = dense(z, params["Dense_0"]).reshape(-1, shape[0] - 4, shape[1] - 4, 4)
    for i in (0, 1):
        y = normed(y, params[f"RMSNorm_{i}"]["scale"], (1, 2, 3))
        layer = params[f"_ConvTranspose_{i}"]
        y = correlated(y, layer | {"kernel": layer["kernel"][::-1, ::-1]}, 2)
    return y.reshape(*z.shape[:-1], *shape)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_equal_to_plain_convolutions_with_gradients(kind):
    module, x = make(kind)
    params = random_params(module, jax.random.key(0), x)
    plain = plain_encoder if kind == "encoder" else functools.partial(plain_decoder, SMALL.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def run(apply, params, x):
        y, pull = jax.vjp(apply, params, x)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    found = run(lambda params, x: module.apply({"params": params}, x, True), params, x)
    testing.assert_close(found, run(plain, params, x), kind, tolerance=1e-5)


# ------------------------------------------------------------------------------------------- sizes


def test_shapes_and_parameters_of_minatar():
    """Sums by hand: convolutions with their biases and scales, then linear layers."""
    latent = jnp.zeros((2, 3, 256))
    for kind, x, shape, count in (
        (encoders, jnp.zeros((2, 3, 10, 10, 4)), (2, 3, 128), 608 + 4_672 + 147_712),
        (decoders, latent, (2, 3, 10, 10, 4), 296_064 + 32 + 4_624 + 16 + 580),
    ):
        init = functools.partial(kind.Grid().make(BREAKOUT).init_with_output, train=True)
        y, variables = jax.eval_shape(init, jax.random.key(0), x)
        assert y.shape == shape and y.dtype == jnp.float32
        assert variables.keys() == {"params"}  # nothing is learnt from the batch
        assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_an_observation_does_not_depend_on_its_batch(kind):
    module, x = make(kind)
    variables = module.init(jax.random.key(0), x, True)
    apply = jax.jit(lambda x: module.apply(variables, x, True))
    whole = apply(x)
    testing.assert_close(apply(x[1, 2]), whole[1, 2], "one alone")
    testing.assert_close(apply(x.reshape(6, *x.shape[2:])), whole.reshape(6, *whole.shape[2:]), "6")


def test_an_empty_grid_has_finite_gradients():
    module, x = make("encoder")
    params = module.init(jax.random.key(0), x, True)["params"]
    loss = lambda params: module.apply({"params": params}, jnp.zeros_like(x), True).sum()  # noqa: E731
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_seeds_under_vmap_are_the_seeds_alone(kind):
    module, x = make(kind)
    xs = jnp.stack([x, 2.0 * x, -x])
    keys = jax.random.split(jax.random.key(0), 3)

    def run(key, x):
        params = random_params(module, key, x)
        loss = lambda params: jnp.square(module.apply({"params": params}, x, True)).sum()  # noqa: E731
        return jax.value_and_grad(loss)(params)

    alone = jax.jit(run)
    expected = [alone(key, x) for key, x in zip(keys, xs, strict=True)]
    expected = jax.tree.map(lambda *y: jnp.stack(y), *expected)
    testing.assert_close(jax.jit(jax.vmap(run))(keys, xs), expected, kind, tolerance=1e-5)


# ------------------------------------------------------------------------------------- world model


@pytest.mark.parametrize("dtype", [pytest.param("bool", marks=pytest.mark.slow), "uint8"])
def test_world_model_of_grids_keeps_its_laws(tiny_drama, dtype):
    model = dataclasses.replace(
        tiny_drama,
        encoder=encoders.Grid(2, 8),
        decoder=decoders.Grid(2),
        reconstruction="bernoulli",
    )
    spec = EnvSpec(ArraySpec((6, 5, 2), dtype), DiscreteSpec(3))
    testing.check_world_model(model, spec, length=5)


def test_named_on_the_command_line():
    experiment = drama_minatar.get_experiment()
    changed = config.override(experiment, ["model.encoder=grid", "model.decoder=Grid"]).model
    assert changed.encoder == encoders.Grid(width=256)  # the width that stood there
    assert changed.decoder == decoders.Grid()
    assert config.from_json(config.to_json(changed)) == changed


@pytest.mark.parametrize("module", [encoders, decoders])
@pytest.mark.parametrize("shape", [(3,), (10, 10), (10, 4, 1), (2, 10, 10, 4)])
def test_refuses_other_observations_in_a_sentence(module, shape):
    with pytest.raises(ValueError, match=f"has {re.escape(str(shape))}; use encoder=Dense"):
        module.Grid().make(ArraySpec(shape, "float32"))


# ------------------------------------------------------------------------------------ accelerators


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_lowers_for_accelerators(kind, backend, monkeypatch):
    """Both forms: products, and the `lax` convolutions that a process with a GPU would choose."""
    module, x = make(kind, BREAKOUT)
    variables = module.init(jax.random.key(0), x, True)
    monkeypatch.setattr(grid.jax, "default_backend", lambda: backend)

    def gradient(variables, x):
        return jax.grad(lambda v: jnp.square(module.apply(v, x, True)).sum())(variables)

    platforms = ("cuda", "tpu")
    exported = jax.export.export(jax.jit(gradient), platforms=platforms)(variables, x)
    assert exported.platforms == platforms
    assert ("stablehlo.convolution" in exported.mlir_module()) == (backend == "gpu")
