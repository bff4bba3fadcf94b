"""Programs by name, each traced and compiled once, several at the same time.

Tracing has a thread of its own: all programs of a run are traced, and known to be sound, long
before the slowest is compiled.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mbrl_jax.train import preemption, work


class Compiled:
    """Compiles at the first call of a program, unless `begin` was called before."""

    def __init__(self, jitted: Callable[[tuple], Any]):
        """`jitted`: (name) -> the jitted function of that name."""
        self._jitted = jitted
        # XLA releases Python's lock while it compiles; threads beyond the cores gain nothing.
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._tracer = ThreadPoolExecutor(max_workers=1)
        self._programs: dict[tuple, Future] = {}
        self._traced: dict[tuple, Future] = {}  # floating-point work; see `work.count_flops`

    def begin(self, name: tuple, *args: Any) -> None:
        """Begin to compile a program for these arguments (arrays, or shapes)."""

        flops = self._traced[name] = Future()

        def trace_now():
            try:
                traced = self._jitted(name).trace(*args)
                flops.set_result(work.count_flops(traced.jaxpr))
            except BaseException as error:
                flops.set_exception(error)
                raise
            return traced

        tracing = self._tracer.submit(trace_now)
        self._programs[name] = self._pool.submit(lambda: tracing.result().lower().compile())

    def require_traced(self) -> None:
        """Wait until all programs that were begun are traced; raises what one of them raised."""
        with preemption.at_once():
            for flops in list(self._traced.values()):
                flops.result()

    def flops(self, kind: str) -> float:
        """Most work of the programs whose names begin with `kind`; waits until they are traced."""
        found = [flops for name, flops in self._traced.items() if name[0] == kind]
        # In the middle of training nothing waits here, and a signal has to leave the chunk whole.
        waiting = not all(flops.done() for flops in found)
        with preemption.at_once() if waiting else contextlib.nullcontext():
            return max(flops.result() for flops in found)

    def temporaries(self, kind: str) -> int:
        """Most bytes that one of them takes on a device beside its arguments; waits for it."""
        names = [name for name in self._programs if name[0] == kind]
        return max(self.get(name).memory_analysis().temp_size_in_bytes for name in names)

    def get(self, name: tuple, *args: Any) -> Any:
        """The compiled program; waits for it."""
        if name not in self._programs:
            self.begin(name, *args)
        with preemption.at_once():
            return self._programs[name].result()

    def call(self, name: tuple, *args: Any) -> Any:
        """Run a program."""
        return self.get(name, *args)(*args)

    def close(self) -> None:
        """Give up what has not begun to compile."""
        for pool in (self._pool, self._tracer):
            pool.shutdown(wait=False, cancel_futures=True)
