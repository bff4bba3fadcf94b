"""Memory stays flat past a full ring and over restarts (minutes long; more with MINUTES)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mbrl_jax.runs import checkpoint
from mbrl_jax.train.preemption import PREEMPTED

ROOT = Path(__file__).resolve().parents[2]
MINUTES = float(os.environ.get("MINUTES", "3"))  # of the first process; each restart takes one
FULL = 400  # rows of the ring
GROWTH = 0.02


def _start(path: Path) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [
        *(sys.executable, "-m", "launch.train", "--experiment=drama_catch", "--debug"),
        *("--num_seeds=2", "--steps=10000000", f"--workdir={path}"),
        *(f"--set=replay.capacity={FULL}", "--set=log_every=50", "--set=checkpoint_every=100"),
    ]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def _resident(process: subprocess.Popen) -> int:
    """Bytes of memory that the process holds, without pages of files: the kernel drops those."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return 1024 * int(kilobytes)


def _watch(path: Path, rows: int, seconds: float) -> list[int]:
    """Run until `rows` more rows are saved, then note the memory for some seconds; SIGTERM."""
    process, begun = _start(path), checkpoint.latest_iteration(path) or 0
    deadline = time.monotonic() + 900
    while (checkpoint.latest_iteration(path) or 0) < begun + rows:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        found.append(_resident(process))
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == PREEMPTED
    return found


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


@pytest.mark.slow
def test_memory_is_flat_past_a_full_ring_and_over_restarts(tmp_path):
    runs = [_watch(tmp_path, 3 * FULL, MINUTES * 60)]
    runs += [_watch(tmp_path, FULL, 60) for _ in range(3)]
    ends = [(_mean(found[: len(found) // 10]), _mean(found[-len(found) // 10 :])) for found in runs]
    for first, last in ends:
        print(f"{first / 1e6:.1f} MB, then {last / 1e6:.1f} MB")
    for first, last in ends:
        assert last < first * (1 + GROWTH)
    assert max(runs[-1]) < max(runs[1]) * (1 + GROWTH)
