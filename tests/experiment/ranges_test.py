"""Ranges of numeric fields: every config that ships has them, and `validate` asks for them."""

import dataclasses
import importlib
import math

import jax
import pytest

from launch.flags import adjust_experiment, experiment_names, load_experiment
from mbrl_jax.datasets import Config as DataConfig
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config, rooms
from mbrl_jax.experiment.annotations import config_classes, hints_of, is_config, members, tag
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.members import parse_inside
from mbrl_jax.types import Range, bounded, number

ROOMS = (
    "agents",
    "behaviours",
    "behaviours.planning",
    "cores",
    "envs",
    "networks.decoders",
    "networks.encoders",
    "replay",
    "world_models",
    "world_models.combinators",
)


def _below(hint):
    """Everything that an annotation names, unions and tuples taken apart."""
    for member in members(hint):
        yield member
        for inner in getattr(member, "__args__", ()):
            yield from _below(inner)


def _shipped():
    """All config classes: those of the rooms, of an experiment, and what they hold."""
    found, left = set(), [Experiment, DataConfig]
    for room in (f"mbrl_jax.{name}" for name in ROOMS):
        package = importlib.import_module(room)
        names = rooms.names(room)
        if hasattr(package, "__path__"):
            for name in names:
                left.append(importlib.import_module(f"{room}.{name}").Config)
        else:
            left += [getattr(package, name) for name in names]
    left.append(importlib.import_module("mbrl_jax.behaviours.planning.mppi").Config)
    while left:
        cls = left.pop()
        if cls not in found:
            found.add(cls)
            left += [
                c
                for hint in hints_of(cls).values()
                for h in _below(hint)
                for c in config_classes(h)
            ]
            defaults = (field.default for field in dataclasses.fields(cls))
            left += [type(default) for default in defaults if is_config(default)]
    return sorted(found, key=tag)


def test_every_number_of_every_config_that_ships_has_a_range():
    shipped = _shipped()
    assert len(shipped) > 40
    missing = [
        f"{tag(cls)}.{field.name}"
        for cls in shipped
        for field in dataclasses.fields(cls)
        if {int, float} & set(_below(hints_of(cls)[field.name]))
        and not isinstance(field.metadata.get("range"), Range)
    ]
    assert not missing


@pytest.mark.parametrize("name", experiment_names())
def test_experiments_that_ship_lie_within_their_ranges(name):
    config.check_ranges(load_experiment(name))


MAMBA2, PPO = "model.core=mamba2", "behaviour=ppo"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["agent.num_starts=0"], "at least 1"),
        (["agent.num_starts=-5"], "at least 1"),
        (["agent.context_length=0"], "at least 1"),
        (["behaviour.horizon=0"], "at least 1"),
        (["behaviour.num_bins=1"], "at least 2"),
        (["behaviour.gamma=2"], "at least 0 and at most 1"),
        (["behaviour.low_fraction=2"], "at least 0 and at most 1"),
        (["behaviour.layers=-1"], "at least 0"),
        (["behaviour.optimiser.learning_rate=-1e-3"], "at least 0"),
        (["behaviour.optimiser.b1=1"], "at least 0 and below 1"),
        (["behaviour.optimiser.clip_norm=0"], "above 0"),
        ([PPO, "behaviour.epochs=0"], "at least 1"),
        ([PPO, "behaviour.clip=0"], "above 0"),
        (["model.classes=0"], "at least 1"),
        (["model.groups=0"], "at least 1"),
        (["model.num_bins=0"], "at least 2"),
        (["model.num_bins=1"], "at least 2"),
        (["model.unimix=2"], "at least 0 and at most 1"),
        (["model.head_layers=-1"], "at least 0"),
        (["model.core.width=0"], "at least 1"),
        (["model.encoder.width=0"], "at least 1"),
        ([MAMBA2, "model.core.layers=-1"], "at least 1"),
        ([MAMBA2, "model.core.head_size=0"], "at least 1"),
        ([MAMBA2, "model.core.chunk_size=0"], "at least 1"),
        ([MAMBA2, "model.core.conv_width=0"], "at least 1"),
        ([MAMBA2, "model.core.state_size=0"], "at least 1"),
        (["model.core=transformer", "model.core.block_size=0"], "at least 1"),
        (["model.core=storm", "model.core.window=1"], "at least 2"),
        (["replay.batch_size=0"], "at least 1"),
        (["replay.length=0"], "at least 1"),
        (["phases.1.random_share=1.5"], "at least 0 and at most 1"),
        (["phases.1.iterations=-1"], "at least 0"),
        (["env.max_steps=0"], "at least 1"),
        (["num_envs=0"], "at least 1"),
        (["log_every=0"], "at least 1"),
        (["eval_episodes=-1"], "at least 0"),
        (["open_loop_context=0"], "at least 1 and at most 11"),
        (["open_loop_context=13"], "at least 1 and at most 11"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_a_number_out_of_range_is_refused_in_a_sentence(settings, said):
    path, _, value = settings[-1].partition("=")
    with pytest.raises(ConfigError) as caught:
        adjust_experiment(load_experiment("drama_catch"), settings, steps=64, debug=False)
    told, _, allowed = str(caught.value).partition(" is out of range: ")
    assert told.partition("=")[0] == path and float(told.partition("=")[2]) == float(value)
    assert allowed == said


def test_validate_asks_for_ranges_before_relations():
    experiment = config.override(load_experiment("drama_catch"), ["log_every=0"])
    with pytest.raises(ConfigError, match="^log_every=0 is out of range: at least 1$"):
        config.validate(experiment)  # and not a division by it


def test_each_number_of_a_tuple_is_asked_for():
    experiment = config.override(
        load_experiment("drama_catch"), [MAMBA2, "model.core.decay_range=1,-1"]
    )
    with pytest.raises(ConfigError, match=r"^model.core.decay_range.1=-1.0 is out .*: above 0$"):
        config.validate(experiment)


@pytest.mark.parametrize("value", ["1e39", "1e-50"])
def test_what_float32_does_not_hold_is_refused(value):
    experiment = config.override(load_experiment("drama_catch"), [f"behaviour.entropy={value}"])
    with pytest.raises(ConfigError, match=r"^behaviour.entropy=1e.* in float32: use "):
        config.validate(experiment)


def test_numbers_that_vary_inside_have_ranges_too():
    with pytest.raises(ConfigError, match=r"^behaviour.gamma=1e\+39 is out of range"):
        parse_inside(load_experiment("drama_catch"), ["behaviour.gamma=0.9,1e39"])


@dataclasses.dataclass(frozen=True)
class _Any:
    rate: float = number(1.0, low=0)
    bias: float = bounded(0.0, low=-math.inf)
    size: int | None = bounded(None, low=1)


def test_traced_numbers_and_none_are_left_alone_and_nan_is_not():
    jax.eval_shape(lambda rate: config.check_ranges(_Any(rate=rate)), 1.0)
    config.check_ranges(_Any(bias=-1e9))
    config.check_ranges(_Any(size=None))
    with pytest.raises(ConfigError, match="^bias=nan is out of range: any number$"):
        config.check_ranges(_Any(bias=math.nan))
    assert config.from_json(config.to_json(_Any(rate=-1.0))) == _Any(rate=-1.0)  # reads what ran
