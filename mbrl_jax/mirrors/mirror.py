"""Rows of `metrics.jsonl` in another place too, each step once, whatever happens to the process.

A resume cuts `metrics.jsonl` back to the newest checkpoint. So a row is mirrored when it is
*settled*: when a complete checkpoint covers it. A kill between the two leaves rows to mirror, and
the next process asks the mirror for the last step that it has. A new mirror is a file in this
folder, or a module of one's own, with `make(workdir, about) -> Mirror`.
"""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs.metrics import FILE

Row = Mapping[str, Any]


class About(NamedTuple):
    """What a mirror may say of the run."""

    name: str
    config: Mapping[str, Any]  # as in config.json
    begins: bool  # at step 0: what the mirror has of an earlier run there is not this one's


class Mirror(Protocol):
    """A place for rows."""

    last_step: int  # of the rows that it has from earlier processes, and -1 where there are none

    def write(self, step: int, rows: Sequence[Row]) -> None:
        """Take the rows of one step, one of each seed; steps come in order, each once."""

    def close(self, *, failed: bool) -> None:
        """No more rows come from this process; `failed`: it ends with an error."""


Make = Callable[[Path, About], Mirror]


def load(names: Sequence[str]) -> dict[str, Make]:
    """What opens each mirror. Raises ConfigError for a name that is none, or lacks its package."""
    return {name: _load(name) for name in names}


def _load(name: str) -> Make:
    module = name if "." in name else f"mbrl_jax.mirrors.{name}"
    try:
        make: Make = importlib.import_module(module).make
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module}.".startswith(f"{missing}."):
            raise ConfigError(
                f"--mirror={name}: there is no such mirror; there is wandb, or a dotted module of "
                "your own with make(workdir, about)"
            ) from error
        raise ConfigError(
            f"--mirror={name} needs the package {missing}, which is not installed: `pip install "
            f"{missing}`, or leave --mirror out (the rows are in {FILE} all the same)"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"--mirror={name}: {module} has no make(workdir, about)") from error
    return make


class Mirrors:
    """The mirrors of a run; a context manager that closes them."""

    def __init__(
        self, workdir: Path, makes: Mapping[str, Make], about: About, warn: Callable[[str], None]
    ):
        """Open them, once `metrics.jsonl` is cut back to where the run goes on.

        Raises ConfigError where one cannot be opened.
        """
        self._path, self._warn = Path(workdir) / FILE, warn
        self._offset = 0  # of the first row that is not settled
        self._open: dict[str, Mirror] = {}
        try:
            for name, make in makes.items():
                self._open[name] = make(Path(workdir), about)
        except BaseException:
            self._close(failed=True)
            raise

    def __enter__(self) -> "Mirrors":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._close(failed=kind is not None)

    def settled(self, step: int) -> None:
        """Rows up to `step` stay. A mirror that fails is left out from then on; it is said."""
        if not self._open:
            return
        for at, rows in groupby(self._rows_until(step), lambda row: row["step"]):
            rows_of_step = list(rows)
            for name, mirror in list(self._open.items()):
                if at > mirror.last_step:
                    self._try(name, partial(mirror.write, at, rows_of_step))

    def _rows_until(self, step: int) -> list[dict[str, Any]]:
        """New rows up to a step; later ones may be half-written now."""
        found: list[dict[str, Any]] = []
        if not self._path.exists():
            return found
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                row = json.loads(line) if line.endswith(b"\n") else None
                if row is None or row["step"] > step:
                    return found
                found.append(row)
                self._offset += len(line)
        return found

    def _close(self, *, failed: bool) -> None:
        for name, mirror in list(self._open.items()):
            self._try(name, partial(mirror.close, failed=failed))
        self._open = {}

    def _try(self, name: str, act: Callable[[], None]) -> None:
        """The run itself does not depend on a mirror."""
        try:
            act()
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._open.pop(name, None)
            self._warn(
                f"--mirror={name} failed ({lines[0][:200]}): the run goes on without it, and the "
                "same command mirrors what is missing"
            )
