"""DreamerV3's published sizes: parameters counted by hand, and how the command line gives them."""

import math

import jax
import jax.numpy as jnp
import pytest

from experiments import dreamerv3_atari100k
from mbrl_jax.behaviours import dreamer
from mbrl_jax.experiment.experiment import with_settings
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import rssm_sizes

PONG = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6))
WALKER = EnvSpec(ArraySpec((24,), "float32"), BoundedSpec(6))
GROUPS, BLOCKS, BINS = 32, 8, 255
TOTAL = {
    "1m": 686_456,
    "12m": 10_492_616,
    "25m": 23_487_016,
    "50m": 41_646_984,
    "100m": 93_463_624,
    "200m": 165_942_536,
    "400m": 372_887_176,
}


def _count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _linear(inputs, outputs):
    return (inputs + 1) * outputs


def _mlp(inputs, width, layers, outputs):
    """Hidden layers with a scale for each number, then a linear one."""
    hidden = [_linear(i, width) + width for i in (inputs, *(width,) * (layers - 1))]
    return sum(hidden) + _linear(width, outputs)


def _blocks(inputs, outputs):
    """A matrix for each block, and biases."""
    return inputs * outputs // BLOCKS + outputs


def _convs(*channels, scales=True):
    """Kernels of side 5 from channels to channels, biases, and scales."""
    pairs = zip(channels, channels[1:], strict=False)
    return sum(25 * i * o + o + scales * o for i, o in pairs)


def _inner(size, actions, token):
    """Cell, prior, posterior, heads."""
    deter, hidden, classes, _, units = size
    stoch = GROUPS * classes
    cell = sum(_linear(x, hidden) + hidden for x in (deter, stoch, actions))
    cell += _blocks(deter + BLOCKS * 3 * hidden, deter) + deter + _blocks(deter, 3 * deter)
    prior, posterior = _mlp(deter, hidden, 2, stoch), _mlp(deter + token, hidden, 1, stoch)
    return cell + prior + posterior + sum(_mlp(deter + stoch, units, 1, n) for n in (BINS, 1))


def _image_nets(size):
    deter, _, classes, depth, units = size
    widths, small = (2 * depth, 3 * depth, 4 * depth, 4 * depth), 16 * 4 * depth
    space = _blocks(deter, small) + _linear(GROUPS * classes, 2 * units) + 2 * units
    space += _linear(2 * units, small) + 4 * depth
    up = _convs(*widths[::-1]) + _convs(widths[0], 3, scales=False)
    return _convs(3, *widths) + space + up


def _vector_nets(size, numbers):
    deter, _, classes, _, units = size
    encoder = _mlp(numbers, units, 3, 0)
    return encoder + _mlp(deter + GROUPS * classes, units, 3, numbers)


@pytest.mark.parametrize("name", rssm_sizes.SIZES)
def test_parameters_of_the_sizes_for_images_golden(name):
    """Counted by hand; the sum lies within a quarter of what the size is called, but for "1m"."""
    size = rssm_sizes.SIZES[name]
    made = rssm_sizes.sized(name).make(PONG)
    model = _count(jax.eval_shape(made.init, jax.random.key(0)).params)
    assert model == _inner(size, 6, 16 * 4 * size.depth) + _image_nets(size)

    features = size.deter + GROUPS * size.classes
    behaviour = dreamer.Config(actor_width=size.units, critic_width=size.units).make(PONG)
    learned = jax.eval_shape(behaviour.init, jax.random.key(0), jnp.zeros(features))
    acting = _count(learned.params)
    assert acting == sum(_mlp(features, size.units, 3, n) for n in (6, BINS))
    millions = (model + acting) / 1e6
    assert name == "1m" or abs(millions / int(name[:-1]) - 1) < 0.25, millions
    assert model + acting == TOTAL[name]


def test_parameters_of_the_smallest_size_for_vectors_golden():
    size = rssm_sizes.SIZES["1m"]
    model = rssm_sizes.sized("1m", images=False).make(WALKER)
    found = _count(jax.eval_shape(model.init, jax.random.key(0)).params)
    assert found == _inner(size, 6, size.units) + _vector_nets(size, 24)


@pytest.mark.parametrize("name", ["1m", "400m"])
def test_the_width_of_the_state_brings_its_size_along(name):
    size, experiment = rssm_sizes.SIZES[name], dreamerv3_atari100k.get_experiment()
    found = with_settings(experiment, [f"model.deter={size.deter}", "model.unled=masked"])
    assert found.model == rssm_sizes.sized(name)
    assert found.behaviour.actor_width == found.behaviour.critic_width == size.units


def test_what_is_said_counts_more_than_the_size():
    experiment = dreamerv3_atari100k.get_experiment()
    found = with_settings(experiment, ["model.classes=5", "model.deter=512"])
    assert (found.model.classes, found.model.hidden) == (5, 64)


def test_a_decoder_that_reads_another_state_is_refused():
    experiment = dreamerv3_atari100k.get_experiment()
    found = with_settings(experiment, ["model.deter=1024"])
    with pytest.raises(ValueError, match="model.decoder.deter=8192 must be model.deter=1024"):
        found.model.make(PONG)
