"""Become a command that ends with its parent, on some of the cores.

    python mbrl_jax/sweeps/start.py PARENT CORES COMMAND …

PARENT is the process that starts this one: should it vanish, even by SIGKILL, the kernel (Linux)
sends the command SIGTERM, so that it saves and does not go on unseen. CORES is a list such as 0,2,
or "all". It is a program of its own because nothing of this may run in a fork of a process with
threads.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>; holds across exec


def main(parent: int, cores: str, command: list[str]) -> None:
    """Set both and become the command."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: it may outlive its parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it vanished before the call
        sys.exit(128 + signal.SIGTERM)
    if cores != "all" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
