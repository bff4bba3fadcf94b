"""Runs as one table: where rows come from, the settings that differ, every metric."""

import numpy as np
import pandas
import pytest

import mbrl_jax
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import records
from mbrl_jax.report.frame import FIRST, write_csv
from mbrl_jax.sweeps import plan
from tests.report import runs


def test_a_row_stands_for_each_seed_and_step_with_the_settings_that_differ(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0, 0.5])
    b = runs.write(tmp_path / "b", runs.catch("model.core=gru"), [0.25], Members(7, 1, (), 3))
    frame = mbrl_jax.read_runs([a, b])
    assert tuple(frame.columns[: len(FIRST)]) == FIRST
    assert {"model.core", "model.core.state_size", "episode/return"} <= set(frame.columns)
    assert "behaviour.entropy" not in frame.columns  # equal in both
    means = frame.groupby(["model.core", "run_seed", "seed"])["episode/return"].mean()
    assert means.to_dict() == {("mamba2", 0, 0): 1.0, ("mamba2", 0, 1): 0.5, ("gru", 7, 3): 0.25}
    assert set(frame.environment) == {"Catch-bsuite"} and set(frame.workdir) == {str(a), str(b)}
    steps = frame[frame.workdir == str(a)].groupby("seed").step.max()
    assert (steps == runs.STEPS).all()
    assert frame["model.core.state_size"].isna().sum() == (frame["model.core"] == "gru").sum()
    asked = mbrl_jax.read_runs(a, settings=["behaviour.entropy"])
    assert set(asked["behaviour.entropy"]) == {runs.catch().behaviour.entropy}


def test_numbers_that_vary_inside_a_run_are_settings_of_their_members(tmp_path):
    inside = (("behaviour.entropy", (0.5, 0.25)),)
    path = runs.write(tmp_path / "in", runs.catch(), [1.0, 2.0, 3.0, 4.0], Members(0, 2, inside))
    frame = mbrl_jax.read_runs([path])
    found = frame.groupby("behaviour.entropy")["episode/return"].mean()
    np.testing.assert_allclose([found[0.5], found[0.25]], [1.5, 3.5])


def test_a_sweep_stands_for_its_members(tmp_path):
    common = plan.Common("drama_catch", (), seed=0, num_seeds=1, steps=100)
    members = plan.plan_members(common, {("model.core=gru",): (100, 100), (): (100, 100)})
    plan.add_members(tmp_path, common, members)
    for member in members:
        runs.write(tmp_path / member.name, runs.catch(*member.settings), [1.0])
    assert mbrl_jax.read_runs(tmp_path).workdir.nunique() == 2


def test_the_csv_holds_the_same_table(tmp_path):
    paths = [
        runs.write(tmp_path / "a", runs.catch(), [1.0, 0.5]),
        runs.write(tmp_path / "b", runs.catch("model.core=gru"), [0.25], Members(7, 1, (), 3)),
    ]
    frame = mbrl_jax.read_runs(paths)
    write_csv(tmp_path / "rows.csv", records.read_runs(paths))
    read = pandas.read_csv(tmp_path / "rows.csv")
    assert list(read.columns) == list(frame.columns) and len(read) == len(frame)
    pandas.testing.assert_frame_equal(read, frame, check_dtype=False, rtol=1e-12)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_csv(tmp_path / "none" / "rows.csv", records.read_runs(paths))


def test_what_cannot_be_a_table_is_told_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="x"):
        mbrl_jax.read_runs([tmp_path / "x"])
    path = runs.write(tmp_path / "a", runs.catch(), [1.0])
    with pytest.raises(ConfigError, match="no run has the field 'model.cor'"):
        mbrl_jax.read_runs([path], settings=["model.cor"])
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ConfigError, match="needs pandas"):
        mbrl_jax.read_runs([path])
