"""Does a run that is killed at any moment end as one that was not? (law L8)

    python -m experiments.studies.kills --kills=100

Small runs of Catch are killed with SIGKILL at random moments: while Python starts, while programs
are compiled (from the cache), between saves, in the middle of one, in the evaluation. A run is
killed several times before it ends; each SIGKILL that hit a living process counts as one. When it
has ended, its metrics, its evaluation and the whole state of its last checkpoint must equal those
of a run that was left alone, bit for bit, with no litter left; else none of its kills counts.
Prints how many counted: "100 of 100".
"""

import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags, logging

from mbrl_jax.runs import checkpoint, files, replay_log
from mbrl_jax.runs.layout import CHECKPOINTS, LOCK

ROOT = Path(__file__).resolve().parents[2]
EVERY = 20  # iterations between saves: one is under way much of the time
RING = 150  # rows of the replay: it wraps several times

_KILLS = flags.DEFINE_integer("kills", 100, "Times that a process is killed.", lower_bound=1)
_STEPS = flags.DEFINE_integer("run_steps", 800, "Steps of a run.", lower_bound=EVERY)
_SEED = flags.DEFINE_integer("moments", 0, "Seed of the moments.")
_FOLDER = flags.DEFINE_string("folder", None, "Where the runs go; default: a temporary folder.")


class Whole(NamedTuple):
    """The run that was left alone."""

    path: Path
    before: float  # CPU-seconds until its first checkpoint
    after: float  # CPU-seconds from there to its end


class Survived(NamedTuple):
    """A run that was killed."""

    moments: list[str]  # of each kill
    differs: str  # what is not equal; "" if nothing


def command(path: Path, steps: int) -> list[str]:
    """A small run with a save in each tenth of a second."""
    return [
        *(sys.executable, "-m", "launch.train", "--experiment=drama_catch", "--debug"),
        *("--num_seeds=2", f"--steps={steps}", f"--workdir={path}", "--set=model.core=gru"),
        *(f"--set=log_every={EVERY}", f"--set=checkpoint_every={EVERY}"),
        *(f"--set=replay.capacity={RING}", "--set=eval_max_steps=2000"),
    ]


def start(path: Path, steps: int) -> subprocess.Popen:
    """Start a run with the devices that a user has, whatever this process has."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with (path.parent / f"{path.name}.log").open("a") as log:
        return subprocess.Popen(
            command(path, steps), cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def leave_alone(folder: Path, steps: int) -> Whole:
    """A run without kills, after a short one that fills the compilation cache."""
    for name in ("cached", "whole"):
        path, before, spent = folder / name, None, 0.0
        process = start(path, steps if name == "whole" else EVERY)
        while process.poll() is None:
            spent = _cpu_seconds(process) or spent
            if before is None and checkpoint.latest_iteration(path):
                before = spent
            time.sleep(0.01)
        if process.returncode:
            raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
    return Whole(path, before, spent - before)


def _cpu_seconds(process: subprocess.Popen) -> float:
    """What all threads of a living process have used; 0 of one that has ended."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_often(
    path: Path, steps: int, whole: Whole, moments: random.Random, most: int
) -> list[str]:
    """Start the run again and again and kill it, at most `most` times, until it ends; what was hit.

    The moments are uniform over the start of the process and a third of the training behind it, so
    that a run takes several kills; in CPU time, which other work on the machine does not stretch.
    """
    hit: list[str] = []
    while True:
        process = start(path, steps)
        limit = moments.uniform(0.0, whole.before + whole.after / 3)
        while process.poll() is None and (len(hit) == most or _cpu_seconds(process) < limit):
            time.sleep(0.002)
        if process.poll() is not None:
            if process.returncode:
                raise RuntimeError((path.parent / f"{path.name}.log").read_text()[-2000:])
            return hit
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            hit.append(_moment(path, steps))


def _moment(path: Path, steps: int) -> str:
    """What a killed process was at."""
    under_way = [*path.glob(f"*/*{files.TEMPORARY}"), *path.glob(f"*{files.TEMPORARY}")]
    newest = checkpoint.latest_iteration(path)
    if under_way:
        return "in a save"
    if newest == steps:
        return "after the last step"
    if (path / LOCK).exists() and (path / LOCK).read_text():
        return "in training or at its start"
    return "before it had begun"


def difference(path: Path, whole: Path) -> str:
    """What a run that has ended lacks to equal another; "" if nothing."""
    for name in ("metrics.jsonl", "evaluation.json"):
        if (path / name).read_bytes() != (whole / name).read_bytes():
            return name
    if litter := list(path.rglob(f"*{files.TEMPORARY}")):
        return f"litter: {litter[0]}"
    needed = {s.file for i in checkpoint.complete(path) for s in checkpoint.segments_of(path, i)}
    if orphans := {p.name for p in (path / replay_log.FOLDER).iterdir()} - needed:
        return f"litter: {min(orphans)}"
    found, wanted = _state(path), _state(whole)
    if list(found) != list(wanted):
        return "what is in the checkpoint"
    for name, values in found.items():
        same = values.dtype == wanted[name].dtype and values.tobytes() == wanted[name].tobytes()
        if not same:
            return name
    return ""


def _state(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint, with the rows that the ring holds there."""
    newest = checkpoint.latest_iteration(path)
    state = checkpoint.load_leaves(path / CHECKPOINTS / str(newest) / "state_0")
    segments = sorted(checkpoint.segments_of(path, newest), key=lambda segment: segment.rows)
    parts = [np.load(path / replay_log.FOLDER / s.file, allow_pickle=False) for s in segments]
    for name in parts[0].files:
        state[f"row {name}"] = np.concatenate([part[name] for part in parts], axis=1)[:, -RING:]
    for part in parts:
        part.close()
    return dict(sorted(state.items()))


def survive(folder: Path, kills: int, steps: int, seed: int = 0) -> list[Survived]:
    """Kill runs until `kills` kills are made; tells of each run as it ends."""
    whole, moments, runs, left = leave_alone(folder, steps), random.Random(seed), [], kills
    print(
        f"left alone: {whole.before:.1f} s to its first save, {whole.after:.1f} s more", flush=True
    )
    while left:
        path = folder / f"run_{len(runs)}"
        hit = kill_often(path, steps, whole, moments, left)
        runs.append(Survived(hit, difference(path, whole.path)))
        left -= len(hit)
        told = f"differs in {runs[-1].differs}" if runs[-1].differs else "equal"
        print(f"run {len(runs) - 1}: {len(hit)} kills, {told}; {left} left", flush=True)
    return runs


def main(_: list[str]) -> None:
    """Kill, and count."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells of everything it reads
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_FOLDER.value or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        runs = survive(folder, _KILLS.value, _STEPS.value, _SEED.value)
    hit = collections.Counter(moment for one in runs for moment in one.moments)
    for moment, count in hit.most_common():
        print(f"{count} kills {moment}")
    good = sum(len(one.moments) for one in runs if not one.differs)
    print(f"{good} of {_KILLS.value}")
    if good < _KILLS.value:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
