"""Run the members of a sweep to their ends: some at a time, again where they fail.

The same code runs all members on one machine (`launch.sweep --executor=local`) and one member in a
Slurm job (`mbrl_jax/sweeps/slurm.py`). It trains nothing in its own process.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mbrl_jax.sweeps import status
from mbrl_jax.train.preemption import PREEMPTED

ROOT = Path(__file__).resolve().parents[2]
_START = ROOT / "mbrl_jax" / "sweeps" / "start.py"
_POLL = 0.1  # seconds between looks at the processes
_TOUCH_EVERY = 15.0  # seconds between signs of life
_LONGEST_WAIT = 30.0  # seconds before a failed member is tried again
MAX_IDLE = 10  # times that a member may be preempted in a row without a new checkpoint


class Task(NamedTuple):
    """A member, as far as running it is concerned."""

    name: str
    workdir: str  # absolute
    command: tuple[str, ...]
    steps: int  # noted when it is done


class Reporter(Protocol):
    """Where events go."""

    def started(self, task: Task, attempt: int) -> None:
        """A process was started for a member."""

    def ended(self, task: Task, sentence: str) -> None:
        """A process of a member ended, and what follows."""

    def tick(self, running: Sequence[Task], num_waiting: int) -> None:
        """Called every `_POLL` seconds."""


class Lines:
    """A line for each event: what a log file takes."""

    def started(self, task: Task, attempt: int) -> None:
        """Name the member."""
        self.say(f"{task.name}: attempt {attempt}")

    def ended(self, task: Task, sentence: str) -> None:
        """Name the member and what happened."""
        self.say(f"{task.name}: {sentence}")

    def tick(self, running: Sequence[Task], num_waiting: int) -> None:
        """Nothing to say."""

    def say(self, line: str) -> None:
        """Print a line with the time."""
        print(f"{time.strftime('%T')} {line}", flush=True)


class _Process(NamedTuple):
    task: Task
    slot: int
    popen: subprocess.Popen
    checkpoint: int | None  # iteration that it began from


# --------------------------------------------------------------------------- what a process may use


def visible_gpus() -> list[str]:
    """NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()
    return []


def slot_environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Variables of the process in slot 0 … jobs - 1: its GPUs, or its share of one.

    With as many GPUs as jobs or more, each has its own; with fewer, jobs take turns over them and
    divide nine tenths of the memory, of which JAX would otherwise take three quarters each.
    """
    if jobs < 2 or not gpus:
        return {}
    found = {}
    if len(gpus) > 1:
        own = gpus[slot::jobs] or [gpus[slot % len(gpus)]]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    if jobs > len(gpus):
        share = 0.9 / -(-jobs // len(gpus))
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.3f}"
    return found


def slot_cores(slot: int, jobs: int, cores: Sequence[int]) -> list[int]:
    """Cores of the process in slot 0 … jobs - 1: an equal share, or one of them in turn."""
    return list(cores[slot::jobs]) or [cores[slot % len(cores)]]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


# -------------------------------------------------------------------------------------- supervision


class Supervisor:
    """Runs tasks until each is done, has failed too often, or all are to stop."""

    def __init__(
        self,
        tasks: Sequence[Task],
        reporter: Reporter,
        *,
        jobs: int = 1,
        retries: int = 2,
        grace: float | None = None,
    ):
        """Prepare; nothing is started.

        Args:
          tasks: what to run.
          reporter: where events go.
          jobs: processes at a time; they share cores and GPUs evenly.
          retries: further attempts at a task whose process failed.
          grace: seconds that processes have for saving when all are to stop; None: any time.
        """
        self._waiting = [(0.0, task) for task in tasks]  # (not before, task)
        self._running: list[_Process] = []
        self._reporter, self._retries, self._grace = reporter, retries, grace
        self._jobs = max(1, min(jobs, len(tasks)))
        self._free = list(range(self._jobs))
        self._failures = {task.name: 0 for task in tasks}
        self._gpus, self._cores = visible_gpus() if self._jobs > 1 else [], _cores()
        self._touched = 0.0
        self._stop_began: float | None = None
        self.signals: list[int] = []
        self.states = {task.name: "not begun" for task in tasks}

    def receive(self, signum: int, frame: Any = None) -> None:
        """A signal handler: the processes save and end. A second Ctrl-C ends them at once."""
        del frame
        self.signals.append(signum)

    def run(self) -> dict[str, str]:
        """Run to the end; {name: "done", "failed", "preempted" or "not begun"}."""
        while self._running or (self._waiting and not self.signals):
            if self.signals:
                self._stop()
            else:
                self._start_ready()
            self._reap()
            self._touch()
            self._reporter.tick([p.task for p in self._running], len(self._waiting))
            time.sleep(_POLL)
        return self.states

    def _start_ready(self) -> None:
        now = time.monotonic()
        for item in [item for item in self._waiting if item[0] <= now][: len(self._free)]:
            self._waiting.remove(item)
            self._start(item[1], self._free.pop(0))

    def _start(self, task: Task, slot: int) -> None:
        """Start a process for a task; a failure to do so counts as one of the process."""
        record = status.read_record(Path(task.workdir))
        attempt = record.get("attempt", 0) + 1
        cores = "all"
        if self._jobs > 1 and self._cores:
            cores = ",".join(map(str, slot_cores(slot, self._jobs, self._cores)))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        for name, value in slot_environment(slot, self._jobs, self._gpus).items():
            if name == "CUDA_VISIBLE_DEVICES" or name not in os.environ:
                environment[name] = value
        command = [sys.executable, str(_START), str(os.getpid()), cores, *task.command]
        try:
            status.write_record(Path(task.workdir), state="running", attempt=attempt)
            with (Path(task.workdir) / status.LOG).open("ab") as log:
                banner = f"{status.BANNER}attempt {attempt}, {time.strftime('%F %T')}: "
                log.write(f"{banner}{shlex.join(task.command)}\n".encode())
                log.flush()
                # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            self._free.append(slot)
            self._failed(task, f"could not be started ({error.strerror or error})")
            return
        self._running.append(_Process(task, slot, popen, _checkpoint(task)))
        self._reporter.started(task, attempt)

    def _reap(self) -> None:
        for process in [p for p in self._running if p.popen.poll() is not None]:
            self._running.remove(process)
            self._free.append(process.slot)
            self._ended(process)

    def _ended(self, process: _Process) -> None:
        """Decide what follows the end of a process."""
        task, code = process.task, process.popen.returncode
        if code == 0:
            self._settle(task, "done", "done", steps=task.steps, idle=0)
            return
        if code < 0:
            reason = f"was ended by {_signal_name(-code)}"
            _append_to_log(task, f"error: the process {reason}\n")
        else:
            reason = f"ended with status {code}"
        moved = _checkpoint(task) != process.checkpoint
        if self.signals:
            idle = 0 if moved else status.read_record(Path(task.workdir)).get("idle", 0) + 1
            self._settle(task, "preempted", "stopped; the same command goes on", idle=idle)
        elif code == PREEMPTED and moved:
            self._note(task, state="preempted", idle=0)
            self._waiting.append((0.0, task))
            self._reporter.ended(task, "was preempted and saved; it goes on")
        else:
            self._failed(task, reason)

    def _failed(self, task: Task, reason: str) -> None:
        """Try again, some seconds later, or give up."""
        self._failures[task.name] += 1
        failures = self._failures[task.name]
        if failures > self._retries:
            log = Path(task.workdir) / status.LOG
            self._settle(task, "failed", f"{reason}, {failures} times; see {log}")
            return
        self._note(task, state="preempted")
        wait = min(2.0 ** (failures - 1), _LONGEST_WAIT)
        self._waiting.append((time.monotonic() + wait, task))
        self._reporter.ended(task, f"{reason}; retry {failures} of {self._retries}")

    def _settle(self, task: Task, state: str, sentence: str, **entries: Any) -> None:
        self.states[task.name] = state
        self._note(task, state=state, **entries)
        self._reporter.ended(task, sentence)

    def _note(self, task: Task, **entries: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk: the record goes stale, and says so
            status.write_record(Path(task.workdir), **entries)

    def _touch(self) -> None:
        if time.monotonic() - self._touched > _TOUCH_EVERY:
            self._touched = time.monotonic()
            for process in self._running:
                status.touch_record(Path(process.task.workdir))

    def _stop(self) -> None:
        """Ask the processes to save and end, once; end them if that takes too long."""
        now = time.monotonic()
        if self._stop_began is None:
            self._stop_began = now
            self._send(signal.SIGTERM)
            for _, task in self._waiting:
                self.states[task.name] = "preempted" if self._failures[task.name] else "not begun"
        too_long = self._grace is not None and now > self._stop_began + self._grace
        if too_long or self.signals.count(signal.SIGINT) > 1:
            self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.popen.send_signal(signum)


def _checkpoint(task: Task) -> int | None:
    from mbrl_jax.runs.checkpoint import latest_iteration

    return latest_iteration(Path(task.workdir))


def _append_to_log(task: Task, text: str) -> None:
    with (
        contextlib.suppress(OSError),
        (Path(task.workdir) / status.LOG).open("a", encoding="utf-8") as log,
    ):
        log.write(text)


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal
        return f"signal {signum}"


@contextlib.contextmanager
def receiving(signums: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[dict]:
    """Handle signals within the context; yields {signal: handler before}."""
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield before
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
