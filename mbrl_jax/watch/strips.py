"""Open-loop pictures of a run that trains: another process draws them from its newest checkpoint.

The training knows nothing of it. The process writes to a directory of its own, has the lowest
priority and one core of the CPU, and runs a tenth of the time at most.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.runs.layout import OPEN_LOOP
from mbrl_jax.watch.described import newest_checkpoint

LIMIT = 900.0  # seconds after which a process is ended
REST = 9.0  # times its duration that follow without one
_POLL = 1.0
# One core, and no accelerator: those are the training's.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": "1"}


class Strip(NamedTuple):
    """A picture."""

    png: bytes
    iteration: int | None  # of the newest checkpoint when it was begun; None: the run's end
    drawn_at: float


class Strips:
    """Keeps the newest picture in memory; a thread starts one process after the other."""

    def __init__(self, workdir: Path, command: Sequence[str], rest: float = REST):
        """Nothing is started yet.

        Args:
          workdir: of the run.
          command: what draws, given "--out=PATH" as its last argument.
          rest: see `REST`.
        """
        self._workdir, self._command, self._rest = Path(workdir), tuple(command), rest
        self.newest: Strip | None = None
        self.error = ""  # of the last attempt
        self.drawing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="strips", daemon=True)

    def start(self) -> None:
        """Begin to look for checkpoints."""
        self._thread.start()

    def close(self) -> None:
        """End the process that draws, if there is one."""
        self._ended.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        tried, wait = None, 0.0
        with tempfile.TemporaryDirectory(prefix="mbrl_jax_watch_") as folder:
            while not self._ended.wait(max(wait, _POLL)):
                wait = 0.0
                checkpoint = newest_checkpoint(self._workdir)
                if checkpoint is None or checkpoint[:2] == tried:
                    continue
                tried, began = checkpoint[:2], time.monotonic()
                self.drawing = True
                self._draw(Path(folder) / OPEN_LOOP, checkpoint.iteration)
                self.drawing = False
                wait = self._rest * (time.monotonic() - began)

    def _draw(self, path: Path, iteration: int) -> None:
        said = path.with_suffix(".txt")
        with said.open("wb") as file:
            process = subprocess.Popen(
                [*self._command, f"--out={path}"],
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
            _give_way(process.pid)
            ended = self._wait_for(process)
        if ended == 0 and path.is_file():
            self.newest, self.error = Strip(path.read_bytes(), iteration, time.time()), ""
        elif not self._ended.is_set():
            lines = said.read_text(errors="replace").strip().splitlines()[-1:]
            if ended is None:
                lines = [f"it took more than {LIMIT:.0f} s"]
            self.error = lines[0][:300] if lines else f"its process ended with status {ended}"
        path.unlink(missing_ok=True)

    def _wait_for(self, process: subprocess.Popen) -> int | None:
        """Its status, or None where it had to be ended."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and not self._ended.wait(0.1):
            if process.poll() is not None:
                return process.returncode
        process.kill()
        process.wait()
        return None


def _give_way(process: int) -> None:
    """The lowest priority. Not `SCHED_IDLE`: where all cores train, that would never end."""
    try:
        os.setpriority(os.PRIO_PROCESS, process, 19)
    except OSError:  # it has ended
        return
