"""Whether a process that left its name in a file still lives. Nothing heavy is imported here."""

import os
import re
import socket
import time
from pathlib import Path

from mbrl_jax.runs.layout import LOCK

SILENT_AFTER = 600.0  # seconds without a sign after which a process on another host counts as gone
_HOLDER = re.compile(r"process ([1-9]\d{0,8}) on (\S{1,200})")


def is_alive(process: int, host: str, last_sign: float | None, silent_after: float) -> bool:
    """Whether a process lives.

    Args:
      process: its number.
      host: the machine that it ran on. On this one the kernel is asked; of another machine's
        process only its signs are known.
      last_sign: seconds since 1970 when it last showed itself; None: never.
      silent_after: seconds without a sign after which another machine's process counts as gone.
    """
    if host != socket.gethostname():
        return last_sign is not None and time.time() - last_sign < silent_after
    if process < 1:  # 0 and below name groups of processes, and ours among them
        return False
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's: there is one
        return True
    except (OSError, OverflowError):
        return False
    return True


def trainer(workdir: Path, last_sign: float | None) -> str:
    """The living process that trains in a directory, "process 4711 on host"; "" where none does.

    Read off the text of the lock. The lock itself is not tried: somebody who begins to train at
    that moment would be refused. `last_sign` as for `is_alive`.
    """
    try:
        with (workdir / LOCK).open(errors="replace") as file:
            found = _HOLDER.match(file.read(300))
    except OSError:
        return ""
    if found is None or not is_alive(int(found[1]), found[2], last_sign, SILENT_AFTER):
        return ""
    return found[0]
