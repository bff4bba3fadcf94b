"""Rows reach a mirror when a checkpoint covers them, each step once."""

import sys
import types

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.mirrors import mirror
from mbrl_jax.runs.metrics import MetricsWriter, read_metrics

ABOUT = mirror.About("run", {"seed": 0}, begins=False)


class Noted:
    """A mirror in memory."""

    def __init__(self, last_step=-1, broken=False):
        self.last_step, self.broken = last_step, broken
        self.steps, self.rows, self.closed = [], [], None

    def write(self, step, rows):
        if self.broken:
            raise OSError("no network\nat all")
        self.steps.append(step)
        self.rows += rows

    def close(self, *, failed):
        self.closed = failed


def opened(path, *places, warn=None):
    makes = {f"place{i}": lambda workdir, about, one=one: one for i, one in enumerate(places)}
    return mirror.Mirrors(path, makes, ABOUT, warn or pytest.fail)


def write(writer, *steps):
    for step in steps:
        writer.write(step, [{"seed": i, "env_steps": step, "model/loss": 0.5} for i in (0, 1)])


def test_rows_wait_for_their_checkpoint(tmp_path):
    place = Noted()
    with MetricsWriter(tmp_path, 2, None) as writer, opened(tmp_path, place) as mirrored:
        mirrored.settled(0)
        write(writer, 10, 20, 30)
        assert place.steps == []
        mirrored.settled(20)
        assert place.steps == [10, 20]
        mirrored.settled(20)
        write(writer, 40)
        mirrored.settled(40)
    assert place.steps == [10, 20, 30, 40] and place.closed is False
    assert place.rows == read_metrics(tmp_path)


def test_a_resume_mirrors_what_a_kill_left_and_nothing_twice(tmp_path):
    with MetricsWriter(tmp_path, 2, None) as writer:
        write(writer, 10, 20, 30)
    behind, ahead = Noted(last_step=10), Noted(last_step=30)
    with MetricsWriter(tmp_path, 2, 20) as writer, opened(tmp_path, behind, ahead) as mirrored:
        mirrored.settled(20)
        assert behind.steps == [20]
        write(writer, 30, 40)
        mirrored.settled(40)
    assert behind.steps == [20, 30, 40]
    assert ahead.steps == [40]  # an older checkpoint was used: its rows were mirrored before


def test_a_half_written_row_is_not_read(tmp_path):
    place = Noted()
    with MetricsWriter(tmp_path, 2, None) as writer:
        write(writer, 10)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 20, ')
        with opened(tmp_path, place) as mirrored:
            mirrored.settled(20)
            assert place.steps == [10]
            with open(tmp_path / "metrics.jsonl", "a") as file:
                file.write('"seed": 0}\n')
            mirrored.settled(20)
    assert place.steps == [10, 20]


def test_a_mirror_that_fails_is_left_out_and_said_once(tmp_path):
    said, good = [], Noted()
    with (
        MetricsWriter(tmp_path, 2, None) as writer,
        opened(tmp_path, Noted(broken=True), good, warn=said.append) as mirrored,
    ):
        write(writer, 10, 20)
        mirrored.settled(20)
    assert good.steps == [10, 20] and len(said) == 1
    assert said[0].startswith("--mirror=place0 failed (no network): the run goes on without it")


def test_an_error_of_the_run_is_told(tmp_path):
    place = Noted()
    with pytest.raises(KeyError), opened(tmp_path, place):
        raise KeyError
    assert place.closed is True


def test_one_that_cannot_be_opened_closes_the_others(tmp_path):
    def refuse(workdir, about):
        raise ConfigError("no")

    place = Noted()
    with pytest.raises(ConfigError):
        mirror.Mirrors(tmp_path, {"a": lambda *_: place, "b": refuse}, ABOUT, pytest.fail)
    assert place.closed is True


def test_names_that_are_none_are_one_sentence(monkeypatch):
    with pytest.raises(ConfigError, match="--mirror=wendb: there is no such mirror"):
        mirror.load(["wendb"])
    with pytest.raises(ConfigError, match="--mirror=no.such: there is no such mirror"):
        mirror.load(["no.such"])
    with pytest.raises(ConfigError, match="os.path has no make"):
        mirror.load(["os.path"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "mbrl_jax.mirrors.wandb", raising=False)
    with pytest.raises(ConfigError, match=r"--mirror=wandb needs the package wandb, .*pip install"):
        mirror.load(["wandb"])
    own = types.ModuleType("own_mirror.file")
    own.make = lambda workdir, about: Noted()
    for name, module in (("own_mirror", types.ModuleType("own_mirror")), ("own_mirror.file", own)):
        monkeypatch.setitem(sys.modules, name, module)
    assert mirror.load(["own_mirror.file"]) == {"own_mirror.file": own.make}
