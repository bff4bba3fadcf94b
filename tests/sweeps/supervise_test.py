"""Members are run again where they fail or are preempted, and stop together."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mbrl_jax.sweeps import status, supervise

# A run as `launch.train` looks from outside: its n-th process does what the n-th word says.
RUN = """
import os, pathlib, signal, sys, time
workdir, words = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
folder = workdir / "checkpoints"
started = workdir / "started"
number = len(started.read_text()) if started.exists() else 0
with started.open("a") as file: file.write("x")
word = words[min(number, len(words) - 1)]
save = lambda: (folder / str(len(list(folder.glob("*"))) + 1)).mkdir(parents=True)
if word == "save":
    save()
if word in ("save", "idle"):
    sys.exit(75)
if word == "fail":
    sys.exit("error: out of luck")
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (save(), sys.exit(75)))
    (workdir / "ready").touch()
    time.sleep(60)
if word == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (workdir / "ready").touch()
    time.sleep(60)
"""


class Events:
    """Remembers what it is told."""

    def __init__(self):
        self.sentences, self.most = [], 0

    def started(self, task, attempt):
        self.sentences.append(f"{task.name} attempt {attempt}")

    def ended(self, task, sentence):
        self.sentences.append(f"{task.name} {sentence}")

    def tick(self, running, num_waiting):
        self.most = max(self.most, len(running))


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch):
    monkeypatch.setattr(supervise, "_LONGEST_WAIT", 0.05)


def _task(root: Path, words: str) -> supervise.Task:
    workdir = root / words
    return supervise.Task(words, str(workdir), (sys.executable, "-c", RUN, str(workdir), words), 7)


def _run(root, *words, **options):
    events = Events()
    tasks = [_task(root, word) for word in words]
    return supervise.Supervisor(tasks, events, **options).run(), events


def _starts(root: Path, words: str) -> int:
    return len((root / words / "started").read_text())


def _record(root: Path, words: str) -> dict:
    return status.read_record(root / words)


def test_a_member_that_ends_is_done(tmp_path):
    states, events = _run(tmp_path, "end")
    assert states == {"end": "done"}
    assert events.sentences == ["end attempt 1", "end done"]
    record = _record(tmp_path, "end")
    assert (record["state"], record["steps"], record["attempt"]) == ("done", 7, 1)


def test_failures_are_tried_again_as_often_as_was_asked(tmp_path):
    states, _ = _run(tmp_path, "fail,killed,end", retries=2)
    assert states == {"fail,killed,end": "done"}
    states, events = _run(tmp_path, "fail", "fail,fail,end", retries=1)
    assert states == {"fail": "failed", "fail,fail,end": "failed"}
    assert _starts(tmp_path, "fail") == 2
    assert any("ended with status 1, 2 times; see" in line for line in events.sentences)


def test_the_log_says_which_signal_ended_a_process_and_the_status_shows_it(tmp_path):
    _run(tmp_path, "killed", retries=0)
    log = (tmp_path / "killed" / status.LOG).read_text()
    assert log.startswith("=== attempt 1, ")
    assert status.last_error(log) == "error: the process was ended by SIGKILL"


def test_preemption_uses_no_retry_while_the_member_gets_on(tmp_path):
    states, _ = _run(tmp_path, "save,save,save,end", retries=0)
    assert states == {"save,save,save,end": "done"}


def test_preemption_without_progress_counts_as_a_failure(tmp_path):
    states, _ = _run(tmp_path, "idle", retries=2)
    assert states == {"idle": "failed"}
    assert _starts(tmp_path, "idle") == 3


def test_as_many_run_at_a_time_as_was_asked(tmp_path):
    for jobs in (1, 2):
        words = [f"end,{jobs}{i}" for i in range(4)]
        states, events = _run(tmp_path, *words, jobs=jobs)
        assert set(states.values()) == {"done"} and events.most <= jobs


def test_a_command_that_cannot_be_started_fails(tmp_path):
    (tmp_path / "file").write_text("")
    task = supervise.Task("x", str(tmp_path / "file"), ("true",), 1)
    assert supervise.Supervisor([task], Events(), retries=1).run() == {"x": "failed"}


def _stop_when_ready(supervisor, root: Path, words: str, *signums: int):
    def wait():
        while not (root / words / "ready").exists():
            time.sleep(0.01)
        for signum in signums:
            supervisor.receive(signum)
            time.sleep(0.3)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_signal_lets_all_save_and_starts_none(tmp_path):
    tasks = [_task(tmp_path, words) for words in ("wait", "end")]
    supervisor = supervise.Supervisor(tasks, Events())
    thread = _stop_when_ready(supervisor, tmp_path, "wait", signal.SIGTERM)
    assert supervisor.run() == {"wait": "preempted", "end": "not begun"}
    thread.join()
    assert (tmp_path / "wait" / "checkpoints" / "1").is_dir()
    assert _record(tmp_path, "wait")["state"] == "preempted"


@pytest.mark.parametrize(
    ("signums", "grace"), [((signal.SIGINT, signal.SIGINT), None), ((signal.SIGTERM,), 0.2)]
)
def test_a_second_interrupt_or_the_end_of_grace_ends_what_does_not_listen(tmp_path, signums, grace):
    supervisor = supervise.Supervisor([_task(tmp_path, "deaf")], Events(), grace=grace)
    thread = _stop_when_ready(supervisor, tmp_path, "deaf", *signums)
    began = time.monotonic()
    assert supervisor.run() == {"deaf": "preempted"}
    thread.join()
    assert time.monotonic() - began < 30
    assert _record(tmp_path, "deaf")["idle"] == 1  # nothing was saved


def test_processes_do_not_outlive_a_supervisor_that_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.sweeps import supervise_test as t\n"
        "root = Path(sys.argv[1]); t._run(root, 'wait')"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).resolve().parents[2]
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "wait" / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    supervisor.kill()
    supervisor.wait()
    while not (tmp_path / "wait" / "checkpoints" / "1").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("slot", "jobs", "gpus", "expected"),
    [
        (0, 1, "01", {}),
        (1, 2, "", {}),
        (1, 2, "01", {"CUDA_VISIBLE_DEVICES": "1"}),
        (1, 2, "0123", {"CUDA_VISIBLE_DEVICES": "1,3"}),
        (2, 4, "01", {"CUDA_VISIBLE_DEVICES": "0", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}),
        (1, 3, "0", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.300"}),
    ],
)
def test_jobs_share_the_gpus(slot, jobs, gpus, expected):
    assert supervise.slot_environment(slot, jobs, gpus) == expected


def test_jobs_share_the_cores():
    shares = [supervise.slot_cores(slot, 3, range(8)) for slot in range(3)]
    assert sorted(core for share in shares for core in share) == list(range(8))
    assert [supervise.slot_cores(slot, 3, [5, 6]) for slot in range(3)] == [[5], [6], [5]]


def test_gpus_that_the_user_named_are_taken(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert supervise.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert supervise.visible_gpus() == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert supervise.visible_gpus() == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_gets_the_cores_of_its_slot(tmp_path):
    code = "import os, sys; print('cores', sorted(os.sched_getaffinity(0)))"
    tasks = [
        supervise.Task(name, str(tmp_path / name), (sys.executable, "-c", code), 1)
        for name in ("a", "b")
    ]
    supervise.Supervisor(tasks, Events(), jobs=2).run()
    found = {(tmp_path / name / status.LOG).read_text().split("cores ")[1] for name in "ab"}
    cores = sorted(os.sched_getaffinity(0))
    assert found == {f"{supervise.slot_cores(slot, 2, cores)}\n" for slot in (0, 1)}
