"""What is recorded of a sweep can be read, and run again."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.results import collect_metrics, collect_quality, collect_sweep, rows
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.members import Members
from mbrl_jax.sweeps import plan
from tests.report import runs

ROOT = Path(__file__).resolve().parents[2]
ABLATIONS = (("model.core=gru",), ("behaviour.rewards=shifted",), ("model.core=mamba",))


@pytest.fixture
def root(tmp_path):
    """A sweep of three members, the last of which was not evaluated."""
    common = plan.Common("drama_catch", ("log_every=10",), seed=7, num_seeds=2, steps=100)
    members = plan.plan_members(common, dict.fromkeys(ABLATIONS, (100, 100)))
    plan.add_members(tmp_path, common, members)
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
    manifest = plan.read_manifest(root)
    manifest["common"]["inside"] = ["behaviour.entropy=1e-2,2e-2"]
    plan.write_manifest(root, manifest)
    _, row = next(collect_sweep.recorded(root, "made", (), {"": 2.0}, 0.1))
    assert row["sweep_inside"] == ["behaviour.entropy=1e-2,2e-2"]


@pytest.fixture
def packed(tmp_path):
    """Three seeds of two configurations in programs of two; the last was not evaluated."""
    common = plan.Common("drama_catch", num_seeds=3, seeds_per_program=2, steps=100)
    members = plan.plan_members(common, dict.fromkeys(ABLATIONS[:2], (100, 100)))
    plan.add_members(tmp_path, common, members)
    for i, member in enumerate(members):
        lanes = Members(0, member.num_seeds, first_seed=member.first_seed)
        returns = [float(member.first_seed + lane) for lane in range(member.num_seeds)]
        greedy = None if i == 3 else [score + 10 for score in returns]
        runs.write(
            tmp_path / member.name, runs.catch(*member.settings), returns, lanes, greedy=greedy
        )
    return tmp_path


def test_programs_that_share_the_seeds_of_a_configuration_become_one_row(packed):
    (parts, row), (others, nothing) = collect_sweep.recorded(packed, "made", (), {"": 2.0}, 0.1)
    assert len(parts) == len(others) == 2 and nothing is None
    assert row["num_seeds"] == 3
    assert row["measures"]["training"]["values"] == [[0.0, 1.0, 2.0]]
    assert row["measures"]["whole"]["values"] == [[0.0, 1.0, 2.0]]
    assert row["measures"]["greedy"]["values"] == [[10.0, 11.0, 12.0]]


def test_numbers_inside_of_packed_seeds_are_refused(packed):
    manifest = plan.read_manifest(packed)
    manifest["common"]["inside"] = ["behaviour.entropy=1e-2,2e-2"]
    plan.write_manifest(packed, manifest)
    with pytest.raises(ConfigError, match="varies numbers inside of packed seeds"):
        list(collect_sweep.recorded(packed, "made", (), {"": 2.0}, 0.1))


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
    manifest = plan.read_manifest(root)
    manifest["common"]["debug"] = True
    plan.write_manifest(root, manifest)
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
        cwd=Path(__file__).resolve().parents[2],
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


def test_metrics_of_runs_become_one_table(tmp_path):
    parts = [Members(0, 1, first_seed=seed) for seed in (0, 1)]
    paths = [
        runs.write(tmp_path / f"part_{i}", runs.catch(), [0.123456 + i], part)
        for i, part in enumerate(parts)
    ]
    labelled = [("one", paths[1]), ("one", paths[0]), ("other", paths[0])]
    lines = list(collect_metrics.collected(labelled, ["episode/return", "model/none"]))
    assert [line[:2] for line in lines[::10]] == [["one", "0"], ["one", "1"], ["other", "0"]]
    assert lines[0] == ["one", "0", "10", "0.1235", ""] and lines[-1][2] == "100"
    (whole, *_) = collect_metrics.collected(labelled, ["env_steps", "episode/return"], digits=0)
    assert whole == ["one", "0", "10", "10", "0.123456"]
    with pytest.raises(ConfigError, match="part_0 holds no metrics model/none"):
        list(collect_metrics.collected(labelled[1:], ["model/none"]))
    with pytest.raises(ConfigError, match="seed 0 of one is in two runs"):
        list(collect_metrics.collected([("one", paths[0])] * 2, ["episode/return"]))


def _quality(share, found, recall, wrongly, hit):
    ends = {"found": found, "recall": recall}
    calibration = {"rows": [10, 5], "found": [wrongly, 1.0]}
    seed = {"observation": [0.5, 1 / 3], "observation_copied": [1.0, 1.0], "reward_accuracy": hit}
    seeds = [seed | {"ends": ends, "calibration": calibration}]
    return {"random_share": share, "horizon": 2, "seeds": seeds}


def test_measurements_of_models_are_kept_by_workdir_and_share_and_summed(tmp_path):
    lines = []
    for name, quality in (
        ("a", _quality(0.0, 4, 0.75, 0.5, [1.0, 0.9])),
        ("a", _quality(0.1, 0, None, None, None)),
        ("b", _quality(0.0, 4, 0.0, 0.1, [1.0, 0.5])),
        ("b", _quality(0.0, 4, 0.5, 0.1, [1.0, 0.5])),
    ):
        lines = collect_quality.with_line(lines, {"workdir": name, **quality})
    assert [(line["workdir"], line["random_share"]) for line in lines] == [
        ("a", 0.0),
        ("a", 0.1),
        ("b", 0.0),
    ]
    assert lines[0]["seeds"][0]["observation"] == [0.5, 0.33333]
    error = "33.3 to 33.3 %"
    assert collect_quality.summed(lines) == [
        ["0", "2", "2", "50.0 to 90.0 %", error, "5 of 8", "6 of 20"],
        ["0.1", "2", "1", "–", error, "0 of 0", "0 of 10"],
    ]
    other = tmp_path / "config.json"
    other.write_text("{}\n")
    with pytest.raises(ConfigError, match="config.json is no measurement"):
        collect_quality.read_lines(other)


def test_a_label_and_a_path_are_needed():
    assert rows.read_labelled(["a:b:c"], "--run") == [("a", Path("b:c"))]
    with pytest.raises(ConfigError, match="--run=runs/a is not of the form LABEL:PATH"):
        rows.read_labelled(["runs/a"], "--run")


def test_a_recorded_row_with_settings_is_drawn_anew_from_its_table(tmp_path):
    name = "minatar_breakout_settings"
    (tmp_path / f"{name}.csv").write_bytes((rows.FOLDER / f"{name}.csv").read_bytes())
    command = [sys.executable, "-m", "experiments.results.collect", f"--name={name}"]
    command += ["--redraw=breakout_settings", f"--folder={tmp_path}"]
    subprocess.run(command, check=True, cwd=rows.FOLDER.parents[1], timeout=120)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_drawn_anew_as_vectors_too_with_its_baselines(tmp_path):
    (tmp_path / "catch.csv").write_text(
        "run_seed,seed,step,env_steps,episode/return,episode/count\n"
        + "".join(f"{run},0,{step},{step},{step / 9},2\n" for run in (0, 1) for step in (3, 6, 9))
    )
    command = [sys.executable, "-m", "experiments.results.collect", f"--folder={tmp_path}"]
    command += ["--redraw=catch", "--name=catch", "--title=A title", "--baseline=random=-0.6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "catch.png").read_bytes().startswith(b"\x89PNG")
    words = (tmp_path / "catch.svg").read_text()
    assert all(word in words for word in ("A title", "random -0.6", "mean of 2 seeds"))
