"""Every field of an experiment, with its value, range, default and meaning."""

import dataclasses

import pytest

from experiments import drama_catch
from launch import flags
from mbrl_jax.experiment import config
from mbrl_jax.experiment.printed import fields_of, listing
from mbrl_jax.types import bounded, number, switch


@dataclasses.dataclass(frozen=True)
class Small:
    """Of each kind of field one."""

    rate: float = number(0.5, "how fast", low=0, high=1)
    # Rows of a window;
    # a power of two is fastest.
    rows: int = bounded(4, low=1)
    kind: str = "a"  # which one
    odd: bool = switch(False, published=True, better=False, why="it is odd")
    nothing: int = 0


def test_a_field_is_told_with_its_range_its_default_and_what_its_class_says_of_it():
    found = {one.path: one for one in fields_of(Small(rows=8))}
    assert found["rate"][1:] == ("0.5", "", "a finite number at least 0 and at most 1", "how fast")
    assert found["rows"].value == "8" and found["rows"].default == "4"
    assert found["rows"].meaning == "Rows of a window; a power of two is fastest."
    assert found["kind"].meaning == "which one" and found["nothing"].meaning == ""
    assert found["odd"].meaning == "it is odd (published: true, better: false)"


@pytest.mark.parametrize("name", flags.experiment_names())
def test_every_shipped_experiment_is_listed_whole(name):
    experiment = flags.load_experiment(name)
    paths = [one.path for one in fields_of(experiment)]
    assert len(set(paths)) == len(paths)
    leaves = {path for path in config.flatten(experiment) if path.split(".")[0] != "eval_envs"}
    assert leaves <= set(paths)


def test_parts_name_their_room_and_values_can_be_set_again():
    experiment = drama_catch.get_experiment()
    found = {one.path: one for one in fields_of(experiment)}
    assert "mbrl_jax.cores" in found["model.core"].kind and found["model.core"].value == "mamba2"
    text = listing(experiment)
    assert f"behaviour.entropy = {experiment.behaviour.entropy:g}" in text
    some = ("model.core.width", "behaviour.entropy", "model.boundaries", "replay.capacity")
    again = config.override(experiment, [f"{path}={found[path].value}" for path in some])
    assert again == experiment
