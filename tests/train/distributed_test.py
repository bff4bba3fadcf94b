"""Two processes on loopback train one run: every seed as in one process, files written once."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
# Gloo, which joins the processes, says so; from several threads, whose pieces may mix.
_GLOO = re.compile(
    r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d|\s"
)


def _command(path: Path, environment: str, num_seeds: int, steps: int = STEPS) -> list[str]:
    return [
        *(sys.executable, "-m", "launch.train", "--experiment=drama_catch", "--debug"),
        *(f"--num_seeds={num_seeds}", "--seed=5", f"--steps={steps}", f"--workdir={path}"),
        *("--set=model.core=gru", "--set=log_every=10", "--set=checkpoint_every=10"),
        *environment.split(),
    ]


def _environment(devices: int = 1, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return kept | {"JAX_NUM_CPU_DEVICES": str(devices)} | more


def _alone(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _together(command: list[str], devices: int) -> list[str]:
    """Run the command as two processes of one job, with so many devices each; what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(
                devices,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors
    lines = [[x for x in out.splitlines() if _GLOO.sub("", x)] for out, _ in said]
    return ["\n".join(kept) for kept in lines]


class Case(NamedTuple):
    """Seeds over two processes with so many devices each."""

    num_seeds: int
    devices: int
    stopped: bool = True  # after half, and gone on with
    on_host: bool = False


@pytest.fixture(
    scope="module",
    params=[
        Case(12, 4, stopped=False),  # eight of them in the first process
        pytest.param(Case(3, 4), marks=pytest.mark.slow),  # the second holds repetitions alone
        pytest.param(Case(16, 4, stopped=False), marks=pytest.mark.slow),
        pytest.param(Case(3, 1, on_host=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def runs(request, tmp_path_factory):
    """Seeds in one process, and in two."""
    case, folder = request.param, tmp_path_factory.mktemp("runs")
    on_host = "--set=env=envpool --set=env.name=CartPole-v1 --set=model.reconstruction=squared"
    environment = on_host if case.on_host else ""
    _alone(_command(folder / "one", environment, case.num_seeds))
    said = []
    for steps in (STEPS // 2, STEPS) if case.stopped else (STEPS,):
        command = _command(folder / "two", environment, case.num_seeds, steps)
        said += _together(command, case.devices)
    return folder, said, case


def test_only_the_first_process_speaks(runs):
    _, said, case = runs
    assert "returns per seed" in said[0]
    assert not any(other.strip() for other in said[1::2])
    if case.stopped:
        assert f"going on from step {STEPS // 2}" in said[2]


def test_every_seed_is_as_in_one_process(runs):
    folder, _, case = runs
    one, two = read_metrics(folder / "one"), read_metrics(folder / "two")
    assert [(r["step"], r["seed"]) for r in two] == [(r["step"], r["seed"]) for r in one]
    # On the host new episodes begin where a run is gone on with.
    last = STEPS // 2 if case.on_host else STEPS
    for a, b in zip(one, two, strict=True):
        if a["step"] <= last:
            assert a["env_steps"] == b["env_steps"] and a["episode/return"] == b["episode/return"]
    first = [[r for r in rows if r["count/updates"]][:3] for rows in (one, two)]
    for a, b in zip(*first, strict=True):
        np.testing.assert_allclose(b["model/loss"], a["model/loss"], rtol=1e-3)


def test_a_checkpoint_of_two_processes_serves_one(runs):
    folder, _, case = runs
    assert checkpoint.latest_iteration(folder / "two") == STEPS
    found = json.loads((folder / "two" / "evaluation.json").read_text())
    assert len(found["mean"]) == case.num_seeds
    done = subprocess.run(
        [sys.executable, "-m", "launch.evaluate", f"--workdir={folder / 'two'}"]
        + ["--num_episodes=2"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2/2") == case.num_seeds
