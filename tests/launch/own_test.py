"""Experiments from a file: their faults are a sentence, and what is printed for them works."""

import shlex
import sys

import pytest

from launch import flags
from mbrl_jax.errors import ConfigError
from tests.launch.cli_test import _launch

OWN = """
import dataclasses
from experiments import mbpo_pendulum
from mbrl_jax.envs import gymnax

@dataclasses.dataclass(frozen=True)
class Mine(gymnax.Config):
    name: str = "Pendulum-v1"

def get_experiment():
    return dataclasses.replace(mbpo_pendulum.get_experiment(), env=Mine())
"""


def told(tmp_path, name, text, load=flags.load_experiment):
    """The sentence for a file; modules of other files stay as they were."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sys.modules.get(path.stem)
    with pytest.raises(ConfigError) as error:
        load(str(path))
    assert sys.modules.get(path.stem) is before or "get_experiment" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["gymnax.py", "json.py", "mbrl_jax.py", "experiments.py"])
def test_a_file_that_would_hide_a_package(tmp_path, name):
    assert "rename the file" in told(tmp_path, name, OWN)


@pytest.mark.parametrize(
    "text, words",
    [
        ("import os\ndef get_experiment(:\n", "invalid syntax in line 2 of"),
        ("\nimport no_such_package\n", "No module named 'no_such_package' in line 2 of"),
        ("from mbrl_jax import no_such_name", "no_such_name"),
        ("\n\n1 / 0\n", "ZeroDivisionError: division by zero in line 3 of"),
        ("raise SystemExit('done')", "SystemExit: done"),
        (b"\xff\xfe", "own_faulty.py"),
        ("import os", "defines no get_experiment()"),
        ("get_experiment = 3", "defines no get_experiment()"),
        ("def get_experiment(): pass", "returns a NoneType and no mbrl_jax.Experiment"),
        ("def get_experiment(x): pass", "missing 1 required positional argument"),
        ("def get_experiment():\n    return nothing", "name 'nothing' is not defined in line 2"),
    ],
)
def test_a_faulty_file_is_a_sentence(tmp_path, text, words):
    said = told(tmp_path, "own_faulty.py", text)
    assert words in said and "\n" not in said


def test_a_faulty_environment_is_a_sentence(tmp_path):
    load = lambda path: flags.load_environment(f"{path}:make")
    assert "division by zero in line 1" in told(tmp_path, "own_env_faulty.py", "1 / 0", load)


def test_a_faulty_part_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "own_part.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    experiment = flags.load_experiment("drama_catch")
    with pytest.raises(ConfigError, match="division by zero"):
        flags.adjust_experiment(experiment, ["model=own_part:Config"], None, debug=True)


@pytest.mark.slow
def test_what_is_printed_for_a_file_can_be_run(tmp_path):
    file, folder = tmp_path / "own mine.py", tmp_path / "run"
    file.write_text(OWN)
    done = _launch("train", f"--experiment={file}", "--debug", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    command = done.stdout.partition("evaluate again: ")[2].splitlines()[0]
    _, _, module, *arguments = shlex.split(command)
    assert arguments == [f"--workdir={folder}", f"--experiment={file}"]
    done = _launch(module.partition(".")[2], *arguments, "--num_episodes=1")
    assert done.returncode == 0, done.stderr


def test_flags_name_what_has_types_from_outside(tmp_path, monkeypatch):
    (tmp_path / "own_sac.py").write_text(
        "import dataclasses\nfrom mbrl_jax.behaviours import sac\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config(sac.Config):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shipped = flags.load_experiment("mbpo_pendulum")
    assert flags.flags_of_types(shipped, "mbpo_pendulum", []) == []
    settings = ["behaviour=own_sac:Config"]
    experiment = flags.adjust_experiment(shipped, settings, None, debug=False)
    found = flags.flags_of_types(experiment, "mbpo_pendulum", settings)
    assert found == ["--experiment=own_sac"]
    flags.load_types(["own_sac", "mbpo_pendulum"])


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_a_variable_that_jax_cannot_read_is_no_fault_of_the_experiment(
    module, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "eight")
    flag = {"train": "--experiment=drama_catch"}.get(module, f"--workdir={tmp_path}")
    done = _launch(module, flag, f"--workdir={tmp_path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: JAX_NUM_CPU_DEVICES=eight is no value for JAX")
