"""What is read of workdirs: numbers, states, and what is said of that which cannot be read."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import drawings, groups, records
from mbrl_jax.sweeps import plan as sweep
from mbrl_jax.sweeps import status
from tests.report import runs


def test_a_finished_run_is_read(tmp_path):
    path = runs.write(
        tmp_path / "a",
        runs.catch(),
        [1.0, 0.5],
        Members(seed=3, num_seeds=2, first_seed=4),
        greedy=[0.9, 0.7],
        versions=runs.VERSIONS,
    )
    run = records.read_run(path)
    assert (run.state, run.error, run.step, run.notes) == ("finished", "", 100, ())
    assert [lane.seed for lane in run.lanes] == [(3, 4), (3, 5)]
    assert [lane.training for lane in run.lanes] == [1.0, 0.5]
    assert run.lanes[1].greedy == records.Greedy(0.7, 10, 10)
    assert run.lanes[0].curve.shape == (10, 3) and run.lanes[0].curve[-1].tolist() == [100, 1, 2]
    assert run.versions == runs.VERSIONS and all(lane.is_complete for lane in run.lanes)


@pytest.mark.parametrize("times", [1, 3])
def test_greedy_returns_during_training_are_a_dashed_line(tmp_path, times):
    run = runs.write(tmp_path / "a", runs.catch("eval_every=10"), [0.5, 1.0])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows[: 2 * times]:
        row |= {"eval/return": row["step"] / 10 + row["seed"], "eval/hard/return": 99.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = records.read_run(run)
    assert [len(lane.curve) for lane in record.lanes] == [10, 10]
    assert record.lanes[1].greedy_curve[:, 1].tolist() == [2.0, 3.0, 4.0][:times]
    grouping = groups.group_runs([record])
    mean, (line,) = drawings._curve_lines(grouping.groups[0], grouping.groups[0].pools[0], 0)
    assert line.is_baseline and line.y.tolist() == [1.5, 2.5, 3.5][:times]
    assert len(mean) == 1 and not mean[0].is_baseline


def test_the_last_fifth_counts_each_episode_once(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [0.0])
    rows = [runs.row(80, 0, 5.0), runs.row(90, 0, 1.0, 1), runs.row(100, 0, 0.0, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert records.read_run(path).lanes[0].training == 0.25


def test_lanes_of_a_sweep_inside_have_settings_of_their_own(tmp_path):
    inside = (("behaviour.entropy", (0.01, 0.03)),)
    path = runs.write(tmp_path, runs.catch(), [1, 2, 3, 4], Members(1, 2, inside))
    lanes = records.read_run(path).lanes
    assert [lane.experiment.behaviour.entropy for lane in lanes] == [0.01, 0.01, 0.03, 0.03]
    assert [lane.seed for lane in lanes] == [(1, 0), (1, 1), (1, 0), (1, 1)]
    assert [lane.training for lane in lanes] == [1, 2, 3, 4]


def test_frozen_seeds_are_found_in_checkpoints_and_in_rows(tmp_path):
    frozen = {"1": {"step": 40, "metric": "model/reward"}}
    path = runs.write(tmp_path, runs.catch(), [1.0, 1.0, 1.0], frozen=frozen)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(runs.row(100, 2, 1.0) | {"agent/frozen": 1.0}) + "\n")
    found = [lane.frozen for lane in records.read_run(path).lanes]
    assert found[0] == "" and found[1] == "frozen at step 40: model/reward was not finite"
    assert found[2].startswith("frozen by step 100")


# ------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("mean", ["null", "NaN", "Infinity"])
def test_a_finished_run_whose_returns_are_not_finite_is_finished(tmp_path, mean):
    path = runs.write(tmp_path, runs.catch(), [1.0, 1.0], greedy=[0.5, 0.25])
    written = (path / "evaluation.json").read_text().replace("0.25", mean)
    (path / "evaluation.json").write_text(written)
    run = records.read_run(path)
    assert run.state == "finished" and [lane.greedy is None for lane in run.lanes] == [False, True]
    assert run.notes == ("evaluation.json: returns of member 1 are not finite: left out",)


def test_a_finished_run_without_greedy_episodes_is_finished(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [1.0], greedy=[0.5])
    data = json.loads((path / "evaluation.json").read_text())
    (path / "evaluation.json").write_text(json.dumps(data | {"episodes": 0, "mean": [None]}))
    run = records.read_run(path)
    assert (run.state, run.notes) == ("finished", ())


def test_a_run_that_stopped_and_one_that_did_not_begin(tmp_path):
    assert records.read_run(runs.write(tmp_path / "a", runs.catch(), [1.0], until=0.5)).state == (
        "stopped"
    )
    assert records.read_run(runs.write(tmp_path / "b", runs.catch(), [1.0], until=0.0)).state == (
        "not begun"
    )


def test_a_living_holder_of_the_lock_makes_a_run_running(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [1.0], until=0.5)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid, host, state in (
        (os.getpid(), socket.gethostname(), "running"),
        (ended.pid, socket.gethostname(), "stopped"),
        (ended.pid, "another-machine", "running"),  # its rows are new
    ):
        (path / "lock").write_text(f"process {pid} on {host}\n")
        assert records.read_run(path).state == state
    os.utime(path / "metrics.jsonl", (1, 1))
    assert records.read_run(path).state == "stopped"


def test_a_member_that_failed_says_why(tmp_path):
    path = runs.write(tmp_path / "m", runs.catch(), [1.0], until=0.5)
    status.write_record(path, state="failed", attempt=3)
    (path / "train.log").write_text("=== attempt 3\nerror: the <disk> is full\n")
    run = records.read_run(path)
    assert (run.state, run.error) == ("failed", "error: the <disk> is full")


# ---------------------------------------------------------------------------------------- damage

DAMAGED = {
    "a line in the middle": ("metrics.jsonl", '{"step": 1\n{"step": 10, "seed": 0}\n', "line 1 of"),
    "lines that are no rows": ("metrics.jsonl", '{"step": "x"}\n', "1 lines of metrics.jsonl are"),
    "a seed too many": ("metrics.jsonl", '{"step": 1, "seed": 7}\n', "1 lines of metrics.jsonl"),
    "an evaluation": ("evaluation.json", "{", "evaluation.json is damaged"),
    "a list": ("evaluation.json", "[1]", "evaluation.json is damaged"),
    "other seeds": (
        "evaluation.json",
        '{"step": 100, "episodes": 1, "mean": [1, 2, 3]}',
        "evaluation.json is damaged",
    ),
    "an older evaluation": (
        "evaluation.json",
        '{"step": 50, "episodes": 1, "mean": [1]}',
        "of step 50 and not of the last, 100",
    ),
    "a quality": ("quality.json", "nonsense", "quality.json is damaged"),
    "quality of others": ("quality.json", '{"seeds": [{}, {}]}', "of 2 seeds, and the run has 1"),
    "a lineage": ("meta.json", "{}", "is no lineage of a run"),
    "brackets": ("quality.json", "[" * 100_000, "quality.json is damaged"),
}


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_left_out_and_named(case, tmp_path):
    file, text, sentence = case
    path = runs.write(tmp_path, runs.catch(), [1.0])
    (path / file).write_text(text)
    (note,) = records.read_run(path).notes
    assert sentence in note


def test_a_half_written_last_line_and_odd_numbers_do_no_harm(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [1.0], until=0.9)
    odd = json.dumps(runs.row(100, 0, None) | {"episode/return": "many", "env_steps": None})
    with (path / "metrics.jsonl").open("a") as file:
        file.write(odd + '\n{"step": 110, "se')
    (path / "evaluation.json").write_text('{"step": 100, "episodes": 4, "mean": [NaN]}')
    run = records.read_run(path)
    assert run.step == 100
    assert run.notes == ("evaluation.json: returns of member 0 are not finite: left out",)
    assert run.lanes[0].training == 1.0 and run.lanes[0].greedy is None


def test_a_configuration_of_something_else_is_unreadable(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [1.0])
    data = json.loads((path / "config.json").read_text())
    data["experiment"] = config.to_json(runs.catch().env)
    (path / "config.json").write_text(json.dumps(data))
    run = records.read_run(path)
    assert run.state == "unreadable" and "holds no experiment" in run.error


def test_a_run_without_a_configuration_is_unreadable(tmp_path):
    path = runs.write(tmp_path / "a", runs.catch(), [1.0])
    (path / "config.json").write_text("{")
    run = records.read_run(path)
    assert run.state == "unreadable" and "is not a run's configuration" in run.error
    good = runs.write(tmp_path / "b", runs.catch(), [1.0])
    assert [r.state for r in records.read_runs([path, good])] == ["unreadable", "stopped"]


def test_what_is_no_directory_of_a_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for name, sentence in (
        ("no such", "there is no directory"),
        ("empty", "is empty"),
        ("other", "there is nothing to report: no run can be read"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            records.read_runs([tmp_path / name])


def test_a_directory_that_is_named_twice_counts_once(tmp_path):
    path = runs.write(tmp_path / "a", runs.catch(), [1.0])
    (tmp_path / "link").symlink_to(path)
    assert len(records.read_runs([path, path, tmp_path / "link"])) == 1


# ------------------------------------------------------------------------------------------ sweeps


def plan(root, *settings):
    """A sweep with a member for each setting."""
    common = sweep.Common("drama_catch", num_seeds=2, settings=("num_envs=1",))
    sizes = {(setting,): (100, 100) for setting in settings}
    sweep.add_members(root, common, members := sweep.plan_members(common, sizes))
    return members


def test_members_of_a_sweep_are_read_with_their_commands(tmp_path):
    cores = ("model.core=gru", "model.core=s5", "model.core=mamba")
    done, failed, waiting = plan(tmp_path, *cores)
    runs.write(tmp_path / done.name, runs.catch(*done.settings), [1.0, 0.0], greedy=[1.0, 0.0])
    status.write_record(tmp_path / done.name, state="done", steps=100, attempt=1)
    status.write_record(tmp_path / failed.name, state="failed", attempt=4)
    (tmp_path / failed.name / "train.log").write_text("=== 4\nValueError: no\n")
    found = records.read_sweep(tmp_path)
    assert [run.state for run in found] == ["finished", "failed", "not begun"]
    assert found[1].error == "ValueError: no" and found[1].saved is None
    assert found[0].command[:4] == ("python", "-m", "launch.train", "--experiment=drama_catch")
    assert "--set=model.core=mamba" in found[2].command and waiting.name == found[2].path.name


def test_what_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no sweep: there is no sweep\.json"):
        records.read_sweep(tmp_path)
    plan(tmp_path, "model.core=gru")
    with pytest.raises(ConfigError, match="there is nothing to report"):
        records.read_sweep(tmp_path)
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    manifest["common"]["unknown"] = 1
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="is no manifest of a sweep"):
        records.read_sweep(tmp_path)
