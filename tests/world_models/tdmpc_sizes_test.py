"""TD-MPC2's published sizes: parameters counted by hand, and how the command line gives them."""

import math

import jax
import jax.numpy as jnp
import pytest

from experiments import tdmpc2_dmc
from mbrl_jax.behaviours import tdmpc as tdmpc_behaviour
from mbrl_jax.experiment.experiment import with_settings
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec
from mbrl_jax.world_models import tdmpc_sizes

NUMBERS, ACTIONS, BINS = 24, 6, 101
WALKER = EnvSpec(ArraySpec((NUMBERS,), "float32"), BoundedSpec(ACTIONS))
TOTAL = {
    "1m": 1_214_651,
    "5m": 4_960_618,
    "19m": 18_062_442,
    "48m": 47_208_298,
    "317m": 312_595_417,
}


def _count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _mlp(inputs, width, layers, outputs, normed=False):
    """Linear layers with biases; LayerNorm (scale and offset) behind hidden ones, or all."""
    sizes = (inputs, *(width,) * layers, outputs)
    linear = sum((i + 1) * o for i, o in zip(sizes, sizes[1:], strict=False))
    return linear + 2 * width * layers + 2 * outputs * normed


def _by_hand(size):
    both = size.latent + ACTIONS
    encoder = _mlp(NUMBERS, size.encoder_width, size.encoder_layers, size.latent, normed=True)
    dynamics = _mlp(both, size.width, 2, size.latent, normed=True)
    reward = _mlp(both, size.width, 2, BINS)
    critics = size.critics * _mlp(both, size.width, 2, BINS)
    return encoder + dynamics + reward + critics + _mlp(size.latent, size.width, 2, 2 * ACTIONS)


@pytest.mark.parametrize("name", tdmpc_sizes.SIZES)
def test_parameters_of_the_sizes_golden(name):
    """Counted by hand; the sum lies within a twentieth of what the size is called, but for "1m"."""
    size = tdmpc_sizes.SIZES[name]
    experiment = with_settings(tdmpc2_dmc.get_experiment(), [f"model.width={size.width}"])
    model, behaviour = (part.make(WALKER) for part in (experiment.model, experiment.behaviour))
    count = _count(jax.eval_shape(model.init, jax.random.key(0)).params)
    count += _count(
        jax.eval_shape(behaviour.init, jax.random.key(0), jnp.zeros(size.latent)).params
    )
    assert count == _by_hand(size) == TOTAL[name]
    assert name == "1m" or abs(count / 1e6 / int(name[:-1]) - 1) < 0.05


def test_the_published_discount_of_deepmind_control():
    """500 rows of two environment steps each."""
    experiment = tdmpc2_dmc.get_experiment()
    assert experiment.behaviour.gamma == tdmpc_behaviour.discount_for(500) == 0.99
    assert experiment.env.action_repeat == 2


def test_what_is_said_counts_more_than_the_size():
    found = with_settings(tdmpc2_dmc.get_experiment(), ["model.latent=64", "model.width=384"])
    assert (found.model.latent, found.behaviour.num_critics) == (64, 2)
