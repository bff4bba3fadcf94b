"""What is recorded of a sweep can be read, and run again."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.results import collect_sweep, rows
from mbrl_jax.train import sweep
from mbrl_jax.train.config import ConfigError
from mbrl_jax.train.members import Members
from tests.view import runs

ABLATIONS = (("model.core=gru",), ("behaviour.rewards=shifted",), ("model.core=mamba",))


@pytest.fixture
def root(tmp_path):
    """A sweep of three members, the last of which was not evaluated."""
    common = sweep.Common("drama_catch", ("log_every=10",), seed=7, num_seeds=2, steps=100)
    members = sweep.plan_members(common, dict.fromkeys(ABLATIONS, (100, 100)))
    sweep.add_members(tmp_path, common, members)
    for i, member in enumerate(members):
        greedy = None if i == 2 else [0.5 + i, 1.0]
        experiment = runs.catch(*member.settings)
        runs.write(tmp_path / member.name, experiment, [i, 0.5], Members(7, 2), greedy=greedy)
    return tmp_path


def test_finished_members_become_rows_and_the_others_are_named(root, tmp_path):
    found = list(collect_sweep.recorded(root, "made", (), {"": 2.0}, 0.1))
    assert [row is None for _, row in found] == [False, False, True]
    table = tmp_path / "rows.jsonl"
    table.write_text("")
    collect_sweep.replace_rows(table, [row for _, row in found if row])
    read = rows.read_rows(table)
    assert [*read] == ["made_model_core_gru", "made_behaviour_rewards_shifted"]
    row = read["made_behaviour_rewards_shifted"]
    assert row.set == ("log_every=10", "behaviour.rewards=shifted")
    assert (row.steps, row.num_seeds, row.seeds) == (100, 2, (7,))
    by_name = {measure.name: measure for measure in row.measures}
    assert by_name["greedy"].recorded == {7: [1.5, 1.0]}
    assert by_name["training"].recorded == by_name["whole"].recorded == {7: [1.0, 0.5]}
    assert by_name["training"].resolution == 0.1


def test_what_varied_inside_the_programs_is_recorded(root):
    manifest = sweep.read_manifest(root)
    manifest["common"]["inside"] = ["behaviour.entropy=1e-2,2e-2"]
    sweep.write_manifest(root, manifest)
    _, row = next(collect_sweep.recorded(root, "made", (), {"": 2.0}, 0.1))
    assert row["sweep_inside"] == ["behaviour.entropy=1e-2,2e-2"]


def test_minutes_are_those_of_the_last_text_that_fits():
    minutes = collect_sweep.read_minutes(["4", "length=100:58"])
    assert collect_sweep.minutes_of(minutes, ["a=1", "length=30"]) == 4
    assert collect_sweep.minutes_of(minutes, ["a=1", "length=100"]) == 58


def test_minutes_that_are_no_number_are_named():
    with pytest.raises(ConfigError, match="'soon' is no number of minutes"):
        collect_sweep.read_minutes(["soon"])


def test_a_member_without_minutes_is_named():
    with pytest.raises(ConfigError, match="says nothing of b=2"):
        collect_sweep.minutes_of({"a=": 1.0}, ["b=2"])


def test_a_sweep_of_debug_is_refused(root):
    manifest = sweep.read_manifest(root)
    manifest["common"]["debug"] = True
    sweep.write_manifest(root, manifest)
    with pytest.raises(ConfigError, match="is a sweep of --debug, whose numbers are no results"):
        list(collect_sweep.recorded(root, "made", (), {"": 2.0}, 0.1))


def test_rows_of_the_same_name_are_replaced_where_they_stand(tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text('{"name": "a", "x": 1}\n{"name": "b", "x": 2}\n')
    collect_sweep.replace_rows(table, [{"name": "c", "x": 3}, {"name": "a", "x": 4}])
    assert [json.loads(line) for line in table.read_text().splitlines()] == [
        {"name": "a", "x": 4},
        {"name": "b", "x": 2},
        {"name": "c", "x": 3},
    ]


def test_metrics_of_rows_that_are_recorded_again_are_replaced(tmp_path):
    path = tmp_path / "made.csv"

    def recorded():
        with path.open(newline="") as file:
            return [(line["row"], line["step"]) for line in csv.DictReader(file)]

    collect_sweep.replace_metrics(path, {"a", "b"}, [{"row": "a", "step": 1}, {"row": "b"}])
    assert recorded() == [("a", "1"), ("b", "")]
    collect_sweep.replace_metrics(path, {"a"}, [{"row": "a", "step": 2}, {"row": "a", "step": 3}])
    assert recorded() == [("b", ""), ("a", "2"), ("a", "3")]
    path.write_text("run_seed,seed\n0,0\n")
    with pytest.raises(ConfigError, match="made.csv is no table of a sweep"):
        collect_sweep.replace_metrics(path, {"a"}, [])


def test_a_row_is_called_by_the_settings_that_were_chosen():
    settings = ("env.params=[memory_length=30]", "replay.length=64", "model.core=s4")
    by = ("env.params", "model.core")
    name = collect_sweep.row_name("memory", settings, by)
    assert name == "memory_env_params_memory_length_30_model_core_s4" and name.isidentifier()


def test_runs_of_several_configurations_become_one_table_and_one_picture(tmp_path):
    workdirs = [
        runs.write(tmp_path / core, runs.catch(f"model.core={core}"), [1.0, 0.5], greedy=[1.0, 0.0])
        for core in ("gru", "mamba")
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.results.collect", "--name=made"),
            *(f"--workdirs={','.join(map(str, workdirs))}", f"--folder={tmp_path}"),
        ],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == 2 * [
        "       0     0       1.000  1.000 (10)",
        "       0     1       0.500  0.000 (10)",
    ]
    assert len(rows.read_csv(tmp_path / "made.csv")) == 4 * 10
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")
