"""Programs by name, each traced and compiled once, several at the same time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mbrl_jax.train import preemption, work


class Compiled:
    """Compiles at the first call of a program, unless `begin` was called before."""

    def __init__(self, jitted: Callable[[tuple], Callable]):
        """`jitted`: (name) -> the jitted function of that name."""
        self._jitted = jitted
        # XLA releases Python's lock while it compiles; threads beyond the cores gain nothing.
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._programs: dict[tuple, Future] = {}
        self.flops: dict[tuple, float] = {}  # of those that were traced; see `work.count_flops`

    def begin(self, name: tuple, *args: Any) -> None:
        """Begin to compile a program for these arguments (arrays, or shapes)."""

        def compile_now():
            traced = self._jitted(name).trace(*args)
            self.flops[name] = work.count_flops(traced.jaxpr)
            return traced.lower().compile()

        self._programs[name] = self._pool.submit(compile_now)

    def get(self, name: tuple, *args: Any) -> Callable:
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
        self._pool.shutdown(wait=False, cancel_futures=True)
