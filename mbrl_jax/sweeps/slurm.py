"""Sweeps on Slurm, through submitit: an array with one task for each member.

A task supervises its member as a local sweep does. It runs as the batch step itself (no srun), so
that Slurm's SIGTERM, at preemption and `scontrol requeue`, reaches it with all of KillWait left to
save in; some time before the limit Slurm sends the signal on which submitit requeues.

submitit keeps a pickle of each task, and of its result, in `ROOT/slurm`: whoever can write there
can run code in your name, as with any script in a directory of yours.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbrl_jax.errors import ConfigError
from mbrl_jax.sweeps import status, supervise

FOLDER = "slurm"  # below the root: submitit's files, and JOBS
JOBS = "jobs.json"  # name of each member -> job that was submitted for it last
_LARGEST_ARRAY = 1000  # Slurm's own default is 1001
_ENDLESS = 10**6  # requeues at the time limit; `supervise.MAX_IDLE` bounds those without progress
_OURS = ("array", "signal", "requeue", "nodes", "ntasks", "ntasks_per_node", "output", "error")


# -------------------------------------------------------------------------------------- parameters


def parse_minutes(text: str) -> int:
    """Minutes of a limit as sbatch writes it: "90", "1:30:00", "2-12", "1-06:30".

    Raises ConfigError.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ConfigError(f"--time={text!r}: write minutes, hours:minutes:seconds or days-hours")
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:  # days-hours:minutes:seconds
        seconds = ((int(days) * 24 + first) * 60 + second) * 60 + third
    elif parts[2] is not None:  # hours:minutes:seconds
        seconds = (first * 60 + second) * 60 + third
    else:  # minutes:seconds
        seconds = first * 60 + second
    if seconds < 60:
        raise ConfigError(f"--time={text!r} is less than a minute")
    return seconds // 60


def parse_free(assignments: Sequence[str]) -> dict[str, Any]:
    """{option: value} of "key=value", any option of sbatch; "key" alone is one without a value.

    Raises ConfigError for options that the sweep sets itself.
    """
    found: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.lstrip("-").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", key) or "\n" in value:
            raise ConfigError(f"--slurm={assignment!r} must read option=value, an option of sbatch")
        if key.replace("-", "_") in _OURS:
            raise ConfigError(f"--slurm={assignment}: the sweep sets {key} itself")
        found[key] = value if equals else True
    return found


def make_parameters(
    *,
    time: str,
    partition: str | None,
    gpus: int | None,
    cpus: int | None,
    mem: str | None,
    jobs: int | None,
    grace: int,
    free: Sequence[str],
) -> dict[str, Any]:
    """Parameters of the array, as submitit names them. Raises ConfigError.

    Args:
      time: limit of one task, as sbatch writes it; a member that needs more is requeued.
      partition, gpus, cpus, mem: of one task.
      jobs: tasks at a time.
      grace: seconds before the limit at which a task is told to save.
      free: any other options of sbatch, "key=value".
    """
    minutes = parse_minutes(time)
    if not 0 < grace < minutes * 60:
        raise ConfigError(f"--grace={grace} must be positive and less than --time={time}")
    given = {
        "partition": partition,
        "gpus_per_node": gpus,
        "cpus_per_task": cpus,
        "mem": mem,
        "array_parallelism": jobs,
    }
    # "B:": to the batch step, which is the task.
    extra = {"requeue": True, "signal": f"B:USR2@{grace}", **parse_free(free)}
    return {
        "job_name": "mbrl_jax",
        "time": minutes,
        **{key: value for key, value in given.items() if value is not None},
        "additional_parameters": extra,
    }


def describe(parameters: dict[str, Any], num_tasks: int) -> list[str]:
    """The lines that sbatch reads, for `--dry_run`."""
    options = {k: v for k, v in parameters.items() if k != "additional_parameters"}
    parallel = options.pop("array_parallelism", num_tasks)
    if num_tasks > 1:
        options["array"] = f"0-{num_tasks - 1}%{min(parallel, num_tasks)}"
    options |= parameters["additional_parameters"]
    lines = []
    for key, value in sorted((key.replace("_", "-"), value) for key, value in options.items()):
        lines.append(f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}"))
    return lines


def srun(parameters: dict[str, Any]) -> list[str]:
    """The beginning of a command that runs the rest on what a task of the array would be given."""
    left = ("array_parallelism", "additional_parameters")
    options = {key: value for key, value in parameters.items() if key not in left}
    more = parameters["additional_parameters"]
    options |= {key: value for key, value in more.items() if key not in ("requeue", "signal")}
    named = ((key.replace("_", "-"), value) for key, value in options.items())
    return ["srun", "--ntasks=1"] + [
        f"--{key}" if value is True else f"--{key}={value}" for key, value in named
    ]


# --------------------------------------------------------------------------------------- in the job


class Job:
    """What a task of the array does; submitit calls it, and `checkpoint` before it requeues."""

    def __init__(self, task: supervise.Task, retries: int, grace: float):
        """Remember; nothing happens before the call."""
        self.task, self.retries, self.grace = task, retries, grace

    def __call__(self) -> str:
        """Run the member to its end; requeue when Slurm wants the machine back."""
        workdir = Path(self.task.workdir)
        record = status.read_record(workdir)
        if record.get("state") == "done" and record.get("steps") == self.task.steps:
            return "done"  # requeued just when it ended
        supervisor = supervise.Supervisor(
            [self.task], supervise.Lines(), retries=self.retries, grace=self.grace
        )
        signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
        with supervise.receiving(signals, supervisor.receive) as before:
            state = supervisor.run()[self.task.name]
        if state == "done":
            return state
        if state == "failed":
            raise RuntimeError(f"{self.task.name} failed; see {workdir / status.LOG}")
        if status.read_record(workdir).get("idle", 0) >= supervise.MAX_IDLE:
            status.write_record(workdir, state="failed", idle=0)
            raise RuntimeError(
                f"{self.task.name} was stopped {supervise.MAX_IDLE} times without a new "
                "checkpoint; ask for a longer --time or lower checkpoint_every"
            )
        if supervisor.signals == [signal.SIGUSR2]:  # the time limit: submitit requeues and exits
            before[signal.SIGUSR2](signal.SIGUSR2, None)
        elif _is_running(_job_id()):
            # Told to stop, but Slurm will not requeue it: a grace time, or a signal sent by hand.
            subprocess.run(["scontrol", "requeue", _job_id()], timeout=60, check=False)
        sys.exit(supervise.PREEMPTED)

    def checkpoint(self) -> Any:
        """What submitit is to run after the requeue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _job_id() -> str:
    import submitit

    return submitit.JobEnvironment().job_id


def _is_running(job: str) -> bool:
    """Whether Slurm takes a job for running: not cancelled, not being requeued already."""
    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() == "RUNNING"


# --------------------------------------------------------------------------------------- submission


def submit(
    root: Path,
    tasks: Sequence[supervise.Task],
    parameters: dict[str, Any],
    *,
    retries: int,
    grace: int,
) -> dict[str, str]:
    """Submit the tasks; {name: job}. Raises ConfigError where that cannot be done."""
    submitit = _import_submitit()
    folder = Path(root).resolve() / FOLDER
    if "%" in str(folder):
        raise ConfigError(f"--root={root}: Slurm gives % in paths a meaning; choose another name")
    # As the batch step: bash hands its place, and Slurm's signals, to Python.
    python = f"exec {shlex.quote(sys.executable)}"
    found: dict[str, str] = {}
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_ENDLESS, python=python)
        executor.update_parameters(use_srun=False, **parameters)
        for begin in range(0, len(tasks), _LARGEST_ARRAY):
            part = tasks[begin : begin + _LARGEST_ARRAY]
            with executor.batch():
                jobs = [executor.submit(Job(task, retries, grace * 0.8)) for task in part]
            found |= {task.name: job.job_id for task, job in zip(part, jobs, strict=True)}
            _write_jobs(root, found)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(f"Slurm did not take the sweep: {reason}") from error
    return found


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "--executor=slurm needs submitit: pip install -c constraints.txt -e '.[slurm]'"
        ) from error
    return submitit


def _read_jobs(root: Path) -> dict[str, str]:
    try:
        jobs = json.loads((Path(root) / FOLDER / JOBS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return jobs if isinstance(jobs, dict) else {}


def _write_jobs(root: Path, new: dict[str, str]) -> None:
    path = Path(root) / FOLDER / JOBS
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_read_jobs(root) | new, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def queued(root: Path) -> dict[str, str]:
    """{name: job} of the members that wait or run in the queue now.

    Raises ConfigError where the queue cannot be read, for a member might then run twice.
    """
    jobs = _read_jobs(root)
    if not jobs:
        return {}
    asked = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        stderr = (getattr(error, "stderr", None) or str(error)).strip()
        raise ConfigError(
            f"the queue of Slurm cannot be read ({stderr}); try again later"
        ) from error
    present = set(done.stdout.split())
    return {name: job for name, job in jobs.items() if job in present}


def say_submitted(jobs: dict[str, str]) -> None:
    """A line for each job."""
    for name, job in jobs.items():
        print(f"{job}  {name}")
