"""Runs are pooled into groups that differ in nothing but seed and task, and named by the rest."""

import dataclasses
import json

import pytest

from experiments import drama_atari100k, drama_catch
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import for_debug, with_steps
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import commands, groups, records
from mbrl_jax.train import fork
from tests.report import runs


def grouping(*paths):
    return groups.group_runs(records.read_runs(paths))


def seeds(pool):
    return [source.lane.seed for source in pool.sources]


def test_seeds_of_several_programs_are_pooled(tmp_path):
    # Two programs of one sweep, another --seed, and another core.
    paths = [
        runs.write(tmp_path / "a", runs.catch(), [1.0, 0.5]),
        runs.write(tmp_path / "b", runs.catch(), [0.0], Members(0, 1, first_seed=2)),
        runs.write(tmp_path / "c", runs.catch("model.core=gru"), [0.0]),
        runs.write(tmp_path / "d", runs.catch(), [0.2], Members(7)),
    ]
    found = grouping(*paths)
    assert [group.label for group in found.groups] == ["core=mamba2", "core=gru"]
    assert [group.letter for group in found.groups] == ["A", "B"] and found.notes == ()
    assert seeds(found.groups[0].pools[0]) == [(0, 0), (0, 1), (0, 2), (7, 0)]
    assert found.tasks == ["Catch-bsuite"]


def test_tasks_do_not_split_a_group(tmp_path):
    paths = [
        runs.write(tmp_path / game, runs.atari(f"{game}-v5"), [1.0]) for game in ("Pong", "Alien")
    ]
    (group,) = grouping(*paths).groups
    assert [pool.task for pool in group.pools] == ["Alien-v5", "Pong-v5"]
    assert group.label == "drama_atari100k"


def test_settings_that_vary_inside_a_program_are_groups(tmp_path):
    inside = (("behaviour.entropy", (0.01, 0.02)),)
    a = runs.write(tmp_path / "a", runs.catch(), [1, 2, 3, 4], Members(0, 2, inside))
    alone = runs.catch("behaviour.entropy=0.01")
    b = runs.write(tmp_path / "b", alone, [5.0], Members(9))
    low, high = grouping(a, b).groups
    assert (low.label, high.label) == ("entropy=0.01", "entropy=0.02")
    assert seeds(low.pools[0]) == [(0, 0), (0, 1), (9, 0)]
    assert [s.lane.training for s in high.pools[0].sources] == [3, 4]


def test_a_seed_that_two_runs_have_counts_once(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0, 1.0], until=0.5)
    b = runs.write(tmp_path / "b", runs.catch(), [0.0], greedy=[0.0])
    found = grouping(a, b)
    (pool,) = found.groups[0].pools
    assert [s.run.path.name for s in pool.sources] == ["b", "a"]
    (note,) = found.notes
    assert f"Seed 0/0 of group A on Catch-bsuite is in {a} and in {b}" in note


def test_forks_are_groups_of_their_own(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0])
    b = runs.write(tmp_path / "b", runs.catch(), [1.0], Members(1))
    link = {"parent": str(a), "step": 50, "changed": ["gamma: 1 -> 2"], "versions": {}}
    (b / fork.META).write_text(json.dumps({"lineage": [link], "complete": True}))
    found = grouping(a, b)
    assert found.groups[1].history == (("50", ("gamma: 1 -> 2",)),)
    (difference,) = groups.differences(found.groups)
    assert difference == ("fork", ("–", "at step 50: gamma: 1 -> 2"))
    assert found.groups[1].label == "fork=at step 50: gamma: 1 -> 2"


def test_only_fields_that_differ_are_listed(tmp_path):
    wide = runs.catch("model.core=gru", "model.core.width=32")
    paths = [
        runs.write(tmp_path / "a", runs.catch(), [1.0]),
        runs.write(tmp_path / "b", wide, [1.0]),
        runs.write(tmp_path / "c", runs.catch("model.core=gru", "agent.starts=trained"), [1.0]),
        runs.write(tmp_path / "d", runs.catch("model.core=gru", "stop_after=50"), [1.0]),
    ]
    found = {d.path: d.values for d in groups.differences(grouping(*paths).groups)}
    assert found == {
        "model.core": ("mamba2", "gru", "gru", "gru"),
        "model.core.width": ("64", "32", "64", "64"),
        "stop_after": ("none", "none", "none", "50"),
    }


def test_labels_stay_short_and_letters_go_on():
    assert [groups.letter(i) for i in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_experiments_have_their_names_in_labels(tmp_path):
    paths = [
        runs.write(tmp_path / "a", runs.catch(), [1.0]),
        runs.write(tmp_path / "b", runs.catch("behaviour.entropy=0.5"), [1.0]),
        runs.write(tmp_path / "c", runs.atari("Pong-v5"), [1.0]),
    ]
    labels = [group.label for group in grouping(*paths).groups]
    assert labels == ["drama_catch entropy=0.02", "drama_catch entropy=0.5", "drama_atari100k"]


# ---------------------------------------------------------------------------------------- commands

CATCH = drama_catch.get_experiment()
BASES = {"drama_catch": commands.Base("drama_catch", CATCH)}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--steps=600"],
        ["--steps=2600"],
        ["--debug"],
        ["--debug", "--steps=600"],
        ["--set=model.core=gru", "--set=model.core.width=32"],
        ["--set=behaviour=ppo", "--set=behaviour.num_minibatches=2", "--steps=3000"],
        ["--set=replay.capacity=500", "--set=stop_after=800"],
        ["--set=env.max_steps=20", "--set=phases.1.random_share=0.25"],
    ],
)
def test_a_reconstructed_command_makes_the_configuration(flags, tmp_path):
    def adjusted(flags):
        made = for_debug(CATCH) if "--debug" in flags else CATCH
        made = config.override(made, [f[6:] for f in flags if f.startswith("--set=")])
        steps = [int(f[8:]) for f in flags if f.startswith("--steps=")]
        return with_steps(made, steps[0]) if steps else made

    wanted = adjusted(flags)
    found = commands.flags_between(CATCH, wanted)
    assert adjusted(found) == wanted and len(found) <= len(flags)
    path = runs.write(tmp_path / "a b", wanted, [1.0, 2.0], Members(3, 2, first_seed=4), until=0.1)
    command = commands.command_of(records.read_run(path), BASES)
    assert command.source == "reconstructed from config.json"
    assert command.text.startswith("python -m launch.train --experiment=drama_catch ")
    assert f"--seed=3 --num_seeds=2 --first_seed=4 '--workdir={path}'" in command.text


def test_a_run_from_before_a_part_brought_something_along_is_found_again():
    older = config.override(dataclasses.replace(CATCH, with_parts=()), ["model.core=gru"])
    assert commands.flags_between(CATCH, older) == ["--set=model.core=gru"]


def test_inside_of_a_program_is_reconstructed(tmp_path):
    inside = (("behaviour.entropy", (0.01, 0.02)),)
    path = runs.write(tmp_path / "a", CATCH, [1.0, 2.0], Members(0, 1, inside), until=0.1)
    text = commands.command_of(records.read_run(path), BASES).text
    assert "--sweep_inside=behaviour.entropy=0.01,0.02" in text


def test_what_flags_cannot_say_is_said_to_be_unknown(tmp_path):
    longer = drama_atari100k.get_experiment()
    assert commands.flags_between(CATCH, longer) is None  # another number of phases
    path = runs.write(tmp_path / "a", runs.atari("Pong-v5"), [1.0], until=0.1)
    assert "no experiment of this name" in commands.command_of(records.read_run(path), BASES).source
    renamed = {"drama_atari100k": commands.Base("drama_catch", CATCH)}
    assert "flags do not lead" in commands.command_of(records.read_run(path), renamed).source


def test_forks_are_reconstructed_from_their_parents(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0])
    b = runs.write(tmp_path / "b", runs.catch("behaviour.entropy=0.1"), [1.0])
    for parent, text in ((a, f"--fork={a}@50 --set=behaviour.entropy=0.1"), (tmp_path / "c", "")):
        link = {"parent": str(parent), "step": 50, "changed": ["x"], "versions": {}}
        (b / fork.META).write_text(json.dumps({"lineage": [link], "complete": True}))
        command = commands.command_of(records.read_run(b), BASES)
        assert text in command.text
    assert command.source == f"unknown: forked from {tmp_path / 'c'}@50 (x)"
