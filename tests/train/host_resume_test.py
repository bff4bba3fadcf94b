"""A run on lanes of the host, from the command line: killed, gone on with, evaluated."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mbrl_jax.runs import checkpoint, workdir
from mbrl_jax.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400


def _launch(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"launch.{module}", *flags]


def _train(path: Path) -> list[str]:
    """An ensemble of perceptrons on a MuJoCo task."""
    return _launch(
        *("train", "--experiment=mbpo_pendulum", "--debug", "--set=env=envpool"),
        *("--set=env.name=HalfCheetah-v5", "--num_seeds=2", "--seed=5", f"--steps={STEPS}"),
        *("--set=log_every=20", "--set=checkpoint_every=40", f"--workdir={path}"),
    )


def _environment() -> dict[str, str]:
    """One device, as a user has it; the tests' own process has eight."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def _finish(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(directory, iteration of the checkpoint, output of the command after SIGKILL)."""
    path = tmp_path_factory.mktemp("runs") / "killed"
    process = subprocess.Popen(
        _train(path), cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while (checkpoint.latest_iteration(path) or 0) < STEPS // 4:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended by itself"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return path, checkpoint.latest_iteration(path), _finish(_train(path))


def test_a_killed_run_goes_on_from_its_checkpoint(killed):
    path, stopped_at, output = killed
    assert STEPS // 4 <= stopped_at < STEPS
    assert f"going on from step {stopped_at}" in output
    assert workdir.read_config(path).experiment.env.name == "HalfCheetah-v5"
    rows = [row for row in read_metrics(path) if row["seed"] == 1]
    steps = np.array([row["step"] for row in rows])
    assert (np.diff(steps) > 0).all() and steps[-1] == STEPS
    # An episode takes 1,000 steps, so there is one row that is none: the first after the kill.
    env_steps = np.array([row["env_steps"] for row in rows])
    np.testing.assert_array_equal(steps - env_steps, steps > stopped_at)
    assert rows[-1]["count/updates"] == 20


def test_it_is_evaluated_from_the_command_line(killed):
    path, _, _ = killed
    output = _finish(_launch("evaluate", f"--workdir={path}", "--num_episodes=3"))
    assert output.count("0/3") == 2  # cut at the 20 steps of --debug
