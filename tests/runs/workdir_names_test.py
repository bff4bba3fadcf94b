"""Directories of any name train, resume and evaluate."""

import os
from pathlib import Path

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.experiment import with_steps
from mbrl_jax.runs import workdir
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import run, trained
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")

NAMES = {
    "relative": "runs/catch",
    "blanks": "my runs/a b",
    "letters": "ü/漢",
    "hash": "a#b",
    "tilde inside": "a~b",
    "home": "~/x",
    "slash at the end": "x/",
    "as in an address": "a%20b?c=d&e",
    "brackets": "[red]x[/red]",
    "dollars": "$x$",
    "quotes": "a'b\"c@3",
    "new line": "a\nb",
}


@pytest.fixture(scope="module")
def made():
    """Programs of the one experiment, compiled once for all directories."""
    kept = []
    yield kept
    for close in kept[1:]:
        close()


@pytest.fixture
def shared_programs(made, monkeypatch):
    original = run.make_programs

    def make(*args):
        if not made:
            programs = original(*args)
            made.extend([programs, programs.close])
            programs.close = lambda: None
        elif len(made) == 2:  # the first run has begun to compile all that is needed
            made.append(lambda: None)
            made[0].compile_ahead = lambda *args, **options: None
        return made[0]

    for module in (run, trained):
        monkeypatch.setattr(module, "make_programs", make)


def train_resume_evaluate(directory):
    """Steps in the metrics, of a run that goes on once."""
    experiment = small.catch()
    run.run(experiment, directory)
    result = run.run(with_steps(experiment, experiment.steps + 10), directory, resume="must")
    assert all(picture.is_file() for picture in result.pictures)
    assert trained.evaluate_run(directory, 2).finished.shape == (1, 2)
    return [row["step"] for row in read_metrics(workdir.as_path(directory))], experiment.steps


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@pytest.mark.usefixtures("shared_programs")
def test_a_directory_of_that_name_serves(name, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    steps, before = train_resume_evaluate(name)
    assert steps == sorted(set(steps)) and steps[-1] == before + 10
    place = home / name[2:] if name.startswith("~/") else tmp_path / name
    assert (place / "config.json").is_file()
    beside = {path.name for path in tmp_path.iterdir()}
    assert beside == (set() if name.startswith("~/") else {Path(name).parts[0]})


@pytest.mark.usefixtures("shared_programs")
def test_a_link_serves_and_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    train_resume_evaluate(link)
    assert link.is_symlink() and (tmp_path / "real" / "config.json").is_file()
    # The run is the same under both names.
    with pytest.raises(ConfigError, match="holds a run already"):
        run.run(small.catch(), tmp_path / "real", resume="never")


def test_a_home_that_is_not_there_is_said():
    with pytest.raises(ConfigError, match=r"write \./~"):
        workdir.as_path("~nobody-of-this-name/x")


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(tmp_path):
    """FAULT 17: such a run trained until its first checkpoint, which could not be written."""
    path = tmp_path / os.fsdecode(b"run\xff")
    with pytest.raises(ConfigError, match=r"run\\xff/inside holds bytes that are no UTF-8"):
        workdir.check_usable(path / "inside")
    assert not any(tmp_path.iterdir())
