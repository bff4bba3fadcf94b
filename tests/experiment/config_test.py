"""Overrides, validation, JSON and differences of configs."""

import dataclasses
import json
import math
import sys
import types
from typing import Any, Literal

import jax
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.types import number


def _in_module(module: str, cls: type) -> type:
    """Pretend that `cls` is `module.Config`: such configs are called after their module."""
    cls.__module__, cls.__name__, cls.__qualname__ = module, "Config", "Config"
    sys.modules[module] = types.ModuleType(module)
    sys.modules[module].Config = cls
    return cls


@dataclasses.dataclass(frozen=True)
class _Scan:
    width: int = 512
    layers: int = 2
    chunk: int = 32
    method: Literal["auto", "scan"] = "auto"


@dataclasses.dataclass(frozen=True)
class _Gru:
    width: int = 64
    layers: int = 1
    chunk: float = 0.5  # of another type than _Scan's


Scan = _in_module("fake_cores.scan", _Scan)
Gru = _in_module("fake_cores.gru", _Gru)


@dataclasses.dataclass(frozen=True)
class Dense:
    sizes: tuple[int, ...] = (32, 32)
    shape: tuple[int, float] = (1, 2.0)
    decay: float | tuple[float, ...] = 0.0


@dataclasses.dataclass(frozen=True)
class Needs:
    size: int

    def __post_init__(self):
        if self.size > 9:
            raise ValueError("size must be at most 9")


@dataclasses.dataclass(frozen=True)
class Phase:
    iterations: int = 10
    learn: bool = True

    def validate(self):
        if self.iterations < 0:
            raise ValueError("iterations must not be negative")


@dataclasses.dataclass(frozen=True)
class Run:
    name: str = "run"
    core: Scan | Gru = Scan()
    head: Dense = Dense()
    extra: Needs | Dense | None = None
    learning_rate: float = number(1e-3)
    seed: int | None = None
    phases: tuple[Phase, ...] = (Phase(5, False), Phase())
    anything: Any = 3

    def validate(self):
        if self.name == "bad":
            raise ValueError("name must not be bad")


def value_of(assignment: str, base: Run = Run()):  # noqa: B008
    path = assignment.partition("=")[0]
    return config.flatten(config.override(base, [assignment]))[path]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("name=a=b, c", "a=b, c"),
        ("name=", ""),
        ("core.width=32", 32),
        ("core.width= 1e3", 1000),
        ("core.width=-1", -1),
        ("core.method=scan", "scan"),
        ("learning_rate=3", 3.0),
        ("learning_rate=4e-4", 4e-4),
        ("seed=7", 7),
        ("seed=none", None),
        ("phases.0.learn=TRUE", True),
        ("phases.1.learn=0", False),
        ("phases.1.iterations=99", 99),
        ("head.sizes=3,4", (3, 4)),
        ("head.sizes=(3, 4)", (3, 4)),
        ("head.sizes=[5,]", (5,)),
        ("head.sizes=6", (6,)),
        ("head.sizes=()", ()),
        ("head.shape=3,4", (3, 4.0)),
        ("head.decay=1e-4", 1e-4),
        ("head.decay=0.1,0.2", (0.1, 0.2)),
        ("extra=dense", "Dense"),
        ("anything=4", 4),
    ],
)
def test_override_reads_the_annotated_type(assignment, expected):
    value = value_of(assignment)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("core.width=1.5", ["core.width", "an integer", "'1.5'"]),
        ("core.width=1e400", ["an integer"]),
        ("core.width=nan", ["an integer"]),
        ("core.width=True", ["an integer"]),
        ("learning_rate=inf", ["learning_rate", "a finite number"]),
        ("learning_rate=nan", ["a finite number"]),
        ("learning_rate=fast", ["a finite number"]),
        ("learning_rate=__import__('os')", ["a finite number"]),
        ("phases.0.learn=yes", ["true or false"]),
        ("core.method=fast", ["one of auto, scan"]),
        ("seed=x", ["an integer or none"]),
        ("head.sizes=3,x", ["comma-separated list, each an integer"]),
        ("head.shape=3", ["comma-separated list of an integer, a finite number"]),
        ("core", ["path=value", "'core'"]),
        ("=3", ["path=value"]),
        ("", ["path=value"]),
        (
            "core.widht=3",
            ["did you mean core.width?", "chunk, layers, method, width"],
        ),
        ("width=3", ["unknown field width", "did you mean core.width?", "Run has"]),
        ("core.gamma=3", ["unknown field core.gamma (core has"]),
        ("core..width=3", ["unknown field core."]),
        ("name.x=3", ["name is a value without fields"]),
        ("extra.size=3", ["extra is none", "Needs or Dense"]),
        ("phases.2.learn=1", ["unknown field phases.2", "0, 1"]),
        ("phases=3", ["phases is a config", "phases.0, phases.1"]),
        ("core=7", ["core is a config", "'7'", "scan or gru", "core.width"]),
        ("extra=7", ["Needs or Dense or none"]),
        ("head=7", ["head is a config", "head.sizes"]),
        ("extra=Needs", ["extra=Needs cannot be built", "size"]),
    ],
)
def test_override_refuses_in_one_sentence(assignment, words):
    with pytest.raises(ConfigError) as caught:
        config.override(Run(), [assignment])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_assignments_apply_in_order_and_leave_the_original_alone():
    base = Run()
    changed = config.override(base, ["core=gru", "core.width=32", "core.width=33"])
    assert changed.core == Gru(width=33, layers=2)
    assert base == Run()


def test_a_replaced_config_keeps_fields_of_the_same_name_and_type():
    base = Run(core=Scan(width=7, layers=3, chunk=4))
    assert config.override(base, ["core=gru"]).core == Gru(width=7, layers=3, chunk=0.5)
    assert config.override(base, ["core=fake_cores.gru:Config"]).core.layers == 3
    assert config.override(base, ["core=scan"]).core == base.core


def test_an_error_of_post_init_names_the_assignment():
    with pytest.raises(ConfigError, match=r"extra.size=10: size must be at most 9"):
        config.override(Run(extra=Needs(1)), ["extra.size=10"])


def test_every_core_of_drama_can_be_named():
    from mbrl_jax.cores import gru, mamba
    from mbrl_jax.world_models import drama

    base = drama.Config()
    changed = config.override(base, ["core=gru", "core.width=32"])
    assert changed.core == gru.Config(width=32, layers=base.core.layers)
    assert isinstance(config.override(base, ["core=mamba"]).core, mamba.Config)
    assert config.from_json(config.to_json(changed)) == changed


def test_validate_names_the_path():
    config.validate(Run())
    with pytest.raises(ConfigError, match=r"^phases.1: iterations must not be negative$"):
        config.validate(Run(name="bad", phases=(Phase(), Phase(-1))))
    with pytest.raises(ConfigError, match=r"^name must not be bad$"):
        config.validate(Run(name="bad"))


def test_json_round_trip_is_exact():
    run = Run(
        name="ünï",
        core=Gru(chunk=0.1 + 0.2),
        head=Dense(sizes=(), decay=(math.inf, -math.inf, -0.0)),
        extra=Needs(3),
        learning_rate=5e-324,
    )
    text = json.dumps(config.to_json(run), allow_nan=False)
    restored = config.from_json(json.loads(text))
    assert restored == run
    assert hash(restored) == hash(run)
    assert config.difference(run, restored) == []
    assert math.isnan(config.from_json(config.to_json(Run(learning_rate=math.nan))).learning_rate)


def test_json_is_tagged():
    data = config.to_json(Run())
    assert data["schema_version"] == config.SCHEMA_VERSION
    assert data["type"] == f"{__name__}:Run"
    assert data["core"]["type"] == "fake_cores.scan:Config"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wdith": 3}, ["schema_version 2", "wdith", "learning_rate"]),
        ({"schema_version": 99}, ["schema_version 99", "reads 1"]),
        ({"schema_version": None}, ["schema_version None"]),
        ({"type": "os:system"}, ["os:system", "not a frozen dataclass"]),
        ({"type": "no_such_module:Config"}, ["not a frozen dataclass"]),
        ({"type": "mbrl_jax.no_such:Config"}, ["cannot import"]),
        ({"type": "mbrl_jax..types:Config"}, ["cannot import"]),
        ({"type": 3}, ["not a frozen dataclass"]),
        ({"learning_rate": "1"}, ["config.learning_rate", "expected a finite number, got '1'"]),
        ({"name": None}, ["config.name", "expected text, got None"]),
        ({"head": {}}, ["config.head", "not a frozen dataclass"]),
        ({"extra": {"type": f"{__name__}:Needs"}}, ["config.extra cannot be read"]),
    ],
)
def test_from_json_refuses(change, words):
    data = config.to_json(Run()) | change
    with pytest.raises(ConfigError) as caught:
        config.from_json(data)
    for word in words:
        assert word in str(caught.value)


def test_from_json_refuses_what_is_no_config():
    for data in (None, 3, [], "x"):
        with pytest.raises(ConfigError):
            config.from_json(data)


def test_to_json_refuses_what_it_cannot_restore():
    with pytest.raises(ConfigError, match=r"config.anything: a list"):
        config.to_json(Run(anything=[1]))


def test_difference_names_paths_old_and_new():
    old = Run(core=Scan(width=1))
    assert config.difference(old, old) == []
    assert config.difference(old, Run(core=Scan(width=2), learning_rate=1.0)) == [
        "core.width: 1 -> 2",
        "learning_rate: 0.001 -> 1",
    ]
    assert config.difference(old, Run(core=Gru())) == [
        "core: fake_cores.scan:Config -> fake_cores.gru:Config"
    ]
    assert config.difference(old, Run(core=Scan(width=1), phases=(Phase(),))) == [
        "phases: 2 configs -> 1 configs"
    ]
    assert config.difference(old, Needs(1)) == [f"config: {__name__}:Run -> {__name__}:Needs"]
    assert config.difference(Run(learning_rate=1), Run(learning_rate=1.0)) == []


def test_numbers_may_be_traced():
    @jax.jit
    def sweep(rate):
        run = config.override(Run(learning_rate=rate), ["core=gru", "core.width=8"])
        config.validate(run)
        assert config.difference(run, run) == []
        assert config.flatten(run)["core"] == "gru"
        return run.learning_rate * 2

    assert sweep(1.5) == 3.0


def test_flatten_lists_every_path():
    flat = config.flatten(Run(core=Gru()))
    assert flat["core"] == "gru"
    assert flat["core.width"] == 64
    assert flat["head.sizes"] == (32, 32)
    assert flat["phases.0.learn"] is False
    assert "phases" not in flat
