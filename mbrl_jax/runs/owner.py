"""Who owns a directory where the file system has no locks: a file that only one process can make.

The owner touches it while it lives. One that is silent for ten minutes, or whose process is gone
from this machine, has ended, and its file is taken over. Two that take it over at the same moment
may both go on: a lock of the kernel is better.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mbrl_jax.runs import liveness

OWNER = "lock.owner"
_SIGN_EVERY = 60.0  # seconds
_NAME = re.compile(r"process ([1-9]\d{0,8}) on (\S{1,200})")


@contextlib.contextmanager
def owned(workdir: Path, name: str, wait: bool) -> Iterator[str]:
    """Own `workdir` as `name`, "process 4711 on host"; yields "" or the living owner's name."""
    path = workdir / OWNER
    while (other := _take(path, name)) and wait:
        time.sleep(1.0)
    if other:
        yield other
        return
    ended = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(path, ended), daemon=True)
    signs.start()
    try:
        yield ""
    finally:
        ended.set()
        signs.join()
        path.unlink(missing_ok=True)


def _take(path: Path, name: str) -> str:
    """Make the file, over that of one that has ended; "" or who owns it already."""
    try:
        with path.open("x") as file:
            file.write(name)
        return ""
    except FileExistsError:
        pass
    try:
        text, sign = path.read_text(errors="replace")[:300], path.stat().st_mtime
    except FileNotFoundError:  # just given up
        return _take(path, name)
    if found := _NAME.match(text):
        alive = liveness.is_alive(int(found[1]), found[2], sign, liveness.SILENT_AFTER)
    else:  # not written yet, or damaged
        alive = time.time() - sign < liveness.SILENT_AFTER
    if alive:
        return found[0] if found else "another process"
    path.unlink(missing_ok=True)
    return _take(path, name)


def _give_signs(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_SIGN_EVERY):
        with contextlib.suppress(OSError):
            os.utime(path)
