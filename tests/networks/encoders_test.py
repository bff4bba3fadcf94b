"""Encoders: the published shapes, the channel-first order, batch axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import decoders, encoders
from mbrl_jax.networks.norms import activate
from mbrl_jax.types import ArraySpec, DictSpec

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


# -------------------------------------------------------------------------------------------- auto


@pytest.mark.parametrize(
    "shape, dtype, net",
    [
        ((64, 64, 3), "uint8", "image"),
        ((64, 64, 1), "float32", "image"),
        ((10, 10, 4), "bool", "grid"),
        ((5, 6, 1), "uint8", "grid"),
        ((4, 6, 1), "uint8", "dense"),  # too small for the convolutions of a grid
        ((10, 5), "float32", "dense"),
        ((7,), "float32", "dense"),
        ((), "int32", "dense"),
    ],
)
def test_auto_makes_of_one_array_what_the_name_of_the_net_makes(shape, dtype, net):
    spec, names = ArraySpec(shape, dtype), {"image": "Image64", "grid": "Grid", "dense": "Dense"}
    assert encoders.net_for(spec) == net
    for room in (encoders, decoders):
        assert room.Auto().make(spec) == getattr(room, names[net])().make(spec)


@pytest.mark.usefixtures("quick_compile")
def test_auto_of_a_dictionary_reads_and_draws_each_leaf_with_its_own_net():
    leaves = {"left": (5, 5, 1), "right": (5, 5, 1), "speed": (), "place": (3,)}
    spec = DictSpec(tuple((name, ArraySpec(leaves[name], "float32")) for name in sorted(leaves)))
    encoder = encoders.Auto(grid=encoders.Grid(2, 8), dense=encoders.Dense(4)).make(spec)
    decoder = decoders.Auto(grid=decoders.Grid(2), dense=decoders.Dense(4)).make(spec)
    zeros = {name: jnp.zeros((2, 3, *shape)) for name, shape in leaves.items()}

    @jax.jit
    def run(key):
        variables = encoder.init(key, zeros, True)
        seen = {
            name: encoder.apply(variables, zeros | {name: zeros[name] + 1.0}, False)
            for name in leaves
        }
        drawn = decoder.apply(decoder.init(key, seen["left"], True), seen["left"], False)
        return encoder.apply(variables, zeros, False), seen, drawn

    nothing, seen, drawn = run(jax.random.key(0))
    assert nothing.shape == (2, 3, 8 + 4 + 8 + 4)
    ends = {"left": (0, 8), "place": (8, 12), "right": (12, 20), "speed": (20, 24)}  # by name
    for name, (begin, end) in ends.items():
        moved = np.flatnonzero(np.asarray(seen[name] != nothing).any((0, 1)))
        assert len(moved) and moved.min() >= begin and moved.max() < end
    assert {name: x.shape for name, x in drawn.items()} == {n: x.shape for n, x in zeros.items()}
