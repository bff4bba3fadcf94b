"""What is told of all runs of a folder, and the fixed paths under which it is told."""

import json
import os

import pytest

from mbrl_jax.runs import files
from mbrl_jax.watch import described, find, overview
from tests import small
from tests.watch.workdirs import append, row, served, write_config

STEPS = small.catch().steps


def make_run(folder, last, first=1, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **changes)
    append(folder, [row(step, seed) for step in range(first, last + 1) for seed in (0, 1)])
    return folder


@pytest.fixture
def ask(tmp_path, monkeypatch):
    with served(tmp_path, monkeypatch, many=True) as ask:
        yield ask


def lines(ask):
    return {line["name"]: line for line in ask("runs.json").json["runs"]}


def test_runs_are_found_wherever_they_lie_and_nothing_within_them(tmp_path):
    for name in ("b", "a/deep/run", "a/ü #1"):
        make_run(tmp_path / name, 1)
    make_run(tmp_path / "b" / "checkpoints" / "5", 1)
    make_run(tmp_path / ".hidden", 1)
    make_run(tmp_path / "1/2/3/4/too_deep", 1)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "b")
    (tmp_path / "note.txt").touch()
    assert find.find(tmp_path) == (["b", "a/ü #1", "a/deep/run"], False)
    assert find.find(tmp_path / "b") == (["."], False)
    assert find.find(tmp_path / "absent") == ([], False)


def test_what_is_too_much_is_said(tmp_path, monkeypatch):
    for i in range(4):
        make_run(tmp_path / str(i), 1)
    monkeypatch.setattr(find, "MAX_RUNS", 3)
    assert find.find(tmp_path) == (["0", "1", "2"], True)


@pytest.mark.parametrize("text", ["", "[]", '{"members": 3}', '{"members": {"../x": {}, "..": 1}}'])
def test_a_damaged_plan_names_nobody(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    assert find.find(tmp_path).names == []


def test_a_line_says_how_far_each_run_is(tmp_path, ask):
    make_run(tmp_path / "whole", STEPS)
    make_run(tmp_path / "part", 9)
    make_run(tmp_path / "lost", 9)
    (tmp_path / "lost" / "member.json").write_text('{"state": "failed"}')
    members = {"whole": {}, "part": {}, "lost": {}, "later": {}}
    (tmp_path / "sweep.json").write_text(json.dumps({"members": members}))
    with files.locked(tmp_path / "part"):
        found = lines(ask)
    states = {name: line["state"] for name, line in found.items()}
    assert states == {"whole": "ended", "part": "training", "lost": "failed", "later": "waiting"}
    assert ask("runs.json").json["is_sweep"]
    part = found["part"]
    assert (part["experiment"], part["environment"]) == ("drama_catch", "Catch-bsuite")
    assert (part["step"], part["steps"], part["num_seeds"]) == (9, STEPS, 2)
    assert part["newest_return"] == pytest.approx(0.509)
    assert part["curve"]["x"] == list(range(9))
    assert part["curve"]["y"] == pytest.approx([0.501 + i / 1000 for i in range(9)])
    assert found["later"]["curve"] is None and found["whole"]["speed"] is None


def test_speed_and_time_left_are_those_of_runs_that_train(tmp_path, ask):
    random_play = described.describe(make_run(tmp_path / "a", 0)).learns_from
    metrics, clock = tmp_path / "a" / "metrics.jsonl", metrics_clock(tmp_path / "a")
    with files.locked(tmp_path / "a"):
        for i in range(3):
            append(tmp_path / "a", [row(random_play + i + 1, seed) for seed in (0, 1)])
            os.utime(metrics, (clock, clock + 10 * i))
            found = lines(ask)["a"]
    assert found["speed"] == pytest.approx(0.2)
    assert found["left"] == pytest.approx(10 * (STEPS - random_play - 3))
    found = lines(ask)["a"]
    assert found["speed"] is None and found["left"] is None


def metrics_clock(run):
    return (run / "config.json").stat().st_mtime - 1000


def test_new_runs_appear_and_the_old_ones_keep_their_numbers(tmp_path, ask):
    assert ask("runs.json").json["runs"] == []
    make_run(tmp_path / "m", 3)
    assert lines(ask)["m"]["id"] == 0
    make_run(tmp_path / "a", 5)
    append(tmp_path / "m", [row(4, 0)])
    found = lines(ask)
    assert {name: (line["id"], line["step"]) for name, line in found.items()} == {
        "m": (0, 4),
        "a": (1, 5),
    }
    (tmp_path / "m").rename(tmp_path.parent / f"{tmp_path.name}_moved")
    assert list(lines(ask)) == ["a"] and ask("run/1/data.json").json["step"] == 5
    assert ask("run/0/data.json").json["step"] == 0  # nobody else's


def test_each_run_has_its_page_under_a_number(tmp_path, ask):
    make_run(tmp_path / "a", 3)
    make_run(tmp_path / "b", 7)
    for path in ("", "watch.js", "charts.js", "watch.css", "icon.svg"):
        found = ask(f"run/1/{path}")
        assert found.status == 200 and b"mbrl_jax" in ask("run/1/").body
        assert found.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert ask("run/1/data.json").json["step"] == 7
    settings = dict(ask("run/0/settings.json").json["settings"])
    assert settings["model.core.width"] == "8" and settings["num_seeds"] == "2"
    tag = ask("run/0/data.json").headers["ETag"]
    assert ask("run/0/data.json", If_None_Match=tag).status == 304


@pytest.mark.parametrize(
    "path",
    [
        *("run/1/", "run/00/", "run/-1/", "run/a/", "run/0", "run/", "run/0/config.json", "run/٣/"),
        *("run/0/../0/data.json", "run/0/run/0/", "run/0/%2e%2e/", "run/0//etc/passwd", "a/"),
        *("run/0/runs.json", "data.json", "watch.js", "run/9999999/", "run/0/static/watch.js"),
    ],
)
def test_there_is_no_other_path(tmp_path, ask, path):
    make_run(tmp_path / "a", 1)
    assert ask(path.encode().decode("latin-1") if path.isascii() else "run/%D9%A3/").status == 404


def test_an_overview_is_for_this_machine_alone(ask):
    assert ask("runs.json", Host="evil.example").status == 421
    assert ask("run/0/", method="POST").status == 405


def test_many_rows_are_read_in_turns(tmp_path, monkeypatch, ask):
    for name in "abc":
        make_run(tmp_path / name, STEPS)
    monkeypatch.setattr(overview, "MAX_SECONDS", 0.0)
    counts = []
    for _ in range(4):
        found = ask("runs.json").json
        counts.append((len(found["runs"]), found["reading"]))
    assert counts == [(1, 2), (2, 1), (3, 0), (3, 0)]


def test_pages_that_nobody_wants_are_forgotten(tmp_path, monkeypatch):
    for i in range(4):
        make_run(tmp_path / str(i), 1)
    monkeypatch.setattr(overview, "MAX_VIEWS", 2)
    many = overview.Overview(tmp_path)
    first = many.view(0)
    assert many.view(1) and many.view(0) is first and many.view(2)
    assert many.view(0) is first and list(many._views) == [2, 0]
    assert many.view(4) is None


def test_only_returns_are_kept_of_a_run_in_the_table(tmp_path):
    make_run(tmp_path, 2)
    append(tmp_path, [row(3, 0, model__loss=1.0)])
    glance = overview._Glance(0, ".", tmp_path)
    assert glance.look(1e12, 10)["step"] == 3
    assert glance._reading.curves.metrics() == []


# ------------------------------------------------------------------------------- the configuration


def test_settings_are_called_as_flags_call_them(tmp_path):
    write_config(tmp_path, num_envs=3)
    found = dict(described.settings(tmp_path))
    assert found["num_envs"] == "3" and found["model.core"] == "mbrl_jax.cores.gru:Config"
    assert found["phases.0.random_share"] == "1.0" and found["eval_envs"] == "[]"
    assert not {"type", "debug", "schema_version", "model.core.type"} & set(found)


@pytest.mark.parametrize("text", ["", "[]", '{"experiment": 3}', "[" * 100_000])
def test_a_damaged_configuration_has_no_settings(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert described.settings(tmp_path) == []


def test_deep_and_long_settings_are_cut(tmp_path):
    deep = {"a": "x\x1b" * 9_000}
    for _ in range(200):
        deep = {"a": deep}
    many = {str(i): i for i in range(5_000)}
    (tmp_path / "config.json").write_text(json.dumps({"experiment": {"deep": deep, **many}}))
    found = described.settings(tmp_path)
    assert len(found) == 2_000 and all(len(value) <= 1_000 for _, value in found)
    assert all("\x1b" not in value for _, value in found)
