"""The guide's environment is sound and trains, as the guide says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
GUIDE = ROOT / "mbrl_jax" / "envs" / "CUSTOM.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the guide's file in it."""
    path = tmp_path_factory.mktemp("custom")
    (text,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (path / "hunt.py").write_text(text)
    return path


def launch(folder, *command):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def commands():
    """The guide's own, without what is behind a #."""
    (block,) = re.findall(r"```\n(python -m launch.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    return [line.partition("#")[0].split()[2:] for line in block.splitlines()]


def test_the_doctor_finds_nothing(folder):
    done = launch(folder, *commands()[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hunt.py:make: 0 errors, 0 warnings" in done.stdout


@pytest.mark.slow
def test_it_trains_and_evaluates(folder):
    done = launch(folder, *commands()[1], "--debug")
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "hunt" / "open_loop.png").is_file()
    done = launch(folder, *commands()[2])
    assert done.returncode == 0 and "5/5" in done.stdout, done.stderr


def test_the_guide_is_one_page():
    assert len(GUIDE.read_text().splitlines()) <= 110
