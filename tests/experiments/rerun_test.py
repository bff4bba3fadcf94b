"""Rows of results can be run again, and what is said of them is true."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.results import rerun, rows
from launch import flags as launch_flags
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.members import parse_inside
from tests.conftest import CACHE

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = rows.read_rows()


def line(**changes) -> str:
    """An invented row of two runs of two seeds."""
    row = {
        "name": "made_up",
        "title": "Made up",
        "experiment": "drama_catch",
        "num_seeds": 2,
        "seeds": [0, 1],
        "cpu_minutes": 1,
        "measures": {"training": {"values": [[1.0, 2.0], [3.0, 4.0]]}},
    }
    return json.dumps(row | changes)


def table(tmp_path, *lines: str) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def made_up(tmp_path, **changes) -> rows.Row:
    return rows.read_rows(table(tmp_path, line(**changes)))["made_up"]


# ---------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("row", SHIPPED.values(), ids=lambda row: row.name)
def test_a_shipped_row_names_an_experiment_as_it_was_recorded(row):
    experiment = launch_flags.load_experiment(row.experiment)
    experiment = launch_flags.adjust_experiment(experiment, row.set, row.steps, debug=False)
    config.validate(experiment)
    inside = parse_inside(experiment, row.sweep_inside)
    assert row.settings == math.prod(len(values) for _, values in inside)
    assert row.measures and row.cpu_minutes > 0
    for measure in json.loads(_line_of(row.name))["measures"].values():
        if "csv" in measure:
            recorded = rows.read_csv(rows.FOLDER / measure["csv"])
            own = [r for r in recorded if r["run_seed"] in row.seeds]
            assert max(r["step"] for r in own) == experiment.steps


def _line_of(name: str) -> str:
    lines = rows.TABLE.read_text().splitlines()
    return next(text for text in lines if text.strip() and json.loads(text)["name"] == name)


def test_the_rows_of_the_readme_are_there():
    assert {"catch", "catch_heldout", "catch_gru", "catch_mamba", "breakout", "pendulum"} <= {
        *SHIPPED
    }
    by_name = {m.name: m for m in SHIPPED["catch"].measures}
    twelve = [score for own in by_name["training"].recorded.values() for score in own]
    assert len(twelve) == 12 and sorted(twelve)[0] == pytest.approx(0.96)  # as README says
    assert sorted(twelve)[1] == pytest.approx(1.0)
    (first, second) = SHIPPED["pendulum"].measures[0].recorded.values()
    assert [round(x) for x in [*first, *second]] == [-217, -101, -164, -174, -168, -122]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 of .* is no row"),
        ("[]", "is no row"),
        (line(seed=[0]), r"unknown fields \['seed'\]"),
        (line(name="../x"), "letters, digits"),
        (line(seeds=[]), "at least one seed"),
        (line(num_seeds="2"), "integers"),
        (line(num_seeds=3), "no list of 3 numbers"),
        (line(measures={"greedy": {"values": [[1, None], [1, 2]]}}), "no list of 2 numbers"),
        (line(measures={"greedy": {"values": [[1, 2]]}}), "is no row"),
        (line(measures={"training": {"csv": "none.csv"}}), "none.csv is no table"),
        (line() + "\n" + line(), "'made_up' was there before"),
        ('{"name": "x"}', "it lacks"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        rows.read_rows(table(tmp_path, text))


def test_a_row_becomes_the_flags_of_the_launcher(tmp_path):
    sweep = ["behaviour.entropy=1e-3,1e-2"]
    measures = {"greedy": {"values": [[1, 2, 3, 4], [5, 6, 7, 8]]}}
    options = {"set": ["model.core=gru"], "steps": 900, "sweep_inside": sweep}
    row = made_up(tmp_path, measures=measures, **options)
    assert row.settings == 2
    assert rerun.command(row, 5, Path("/a b")) == [
        "--experiment=drama_catch",
        "--set=model.core=gru",
        "--sweep_inside=behaviour.entropy=1e-3,1e-2",
        "--steps=900",
        "--num_seeds=2",
        "--seed=5",
        "--workdir=/a b",
    ]


def test_returns_are_measured_over_the_last_fifth_and_over_all_steps():
    recorded = [
        {"seed": 0, "step": 100, "episode/return": 1.0, "episode/count": 3},
        {"seed": 0, "step": 1_000, "episode/return": 5.0, "episode/count": 1},
    ]
    assert rows.measured(rows.TRAINING, recorded) == [5.0]
    assert rows.measured(rows.WHOLE, recorded) == [2.0]


def test_a_metric_is_measured_over_the_rows_of_the_last_fifth():
    recorded = [
        {"step": step, "seed": seed, "model/kl": value}
        for step, seed, value in [
            *((80, 0, 9.0), (80, 1, 9.0), (90, 0, 1.0), (90, 1, None)),
            *((100, 0, 3.0), (100, 1, 5.0)),
        ]
    ]
    assert rows.measured("model/kl", recorded) == [2.0, 5.0]
    assert rows.measured("model/none", recorded) == [None, None]


# ---------------------------------------------------------------------------------------- judging


def judge(row, scores, setting=0):
    return rerun.judge(row, row.measures[0], scores, setting)


def test_a_mean_is_inside_or_outside_of_the_prediction_interval(tmp_path):
    row = made_up(tmp_path)  # 1, 2, 3, 4: mean 2.5, deviation 1.29; ± 4.27 for two new runs
    half = 3.182446 * 1.290994 * (1 / 4 + 1 / 2) ** 0.5
    finding = judge(row, {9: [2.5 + half - 0.01] * 2})
    assert finding.inside and len(finding.sentences) == 1
    assert "is inside -1.058 … 6.058" in finding.sentences[0]
    finding = judge(row, {9: [2.5 + half + 0.01] * 2})
    assert not finding.inside and "is OUTSIDE" in finding.sentences[0]
    assert judge(row, {9: [2.5 - half - 1, 2.5 - half + 2]}).inside  # the mean counts


def test_recorded_seeds_are_compared_number_by_number(tmp_path):
    row = made_up(tmp_path)
    _, same, other = judge(row, {0: [1.0, 2.0], 1: [3.0, 4.5], 7: [0.0, 0.0]}).sentences
    assert "--seed=0: the recorded numbers came again" in same
    assert "--seed=1: not the recorded numbers (1 of 2 differ, by up to 0.5)" in other


@pytest.mark.parametrize("scores", [[1.0, None], [1.0], [float("nan"), 1.0]])
def test_a_seed_without_a_number_is_outside(tmp_path, scores):
    finding = judge(made_up(tmp_path), {3: scores})
    assert not finding.inside and "--seed=3 has no such number" in finding.sentences[0]


def test_settings_of_a_sweep_are_judged_one_by_one(tmp_path):
    measures = {"greedy": {"values": [[1, 2, 101, 102]]}}
    options = {"sweep_inside": ["behaviour.entropy=1e-3,1e-2"], "seeds": [0]}
    row = made_up(tmp_path, measures=measures, **options)
    found = {4: [1.5, 1.5, 1.5, 1.5]}
    assert judge(row, found, 0).inside and not judge(row, found, 1).inside
    assert "setting 1" in judge(row, found, 1).sentences[0]


def test_a_single_recorded_run_makes_no_interval(tmp_path):
    options = {"num_seeds": 1, "seeds": [0], "measures": {"greedy": {"values": [[1.0]]}}}
    finding = judge(made_up(tmp_path, **options), {0: [1.0]})
    assert finding.inside and "no interval" in finding.sentences[0]
    assert "came again" in finding.sentences[1]


# ------------------------------------------------------------------------------------ the command


def start(*arguments, cwd=ROOT):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "experiments.results.rerun", *arguments],
        cwd=cwd,
        env=environment
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_row_is_run_measured_and_judged(tmp_path):
    small = ["model.core=gru", "model.core.width=8", "eval_episodes=2", "log_every=50"]
    measures = {  # random play of Catch lies within -1 … 1
        "training": {"values": [[-1.0, 1.0]]},
        "greedy": {"values": [[50.0, 51.0]]},
        "episode/length": {"values": [[9.0, 9.0]]},
    }
    options = {"set": small, "steps": 100, "seeds": [0], "measures": measures}
    path = table(tmp_path, line(**options))
    arguments = (f"--table={path}", "--row=made_up", f"--root={tmp_path / 'a b'}")
    done = start(*arguments)
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert any("training: the mean" in text and " is inside " in text for text in said)
    assert any("greedy: the mean" in text and " is OUTSIDE " in text for text in said)
    assert "made_up, episode/length, --seed=0: the recorded numbers came again" in said
    assert said[-1] == "made_up: 1 of 3 outside"
    metrics = tmp_path / "a b" / "seed_0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns, metrics.read_bytes()
    path.write_text(line(**options | {"measures": {"training": {"values": [[-1.0, 1.0]]}}}))
    again = start(*arguments)  # nothing is trained twice
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == "made_up: inside"
    assert metrics.read_bytes() == before[1]


def test_what_cannot_be_run_is_told_in_a_sentence(tmp_path):
    path = table(tmp_path, line(set=["model.nothing=1"]))
    done = start(f"--table={path}", "--row=made_up", f"--root={tmp_path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: unknown field model.nothing" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the run did not come to its end")
    done = start("--row=none")
    assert done.returncode == 1 and "there is no row 'none'; the rows are catch" in done.stderr


def test_the_list_shows_every_row():
    done = start("--list")
    assert done.returncode == 0
    assert [text.partition(":")[0] for text in done.stdout.splitlines()] == [*SHIPPED]
