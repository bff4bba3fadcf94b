"""Weights & Biases: a run for each workdir, whose steps are those of `metrics.jsonl`.

WANDB_MODE, WANDB_PROJECT, WANDB_RUN_GROUP and so on are wandb's own and hold here. With several
seeds their metrics stand under `seed_0/`, `seed_1/`, …. All that wandb writes is in the workdir.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import wandb

from mbrl_jax.errors import ConfigError
from mbrl_jax.mirrors.mirror import About, Row
from mbrl_jax.runs import files

STATE = "wandb.json"  # of the workdir: which run there is its own
FOLDER = "wandb"
PROJECT = "mbrl_jax"
_IDENTITY = b":W&B"
_HEAD, _BLOCK = 7, 32_768  # bytes of a file's and of a record's head; of a block, as in LevelDB
_WHOLE, _LAST = 1, 4  # kinds of pieces: a whole record, the last of several


class _Own(NamedTuple):
    """What `wandb.json` holds."""

    ident: str
    has_rows: bool


class Wandb:
    """A run of Weights & Biases, online or not."""

    def __init__(self, workdir: Path, about: About):
        """Begin it, or go on with it. Raises ConfigError where wandb cannot."""
        self._workdir = workdir
        own = _read(workdir)
        if own is None or (about.begins and own.has_rows):
            own = _Own(os.urandom(8).hex(), has_rows=False)
        self._own = own
        _write(workdir, own)
        offline = _offline_files(workdir, own.ident)
        known = max((step for path in offline for step in steps_of(path)), default=-1)
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=own.ident,
                name=about.name,
                dir=str(workdir),
                config=dict(about.config),
                resume="allow",
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"--mirror=wandb cannot begin ({lines[0][:200]}): `wandb login`, or WANDB_MODE="
                "offline, which keeps its rows in the workdir for `wandb sync`"
            ) from error
        if self._run.offline:
            self.last_step = known
            return
        if left := [path.parent for path in offline if not _is_synced(path)]:
            self._run.finish(exit_code=1)
            raise ConfigError(
                f"--mirror=wandb: {left[0]} was mirrored offline and is not uploaded: `wandb sync "
                f"{workdir / FOLDER}/offline-run-*` first, or go on with WANDB_MODE=offline"
            )
        self.last_step = self._run.step - 1

    def write(self, step: int, rows: Sequence[Row]) -> None:
        """One record of all seeds, so that a kill cannot part them."""
        if not self._own.has_rows:
            self._own = self._own._replace(has_rows=True)
            _write(self._workdir, self._own)
        self._run.log(record_of(rows), step=step)

    def close(self, *, failed: bool) -> None:
        """Wait until all is written or sent."""
        self._run.finish(exit_code=int(failed))


def make(workdir: Path, about: About) -> Wandb:
    """Open the mirror of a workdir."""
    return Wandb(workdir, about)


def record_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of a step; what has none is left out, as for TensorBoard."""
    found: dict[str, Any] = {}
    for row in rows:
        prefix = f"seed_{row['seed']}/" if len(rows) > 1 else ""
        numbers = {k: v for k, v in row.items() if k not in ("step", "seed") and v is not None}
        found |= {prefix + name: value for name, value in numbers.items()}
    return found


def _read(workdir: Path) -> _Own | None:
    try:
        data = json.loads((workdir / STATE).read_text())
        return _Own(str(data["id"]), bool(data["has_rows"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{workdir / STATE} is damaged: which run of wandb is this one's is not known; remove "
            "it, and all rows are mirrored to a new one"
        ) from error


def _write(workdir: Path, own: _Own) -> None:
    text = json.dumps({"id": own.ident, "has_rows": own.has_rows})
    files.write_text(workdir / STATE, text + "\n")


# ------------------------------------------------------------------------- files of offline runs


def _offline_files(workdir: Path, ident: str) -> list[Path]:
    """What earlier processes have mirrored offline, a file each."""
    folder, name = workdir / FOLDER, f"run-{ident}.wandb"
    if not folder.is_dir():
        return []
    below = [path / name for path in folder.iterdir() if path.name.startswith("offline-run-")]
    return sorted(path for path in below if path.is_file())


def _is_synced(path: Path) -> bool:
    return path.with_name(path.name + ".synced").exists() or not steps_of(path)


def steps_of(path: Path) -> list[int]:
    """The steps that a file of wandb holds; a kill leaves its last record half-written."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            found.append(int(record.history.step.num))
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a file, up to a damaged one: LevelDB's log behind a head of 7 bytes."""
    place, pieces = _HEAD, b""
    if not data.startswith(_IDENTITY):
        return
    while place + _HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:  # no room for a head: the next block
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + _HEAD : place + _HEAD + length]
        if len(piece) < length or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            return
        place, pieces = place + _HEAD + length, pieces + piece
        if kind in (_WHOLE, _LAST):
            yield pieces
            pieces = b""
