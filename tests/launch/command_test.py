"""The installed command: it finds everything from any folder."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

from launch.command import COMMANDS, usage
from mbrl_jax.datasets import files

ROOT = Path(__file__).resolve().parents[2]


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command in a folder that is not the repository's."""
    code = "from launch.command import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_every_launcher_is_a_command():
    thin = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert set(COMMANDS) == thin - {"__init__", "command", "flags", "own"}
    assert len(usage().splitlines()) == len(COMMANDS) + 2


def test_commands_work_from_any_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from experiments import drama_catch\nget_experiment = drama_catch.get_experiment\n"
    )
    shipped = call(tmp_path, "switches", "--experiment=drama_catch")
    own = call(tmp_path, "switches", "--experiment=mine.py")
    assert shipped.returncode == own.returncode == 0, shipped.stderr + own.stderr
    assert "behaviour.rewards" in shipped.stdout and own.stdout == shipped.stdout
    unknown = call(tmp_path, "trian")
    assert unknown.returncode == 1 and "there is no command 'trian'" in unknown.stderr


def test_an_installation_holds_the_launchers_the_experiments_and_their_data(monkeypatch, tmp_path):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    include, exclude = (config["options.packages.find"][k].split() for k in ("include", "exclude"))
    found = set(find_packages(str(ROOT), include=include, exclude=exclude))
    assert {"launch", "experiments", "experiments.studies", "mbrl_jax.export"} <= found
    assert not {name for name in found if name.startswith(("tests", "experiments.benchmarks"))}
    assert "mbrl_jax = launch.command:main" in config["options.entry_points"]["console_scripts"]
    assert config["options.package_data"]["experiments"] == "data/*.npz"
    monkeypatch.chdir(tmp_path)  # where data sets that are shipped are found, too
    assert files.existing("experiments/data/pendulum.npz").is_file()
    with pytest.raises(ValueError, match="is not there"):
        files.existing("experiments/data/other.npz")
