"""Laws L4 to L6 and L9 of every world model, with every core, in every kind of environment."""

import dataclasses

import pytest

from mbrl_jax import testing
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    MultiDiscreteSpec,
)
from mbrl_jax.world_models import ensemble, rssm
from tests.cores.laws_test import CORES

pytestmark = pytest.mark.usefixtures("quick_compile")

VECTOR = ArraySpec((3,), "float32")
IMAGE = ArraySpec((64, 64, 3), "uint8")
NAMED = DictSpec((("camera", ArraySpec((2, 2, 1), "uint8")), ("task", ArraySpec((2,), "bool"))))
ENSEMBLE = ensemble.Config(
    members=3, elites=2, layers=1, width=8, weight_decay=1e-4, termination=True
)


@pytest.mark.parametrize(
    "core, action",
    [
        ("mamba", DiscreteSpec(2)),
        ("s4", DiscreteSpec(2)),
        pytest.param("dplr", DiscreteSpec(2), marks=pytest.mark.slow),
        ("s5", DiscreteSpec(2)),
        ("rotary", DiscreteSpec(2)),
        ("storm", DiscreteSpec(2)),
        ("gru", BoundedSpec(2)),
        ("memoryless", MultiDiscreteSpec((2, 3))),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_drama_keeps_the_laws_with_every_core(tiny_drama, core, action):
    config = dataclasses.replace(tiny_drama, core=CORES[core])
    testing.check_world_model(config, EnvSpec(VECTOR, action), length=5)


TREE = DictSpec(
    (
        ("action_mask", ArraySpec((5,), "bool")),
        ("camera", ArraySpec((5, 6, 1), "uint8")),
        ("count", ArraySpec((), "int32")),
        ("place", ArraySpec((2,), "float32")),
    )
)


@pytest.mark.parametrize("model", ["drama", pytest.param("rssm", marks=pytest.mark.slow)])
def test_models_of_dictionaries_keep_the_laws(tiny_drama, model):
    small = {"groups": 3, "classes": 4, "head_width": 8, "num_bins": 9, "free_nats": 0.0}
    config = tiny_drama
    if model == "rssm":
        config = rssm.Config(deter=8, hidden=8, blocks=2, prior_layers=1, **small)
    nets = {
        "encoder": encoders.Auto(grid=encoders.Grid(2, 8), dense=encoders.Dense(8)),
        "decoder": decoders.Auto(grid=decoders.Grid(2), dense=decoders.Dense(8)),
    }
    config = dataclasses.replace(config, **nets, reconstruction="auto")
    testing.check_world_model(config, EnvSpec(TREE, MultiDiscreteSpec((2, 3))), length=4)


def test_drama_of_images_keeps_the_laws_with_mamba2(tiny_drama):
    config = dataclasses.replace(
        tiny_drama,
        encoder=encoders.Image64(depth=1),
        decoder=decoders.Image64(depth=1),
        reconstruction="sigmoid",
    )
    testing.check_world_model(config, EnvSpec(IMAGE, DiscreteSpec(3)), length=5)


@pytest.mark.parametrize(
    "observation, action",
    [(VECTOR, BoundedSpec(2)), (VECTOR, DiscreteSpec(3)), (NAMED, MultiDiscreteSpec((2, 3)))],
    ids=["bounded", "discrete", "named_leaves"],
)
def test_the_ensemble_keeps_the_laws(observation, action):
    testing.check_world_model(ENSEMBLE, EnvSpec(observation, action))
