"""Pictures of a checkpoint, drawn by another process than the one that trains."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import restore
from mbrl_jax.train import run, trained
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")

ROOT = Path(__file__).resolve().parents[2]
STEPS = small.catch().steps


@pytest.fixture(scope="module")
def original(programs_kept, tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "run"
    run.run(small.catch(), path, num_seeds=2)
    return path


@pytest.fixture
def finished(original, tmp_path):
    """A run of its own for each test, with the checkpoints 20 and 24."""
    shutil.copytree(original, path := tmp_path / "run")
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["20", str(STEPS)]
    return path


def state_of(path):
    """Names, sizes and times of all that lies there."""
    files = sorted(path.rglob("*"))
    return [(p, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


@pytest.mark.parametrize(("which", "step"), [("newest", STEPS), ("20", 20)])
def test_a_checkpoint_is_drawn_and_the_workdir_is_left_alone(finished, tmp_path, which, step):
    before = state_of(finished)
    assert trained.draw_open_loop(finished, tmp_path / "strip.png", which) == step
    assert (tmp_path / "strip.png").read_bytes().startswith(b"\x89PNG")
    assert state_of(finished) == before


def test_the_rows_of_the_replay_are_not_read(finished, tmp_path):
    shutil.rmtree(finished / "replay")
    assert trained.draw_open_loop(finished, tmp_path / "strip.png") == STEPS
    experiment, programs, agent, keys = trained.restore_run(finished)
    with pytest.raises(ConfigError, match="no checkpoint .* can be used"):
        trained.restore_state(finished, programs, keys)
    assert trained.evaluate_seeds(experiment, programs, agent, keys, 1).finished.all()


def vanishing(monkeypatch, change):
    """Make `change()` happen while the first checkpoint is being read."""
    read, changes = restore.checked_meta, [change]

    def reading(folder):
        if changes:
            changes.pop()()
        return read(folder)

    monkeypatch.setattr(restore, "checked_meta", reading)


def test_where_the_newest_checkpoint_vanishes_the_other_one_serves(finished, tmp_path, monkeypatch):
    vanishing(monkeypatch, lambda: shutil.rmtree(finished / "checkpoints" / str(STEPS)))
    assert trained.draw_open_loop(finished, tmp_path / "strip.png") == 20


def test_where_training_replaces_all_checkpoints_the_new_one_serves(
    finished, tmp_path, monkeypatch
):
    folder = finished / "checkpoints"

    def go_on():
        (folder / str(STEPS)).rename(folder / "44")
        shutil.rmtree(folder / "20")

    vanishing(monkeypatch, go_on)
    assert trained.draw_open_loop(finished, tmp_path / "strip.png") == STEPS  # its own number


def test_real_beside_imagined_is_an_animation_of_the_seeds_in_turn(finished, tmp_path):
    before = state_of(finished)
    told = trained.Imagined(episodes=3, context=2, rows=7, milliseconds=120)
    assert trained.animate_open_loop(finished, tmp_path / "x.gif", told=told) == STEPS
    with Image.open(tmp_path / "x.gif") as gif:
        lasting = []
        for t in range(gif.n_frames):
            gif.seek(t)
            lasting.append(gif.info["duration"])
    # Rows 0, 1 are seen; row 1 and the last one stand for four rows' time.
    assert lasting == [120, 480, 120, 120, 120, 120, 480] * 3
    assert state_of(finished) == before


def test_an_animation_needs_rows_to_imagine(finished, tmp_path):
    for told in (trained.Imagined(context=8, rows=8), trained.Imagined(rows=1)):
        with pytest.raises(ConfigError, match="give a --context of at least 1 and more --rows"):
            trained.animate_open_loop(finished, tmp_path / "x.gif", told=told)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--out is missing"),
        (["--workdir=x", "--out=strip.gif"], "must end in .png and lie in an existing directory;"),
        (["--workdir=x", "--gif=strip.png"], "must end in .gif"),
        (["--workdir=x", "--out=strip.png", "--rows=9"], "--rows is of the animation: give --gif"),
        (["--workdir=x", "--out=no/such/strip.png"], "existing directory"),
        (["--workdir=tests", "--out=/tmp/strip.png"], "tests holds no run"),
    ],
)
def test_what_users_get_wrong_is_one_sentence(flags, sentence):
    command = [sys.executable, "-m", "launch.open_loop", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and sentence in last


def test_the_command_draws(finished, tmp_path):
    out, gif = tmp_path / "a b.png", tmp_path / "a b.gif"
    command = [sys.executable, "-m", "launch.open_loop", f"--workdir={finished}", f"--out={out}"]
    command += [f"--gif={gif}", "--episodes=1", "--rows=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"step {STEPS}: {out}\nstep {STEPS}: {gif}\n"
    assert out.stat().st_size > 1000 and gif.read_bytes().startswith(b"GIF89a")
