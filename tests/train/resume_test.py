"""A run that is killed and started again equals one that was not, bit for bit (law L8)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import checkpoint, workdir
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import preemption, trained

ROOT = Path(__file__).resolve().parents[2]
STEPS = 600


def _command(path: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "launch.train", "--experiment=drama_catch", "--debug"),
        *("--num_seeds=2", "--seed=5", f"--steps={STEPS}", f"--workdir={path}"),
        *("--set=model.core=gru", "--set=log_every=20", "--set=checkpoint_every=40", *more),
    ]


def _environment() -> dict[str, str]:
    """One device, as a user has it; the tests' own process has eight."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def _run_to_the_end(path: Path) -> str:
    done = subprocess.run(
        _command(path), cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _kill_half_way(path: Path) -> int:
    """Start the run, SIGKILL it after a checkpoint in its middle; the checkpoint's iteration."""
    process = subprocess.Popen(
        _command(path), cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while (checkpoint.latest_iteration(path) or 0) < STEPS // 3:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended by itself"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return checkpoint.latest_iteration(path)


def _final_state(path: Path):
    saved = workdir.read_config(path)
    programs = trained.make_programs(
        saved.experiment, trained.build(saved.experiment), saved.members
    )
    return trained.restore_state(path, programs, saved.members.keys())[:3]


def _plain(state):
    """Typed keys as numbers."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    whole, killed = folder / "whole", folder / "killed"
    _run_to_the_end(whole)
    stopped_at = _kill_half_way(killed)
    output = _run_to_the_end(killed)
    return whole, killed, stopped_at, output


def test_the_run_was_killed_in_the_middle(runs):
    _, _, stopped_at, output = runs
    assert STEPS // 3 <= stopped_at < STEPS
    assert f"going on from step {stopped_at}" in output


def test_metrics_are_equal_byte_for_byte(runs):
    whole, killed, _, _ = runs
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
    rows = read_metrics(whole)
    steps = [row["step"] for row in rows[::2]]
    assert steps == [13, 19, *range(20, STEPS + 1, 20)]  # 13 and 19 are ends of phases


def test_final_states_are_equal_bit_for_bit(runs):
    whole, killed, _, _ = runs
    iteration, state, meta = _final_state(whole)
    other_iteration, other, other_meta = _final_state(killed)
    assert iteration == other_iteration == STEPS
    assert meta["env_steps"] == other_meta["env_steps"]
    jax.tree.map(np.testing.assert_array_equal, _plain(state), _plain(other))


def test_the_policy_of_a_finished_run_can_be_loaded_and_acts(runs):
    whole = runs[0]
    policy, carry = trained.load_policy(whole, seed_index=1)
    env = trained.build(workdir.read_config(whole).experiment).env
    state, timestep = env.reset(jax.random.key(0))
    for i in range(3):
        carry, action = policy(jax.random.key(i), carry, timestep)
        state, timestep = env.step(state, jax.random.key(i), action)
    assert action.shape == () and 0 <= int(action) < 3
    with pytest.raises(ConfigError, match="holds the seeds 0 … 1"):
        trained.load_policy(whole, seed_index=2)


def test_evaluation_from_the_command_line(runs):
    done = subprocess.run(
        [sys.executable, "-m", "launch.evaluate", f"--workdir={runs[0]}", "--num_episodes=3"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3/3") == 2


@pytest.mark.parametrize(
    ("which", "sentence"),
    [("7", f"choose newest, best, or one of {STEPS}, "), ("best", ""), (str(STEPS), "")],
)
def test_a_checkpoint_can_be_chosen_for_evaluation(runs, which, sentence):
    if sentence:
        with pytest.raises(ConfigError, match=sentence):
            trained.restore_run(runs[0], which)
    else:
        experiment, _, agent, _ = trained.restore_run(runs[0], which)
        assert experiment.name == "drama_catch" and agent.frozen_at.shape == (2,)


def test_sigterm_ends_with_its_status_and_the_second_process_is_refused(tmp_path):
    path = tmp_path / "run"
    process = subprocess.Popen(
        _command(path, "--steps=100000"),
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not checkpoint.latest_iteration(path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second = subprocess.run(
        _command(path), cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 1
    assert f"is being trained by process {process.pid} on " in second.stderr
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1].strip().splitlines()[-1]
    assert process.returncode == preemption.PREEMPTED
    saved = checkpoint.latest_iteration(path)
    assert said == f"SIGTERM, saved at step {saved} of 100000: the same command goes on"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--set=behaviour.entropy=0.5"], "behaviour.entropy: 0.02 -> 0.5"),
        (["--num_seeds=3"], "--num_seeds: 2 -> 3"),
        ([f"--steps={STEPS // 2}"], f"is already at step {STEPS}"),
        (["--resume=never"], "holds a run already"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(runs, more, sentence):
    done = subprocess.run(
        _command(runs[0], *more), cwd=ROOT, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and sentence in last
    assert "Traceback" not in done.stderr
