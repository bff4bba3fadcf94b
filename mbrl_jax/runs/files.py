"""Files that are complete or absent, their checksums, and the lock of a run's directory."""

import contextlib
import fcntl
import functools
import json
import math
import os
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import owner
from mbrl_jax.runs.layout import LOCK

TEMPORARY = ".tmp"  # what ends so is litter, unless a process is at it


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file through a temporary one: it is complete, and on the disk, or it is absent."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_whole` of named NumPy arrays, as an .npz file."""
    named: Any = arrays
    write_whole(path, lambda file: np.savez(file, **named))


def write_text(path: Path, text: str) -> None:
    """`write_whole` of text."""
    write_whole(path, lambda file: file.write(text.encode()))


def as_json(value: Any) -> str:
    """`value` on one line of JSON; numbers that are not finite, which JSON has none of, as null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync_folder(folder: Path) -> None:
    """Bring renamed and removed names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksums(folder: Path) -> dict[str, list[int]]:
    """{relative path: [bytes, CRC-32]} of all files under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> list[int]:
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            crc, size = zlib.crc32(piece, crc), size + len(piece)
    return [size, crc]


@contextlib.contextmanager
def locked(workdir: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from training in `workdir`; the kernel releases what a crash leaves.

    Of several processes of one run the first one locks. Where another has it, raises ConfigError,
    or waits.
    """
    if jax.process_index():
        yield
        return
    name = f"process {os.getpid()} on {socket.gethostname()}"
    with (workdir / LOCK).open("a+") as file, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(
                f"{workdir} is being trained by {_holder(workdir)}; wait for it, end it, or choose "
                "another --workdir"
            ) from None
        except OSError as error:
            _tell_of_no_locks(workdir, error.strerror)
            if other := stack.enter_context(owner.owned(workdir, name, wait)):
                raise ConfigError(
                    f"{workdir} is being trained by {other}; wait for it, end it, or choose "
                    f"another --workdir (if it has ended, remove {workdir / owner.OWNER}, or wait "
                    "ten minutes)"
                ) from None
        file.truncate(0)
        file.write(f"{name}\n")
        file.flush()
        yield
        file.truncate(0)


@functools.cache
def _tell_of_no_locks(workdir: Path, why: str | None) -> None:
    """Say it once for each directory."""
    print(
        f"the file system of {workdir} has no locks ({why}): a file, {owner.OWNER}, keeps a second "
        "process out; put runs on a disk with locks if you can",
        file=sys.stderr,
        flush=True,
    )


def _holder(workdir: Path) -> str:
    text = (workdir / LOCK).read_text(errors="replace")
    return "".join(c for c in text[:200] if c.isprintable()) or "another process"
