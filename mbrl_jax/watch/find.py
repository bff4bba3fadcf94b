"""The runs below a folder, and what a sweep says of members that have not begun."""

import json
import os
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.runs.layout import CONFIG
from mbrl_jax.runs.metrics import FILE

SWEEP, RECORD = "sweep.json", "member.json"  # as `mbrl_jax.sweeps` calls them; it imports JAX
MAX_RUNS, MAX_FOLDERS, MAX_DEPTH = 500, 5_000, 4
_LARGEST = 2**24  # bytes of a plan that is read


class Found(NamedTuple):
    """Runs by their paths below the folder, "/" between names; "." is the folder itself."""

    names: list[str]
    left_out: bool  # there may be more than are looked for


def holds_run(folder: Path) -> bool:
    """Whether a folder is the directory of a run."""
    return any((folder / name).is_file() for name in (CONFIG, FILE))


def find(folder: Path) -> Found:
    """Look for runs; what lies within a run is not looked at. Never raises for what is there."""
    found: dict[str, None] = {}
    seen: set[tuple[int, int]] = set()
    waiting = deque([("", 0)])
    while waiting and len(seen) < MAX_FOLDERS and len(found) < MAX_RUNS:
        below, depth = waiting.popleft()
        listed = _listed(folder / below, seen)
        if listed is None:
            continue
        if {CONFIG, FILE} & set(listed):
            found[below or "."] = None
        elif depth < MAX_DEPTH:
            inner = sorted(name for name, is_folder in listed.items() if is_folder)
            waiting.extend((f"{below}/{name}".lstrip("/"), depth + 1) for name in inner)
    found.update(dict.fromkeys(_planned(folder)))
    return Found(list(found)[:MAX_RUNS], bool(waiting) or len(found) > MAX_RUNS)


def _listed(folder: Path, seen: set[tuple[int, int]]) -> dict[str, bool] | None:
    """{name: whether it is a folder that may hold runs}; None where it was seen, or cannot be."""
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)  # links may lead to a folder twice, or in circles
        if identity in seen:
            return None
        seen.add(identity)
        with os.scandir(folder) as entries:
            return {e.name: e.is_dir() and not e.name.startswith(".") for e in entries}
    except OSError:
        return None


def _planned(folder: Path) -> list[str]:
    """The members of a sweep's plan, begun or not."""
    members = read(folder / SWEEP).get("members")
    names = members if isinstance(members, dict) else {}
    return [name for name in names if Path(name).name == name and name not in ("", ".", "..")]


def has_failed(run: Path) -> bool:
    """Whether the sweep that ran a member gave it up."""
    return read(run / RECORD).get("state") == "failed"


def read(path: Path) -> dict[str, Any]:
    """A JSON object of a file; {} where there is none."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
