"""How far the members of a sweep are, read from their workdirs alone.

Whoever runs a member keeps a *record* in its workdir, `member.json`, and touches it while the
process lives; what a process that was killed leaves behind is then seen to be stale.
"""

import json
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.runs import liveness
from mbrl_jax.runs.metrics import FILE as METRICS
from mbrl_jax.sweeps.plan import Member

RECORD = "member.json"
LOG = "train.log"
BANNER = "=== "  # begins the line in the log that begins an attempt
STALE_AFTER = 120.0  # seconds without a touch of the record after which its process counts as gone
_TAIL = 2**16  # bytes of a file's end that are looked at
_STATES = ("running", "preempted", "failed", "done")


class Status(NamedTuple):
    """A row of the table."""

    name: str
    state: str  # "not begun", "running", "preempted" (the same command goes on), "failed", "done"
    step: int  # of the newest row of metrics
    steps: int  # when the member is done
    last_return: float | None  # mean over the seeds of the newest episode returns
    checkpoint: int | None  # step of the newest checkpoint
    attempt: int  # processes that were started for it
    error: str  # last line of the log's error; "" unless failed


# ------------------------------------------------------------------------------------- the record


def read_record(workdir: Path) -> dict[str, Any]:
    """What was last noted of a member; {} where nothing was, or it cannot be read."""
    try:
        record = json.loads((Path(workdir) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(record, dict) and record.get("state") in _STATES
    return record if known else {}


def write_record(workdir: Path, **entries: Any) -> None:
    """Note `entries` of a member, with the process that does so; other entries stay."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    record = {**read_record(workdir), **entries, "host": socket.gethostname(), "pid": os.getpid()}
    temporary = workdir / (RECORD + ".tmp")
    temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    temporary.replace(workdir / RECORD)


def touch_record(workdir: Path) -> None:
    """Show that the process which keeps the record lives."""
    try:
        os.utime(Path(workdir) / RECORD)
    except OSError:  # a file system that is away for a moment does not end a sweep
        return


def _is_alive(workdir: Path, record: dict[str, Any]) -> bool:
    """Whether the process that keeps a record shows signs of life."""
    try:
        touched = (Path(workdir) / RECORD).stat().st_mtime
        process, host = int(record["pid"]), str(record["host"])
    except (OSError, KeyError, ValueError, TypeError):
        return False
    if time.time() - touched >= STALE_AFTER:  # its number may be another process's by now
        return False
    return liveness.is_alive(process, host, touched, STALE_AFTER)


def kept_by(workdir: Path) -> str:
    """The living process that runs a member, in words; "" where there is none."""
    record = read_record(workdir)
    if record.get("state") != "running" or not _is_alive(Path(workdir), record):
        return ""
    return f"process {record['pid']} on {record['host']}"


# ---------------------------------------------------------------------------------------- a member


def member_status(root: Path, member: Member) -> Status:
    """How far a member is. Never raises for what lies in the workdir."""
    from mbrl_jax.runs.checkpoint import latest_iteration

    workdir = Path(root) / member.name
    record = read_record(workdir)
    iteration = latest_iteration(workdir)
    step, last_return = progress(workdir)
    state = _state(workdir, member, record, iteration)
    error = ""
    if state == "failed":
        error = last_error(_tail(workdir / LOG))
        if record.get("state") == "running":
            error = f"its process is gone without a word; {error}".removesuffix("; ")
    per_iteration = member.steps // max(member.iterations, 1)
    return Status(
        member.name,
        state,
        step,
        member.steps,
        last_return,
        None if iteration is None else iteration * per_iteration,
        record.get("attempt", 0),
        error,
    )


def _state(workdir: Path, member: Member, record: dict[str, Any], iteration: int | None) -> str:
    if not record:  # trained by hand, if at all
        return "not begun" if iteration is None else "preempted"
    state = record["state"]
    if state == "running" and not _is_alive(workdir, record):
        return "failed"
    if state == "done" and record.get("steps") != member.steps:
        return "preempted"  # it was done; now more steps are asked for
    return state


def is_done(root: Path, member: Member) -> bool:
    """Whether a member has nothing left to do."""
    workdir = Path(root) / member.name
    return _state(workdir, member, read_record(workdir), None) == "done"


def progress(workdir: Path) -> tuple[int, float | None]:
    """(step, mean of the seeds' newest episode returns or None) of a run's metrics."""
    step, returns = 0, {}
    for line in _tail(Path(workdir) / METRICS).splitlines():
        try:
            row = json.loads(line)
            step = max(step, int(row["step"]))
            if row.get("episode/return") is not None:
                returns[row["seed"]] = float(row["episode/return"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the tail may begin within a line, and the last may be half written
    return step, sum(returns.values()) / len(returns) if returns else None


def last_error(log: str) -> str:
    """The line that says why the last attempt of a log ended, without control characters."""
    lines = [line for line in log.splitlines() if line.strip()]
    begin = max((i for i, line in enumerate(lines) if line.startswith(BANNER)), default=-1)
    lines = lines[begin + 1 :]
    named = [
        line for line in lines if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)
    ]
    found = (named or lines)[-1:]
    return "".join(c for c in found[0].strip() if c.isprintable()) if found else ""


def _tail(path: Path) -> str:
    """The end of a text file; "" where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


# --------------------------------------------------------------------------------------- the table


def count_states(rows: Sequence[Status]) -> dict[str, int]:
    """{state: members}, of the states that occur."""
    states = ("not begun", *_STATES)
    found = [row.state for row in rows]
    return {state: found.count(state) for state in states if state in found}


def print_status(root: Path, rows: Sequence[Status]) -> None:
    """The table of a sweep; below, why members failed, and how many are in each state."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text: nothing that a directory or a log is called or holds is read as markup.
    table = Table(title=Text(f"sweep {root}"))
    table.add_column("member", overflow="fold")
    for name in ("state", "step", "return", "checkpoint", "tries"):
        table.add_column(name, justify="right", no_wrap=True)
    colours = {"failed": "red", "done": "green", "running": "cyan", "preempted": "yellow"}
    for row in rows:
        table.add_row(
            Text(row.name),
            Text(row.state, style=colours.get(row.state, "")),
            f"{row.step}/{row.steps}",
            "–" if row.last_return is None else f"{row.last_return:.3f}",
            "–" if row.checkpoint is None else str(row.checkpoint),
            str(row.attempt),
        )
    console = Console()
    console.print(table)
    for row in rows:
        if row.error:
            console.print(Text(f"{row.name}: {row.error}"), soft_wrap=True)
    counts = ", ".join(f"{count} {state}" for state, count in count_states(rows).items())
    console.print(f"{len(rows)} members: {counts or 'none'}")
