"""Sweeps on Slurm: what is submitted, and (slow) a real cluster that takes jobs away."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.sweeps import plan, slurm, supervise
from mbrl_jax.sweeps import status as sweep_status

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90), ("1:30:00", 90), ("2-12", 3600), ("1-06:30", 1830)],
)
def test_limits_are_read_as_sbatch_reads_them(text, minutes):
    assert slurm.parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "0:30"])
def test_limits_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError, match="--time="):
        slurm.parse_minutes(text)


def _parameters(**changes):
    given = {"time": "60", "partition": None, "gpus": None, "cpus": 1, "mem": "1G", "jobs": 2}
    return slurm.make_parameters(**{**given, "grace": 60, "free": (), **changes})


def test_options_that_the_sweep_needs_cannot_be_taken():
    with pytest.raises(ConfigError, match="sets requeue itself"):
        _parameters(free=["--requeue"])
    with pytest.raises(ConfigError, match="an option of sbatch"):
        _parameters(free=["a b=1"])
    with pytest.raises(ConfigError, match="--grace=3600 must be positive and less"):
        _parameters(grace=3600)


def _fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands of Slurm that note how they were called."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    _fake(folder, "srun", "exit 1")
    _fake(folder, "sbatch", f'cp "$1" "{tmp_path}/script"; echo "Submitted batch job 7"')
    _fake(folder, "squeue", "echo 7_1; echo 9")
    _fake(folder, "scontrol", f'echo "$@" >> "{tmp_path}/scontrol"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def _task(root: Path, name: str, code: str = "") -> supervise.Task:
    return supervise.Task(name, str(root / name), (sys.executable, "-c", code), 5)


def test_an_array_is_submitted_and_members_in_the_queue_are_known(cluster):
    root = cluster / "a sweep"
    tasks = [_task(root, name) for name in "abc"]
    jobs = slurm.submit(root, tasks, _parameters(free=["qos=low"]), retries=2, grace=60)
    assert jobs == {"a": "7_0", "b": "7_1", "c": "7_2"}
    script = (cluster / "script").read_text()
    for line in (*slurm.describe(_parameters(), 3), "#SBATCH --qos=low"):
        assert line in script.splitlines()
    command = script.strip().splitlines()[-1]
    assert command.startswith(f"exec {sys.executable} -u -m submitit.core._submit")
    assert slurm.queued(root) == {"b": "7_1"}
    assert slurm.queued(cluster / "elsewhere") == {}


def test_a_command_before_the_sweep_runs_with_the_resources_of_a_task():
    command = slurm.srun(_parameters(cpus=4, gpus=1, jobs=9, free=["qos=low", "exclusive"]))
    assert command[:2] == ["srun", "--ntasks=1"]
    assert {"--gpus-per-node=1", "--cpus-per-task=4", "--qos=low", "--exclusive"} < set(command)
    assert not any(word.startswith(("--array", "--signal", "--requeue")) for word in command)


def test_what_slurm_says_is_passed_on(cluster):
    _fake(cluster / "bin", "sbatch", 'echo "sbatch: error: invalid partition" >&2; exit 1')
    with pytest.raises(ConfigError, match="did not take the sweep: .*invalid partition"):
        slurm.submit(cluster / "x", [_task(cluster, "a")], _parameters(), retries=0, grace=60)
    with pytest.raises(ConfigError, match="% in paths"):
        slurm.submit(cluster / "5%", [_task(cluster, "a")], _parameters(), retries=0, grace=60)


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_job_that_is_told_to_stop_is_requeued_unless_slurm_does(
    cluster, monkeypatch, state, requeued
):
    _fake(cluster / "bin", "squeue", f"echo {state}")
    for name, value in {"EXECUTOR": "slurm", "FOLDER": str(cluster)}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    for name, value in {"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "1", "JOB_ID": "8"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    # The member asks its supervisor to stop, and is then ended by it.
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    with pytest.raises(SystemExit) as error:
        slurm.Job(_task(cluster, "a", code), retries=0, grace=60)()
    assert error.value.code == supervise.PREEMPTED
    called = cluster / "scontrol"
    assert (called.read_text() if called.exists() else "") == "requeue 7_1\n" * requeued
    assert sweep_status.read_record(cluster / "a")["state"] == "preempted"


def test_a_member_that_is_stopped_again_and_again_without_progress_fails(cluster):
    sweep_status.write_record(cluster / "a", state="preempted", idle=supervise.MAX_IDLE - 1)
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    with pytest.raises(RuntimeError, match="without a new checkpoint"):
        slurm.Job(_task(cluster, "a", code), retries=0, grace=60)()
    assert sweep_status.read_record(cluster / "a")["state"] == "failed"


def test_a_member_that_is_done_is_not_run_again(cluster):
    job = slurm.Job(_task(cluster, "a", "open('/dev/null')"), retries=0, grace=60)
    assert job() == "done"
    (cluster / "a" / sweep_status.LOG).unlink()
    assert job() == "done"
    assert not (cluster / "a" / sweep_status.LOG).exists()


def test_a_member_that_fails_is_a_job_that_fails(cluster):
    with pytest.raises(RuntimeError, match="a failed; see"):
        slurm.Job(_task(cluster, "a", "exit(3)"), retries=0, grace=60)()


# --------------------------------------------------------------------------------- a real cluster

STEPS = 1000
CONFIGURATIONS = [
    f"model.core={core},behaviour.entropy={e}" for core in ("gru", "s5") for e in ("1e-2", "2e-2")
]


def _sweep(root: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [
        *(sys.executable, "-m", "launch.sweep", "--experiment=drama_catch", "--debug"),
        *("--num_seeds=2", "--seed=5", f"--steps={STEPS}", f"--root={root}"),
        *("--set=log_every=20", "--set=checkpoint_every=40"),
        *("--grid=model.core=gru,s5", "--grid=behaviour.entropy=1e-2,2e-2", *flags),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def _print(done: subprocess.CompletedProcess) -> None:
    print(done.stdout, done.stderr, flush=True)
    assert done.returncode == 0


def _statuses(root: Path) -> dict[str, sweep_status.Status]:
    members = plan.members_of(plan.read_manifest(root))
    return {member.name: sweep_status.member_status(root, member) for member in members}


def _wait(condition, what: str, timeout: float = 900.0) -> None:
    print(f"{time.strftime('%T')} waiting until {what}", flush=True)
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s until {what}"
        time.sleep(0.02)


def _processes(*words: str) -> list[int]:
    """Processes whose command lines hold all words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


def _in_the_middle(root: Path, name: str) -> None:
    """Wait until a member has trained a third of its steps; it must not be much further."""
    reached = lambda: (checkpoint.latest_iteration(root / name) or 0) >= STEPS // 3
    _wait(reached, f"{name} is at a third")
    assert checkpoint.latest_iteration(root / name) < STEPS


def _kill(process: int, signum: int) -> None:
    print(f"$ kill -{signal.Signals(signum).name} {process}", flush=True)
    os.kill(process, signum)


def _disturb(root: Path) -> None:
    """Sweep on Slurm: one member is requeued, one told to save, a process and a task killed."""
    on_slurm = ("--executor=slurm", "--time=30", "--cpus=1", "--mem=2000", "--grace=60")
    _print(_sweep(root, *on_slurm))
    _print(_sweep(root, *on_slurm))  # all are in the queue: nothing is submitted twice
    jobs = slurm.queued(root)
    assert list(jobs) == list(_statuses(root)) == CONFIGURATIONS
    requeued, told, killed, lost = CONFIGURATIONS
    _in_the_middle(root, requeued)
    print("$ scontrol requeue", jobs[requeued], flush=True)
    subprocess.run(["scontrol", "requeue", jobs[requeued]], check=True)
    _in_the_middle(root, told)
    _kill(sweep_status.read_record(root / told)["pid"], signal.SIGUSR2)  # as before the limit
    _in_the_middle(root, killed)
    (process,) = _processes("launch.train", f"--workdir={root / killed} ")
    _kill(process, signal.SIGKILL)
    _in_the_middle(root, lost)
    _kill(sweep_status.read_record(root / lost)["pid"], signal.SIGKILL)
    _wait(lambda: lost not in slurm.queued(root), f"Slurm has seen that {lost} failed")
    assert _statuses(root)[lost].state == "failed"
    _print(_sweep(root, "--status"))
    _print(_sweep(root, *on_slurm))  # submits that one only
    assert slurm.queued(root)[lost] != jobs[lost]
    _wait(lambda: not slurm.queued(root), "the queue is empty", 1800)
    _print(_sweep(root, "--status"))


def _check_equal(calm: Path, rough: Path) -> None:
    """Every member is complete, started twice or more, and wrote what the undisturbed one did."""
    for name, status in _statuses(rough).items():
        assert (status.state, status.step, status.checkpoint) == ("done", STEPS, STEPS)
        assert status.attempt >= 2
        rows = [(row["step"], row["seed"]) for row in read_metrics(rough / name)]
        assert len(set(rows)) == len(rows) and rows[-2:] == [(STEPS, 0), (STEPS, 1)]
        undisturbed = (calm / name / "metrics.jsonl").read_bytes()
        assert (rough / name / "metrics.jsonl").read_bytes() == undisturbed
        print(f"{name}: {status.attempt} attempts, {len(rows)} rows, equal byte for byte")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm: no sbatch on PATH")
def test_a_sweep_on_slurm_that_is_disturbed_equals_one_that_is_not(tmp_path):
    pytest.importorskip("submitit")
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    _print(_sweep(calm, "--jobs=1", "--retries=0"))
    _disturb(rough)
    _check_equal(calm, rough)
