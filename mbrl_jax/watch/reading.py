"""Rows of a run and their times, read as they come; pages of one run and of many share it."""

import time
from pathlib import Path

from mbrl_jax.runs.layout import CONFIG
from mbrl_jax.runs.metrics import FILE, FOLDER
from mbrl_jax.watch import described
from mbrl_jax.watch.pace import Pace
from mbrl_jax.watch.series import Curves, Follower, parse_row, short


class Reading:
    """What was read of a run's directory until now; each line is read once."""

    def __init__(self, workdir: Path, *, only_returns: bool = False):
        """`only_returns`: metrics beside the return are passed over, so that little is kept."""
        self._workdir, self._only_returns = Path(workdir), only_returns
        self._metrics = Follower(self._workdir / FILE)
        self._config: tuple[float | None, described.Run] | None = None
        self.pace = Pace(self._workdir / FOLDER / "seed_0")
        self.curves = Curves(only_returns)
        self.damaged = self.began_anew = 0  # lines that are no rows; times that the file was cut
        self.pieces = 0  # that came: what follows from the rows alone changes with it

    def read_rows(self, deadline: float) -> None:
        """See new rows, until they end or `time.monotonic()` has come to `deadline`."""
        for piece in self._metrics.read():
            self.pieces += 1
            if piece.anew:
                self.curves, self.damaged = Curves(self._only_returns), 0
                self.began_anew += 1
            for line in piece.lines:
                row = parse_row(line)
                if row is None:
                    self.damaged += 1
                else:
                    self.curves.add(row)
            if time.monotonic() > deadline:
                return

    def read_pace(self, last_row_at: float | None) -> None:
        """See when new rows were written."""
        self.pace.read()
        if last_row_at is not None and self.share() == 1:
            self.pace.watched(last_row_at, self.curves.step, self.began_anew)

    def share(self) -> float:
        """How much of the rows has been read."""
        return self._metrics.share()

    def last_row_at(self) -> float | None:
        """When the newest row was written; None where there is none."""
        return described.modified(self._workdir / FILE) if self.curves.seeds else None

    def run(self) -> described.Run:
        """What the configuration says; it is read again when it was written again."""
        written = described.modified(self._workdir / CONFIG)
        if self._config is None or self._config[0] != written or written is None:
            self._config = (written, described.describe(self._workdir))
        return self._config[1]

    def speeds(self, run: described.Run, num_seeds: int, process: str) -> dict[str, float | None]:
        """Rows of all seeds per second now and on the average, and the seconds that are left."""
        recent, average = self.pace.recent(), self.pace.average()
        step, left = self.curves.step, run.steps - self.curves.step
        learns = step > run.learns_from or run.learns_from == run.steps
        return {
            "recent": recent and short(recent * num_seeds),
            "average": average and short(average * num_seeds),
            "left": short(left / recent) if process and left > 0 and learns and recent else None,
        }


def state(process: str, step: int, steps: int, begun: bool, read: float) -> str:
    """How far a run is, in a word; steps are 0 where they are not known.

    Args:
      process: who trains it; "" where nobody does.
      step: of the newest row.
      steps: of the whole run.
      begun: whether there is a row.
      read: the share of the rows that has been read.
    """
    if read < 1:
        return "reading"
    if process and not begun:
        return "starting"
    if process:
        return "evaluating" if step >= steps > 0 else "training"
    if not begun:
        return "waiting"
    return "ended" if step >= steps > 0 else "stopped"
