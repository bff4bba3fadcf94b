"""Machines that are taken away: a signal lets the run save, and end with a status that says so.

Schedulers send SIGTERM (or, if asked to, SIGUSR1 or SIGUSR2) some seconds before SIGKILL. A run
that listens finishes its chunk, saves, and raises Preempted. Where nothing would be lost, while it
compiles or evaluates (`at_once`), that is raised where the signal arrives.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

from mbrl_jax.train import runtime

PREEMPTED = 75  # exit status (EX_TEMPFAIL): run the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Preempted(Exception):
    """The run was asked to end, and has saved; the same command goes on."""


class _Notice:
    """What has arrived in this process."""

    listening = False
    received: signal.Signals | None = None
    raises = False  # whether the next signal raises where it arrives


_notice = _Notice()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Take the signals; the old handlers come back at the end.

    Only the main thread can. Elsewhere, and inside of another `listening`, this does nothing.
    """
    if _notice.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _notice.listening, _notice.received, _notice.raises = True, None, False
    old = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            # None: a handler that was not made from Python, which cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _notice.listening, _notice.received = False, None


def _handle(number: int, frame: object) -> None:
    del frame
    _notice.received = signal.Signals(number)
    if _notice.raises:
        check()


def received() -> bool:
    """Whether a signal has asked the run to end (asked from the main thread)."""
    own = threading.current_thread() is threading.main_thread()
    return own and _notice.received is not None


def check() -> None:
    """Raise Preempted if a signal has arrived."""
    if received():
        raise ended()


def ended(saved: str = "") -> Preempted:
    """The exception; `saved` says what is on disk."""
    cause = _notice.received.name if _notice.received else "a signal to another process"
    return Preempted(f"{cause}{', ' if saved else ''}{saved}: the same command goes on")


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside, nothing is lost if a signal raises Preempted where it arrives, or has arrived.

    Of several processes none leaves the others waiting: they end together, after a chunk.
    """
    if threading.current_thread() is not threading.main_thread() or runtime.is_joined():
        yield
        return
    before, _notice.raises = _notice.raises, _notice.listening
    try:
        check()
        yield
        check()  # code that swallows exceptions may have swallowed this one
    finally:
        _notice.raises = before
