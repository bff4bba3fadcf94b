"""What a process that steps lanes runs. Nothing here imports jax."""

import os
import signal
from collections.abc import Callable
from typing import Any

GRACE = 30  # seconds that a process outlives SIGTERM: its owner saves meanwhile


def opened(make: Callable[[], Any], owner: int) -> Any:
    """`make()`, in a process that leaves the signals of a job to its owner.

    Ctrl-C and schedulers signal all processes of a job; the owner then finishes its rows and saves.
    """
    if os.getpid() != owner:  # one environment is opened in the owner, to look at its spaces
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    return make()


def limited(make: Callable[[], Any], max_steps: int) -> Any:
    """`make()` whose episodes are cut after `max_steps`."""
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(make(), max_steps)
