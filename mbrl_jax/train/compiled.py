"""Programs by name, each traced and compiled once, several at the same time.

Tracing has a thread of its own: all programs of a run are traced, and known to be sound, long
before the slowest is compiled.
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from mbrl_jax.experiment.experiment import Experiment, System, load_fixed
from mbrl_jax.experiment.members import Members
from mbrl_jax.train import preemption, preflight
from mbrl_jax.types import Step


class Compiled:
    """Compiles at the first call of a program, unless `begin` was called before."""

    def __init__(self, jitted: Callable[[tuple], Any], first: tuple = ()):
        """`jitted`: (name) -> the jitted function of that name.

        `first`: what every program takes in front of its own arguments; it may be exchanged for
        arrays of the same shapes.
        """
        self._jitted = jitted
        self.first = first
        # XLA releases Python's lock while it compiles; threads beyond the cores gain nothing.
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._tracer = ThreadPoolExecutor(max_workers=1)
        self._programs: dict[tuple, Future] = {}
        self._traced: dict[tuple, Future] = {}

    def begin(self, name: tuple, *args: Any) -> None:
        """Begin to compile a program for these arguments (arrays, or shapes)."""
        trace = self._jitted(name).trace
        tracing = self._traced[name] = self._tracer.submit(trace, *self.first, *args)
        self._programs[name] = self._pool.submit(lambda: tracing.result().lower().compile())

    def require_traced(self) -> None:
        """Wait until all programs that were begun are traced; raises what one of them raised."""
        with preemption.at_once():
            for tracing in list(self._traced.values()):
                tracing.result()

    def temporaries(self, *kinds: str, results: bool = False) -> int:
        """Most bytes that one of them takes on a device beside its arguments; waits for it.

        `results`: what it returns counts too, because it does not take the place of arguments.
        """
        names = [name for name in self._programs if name[0] in kinds]
        found = [self.get(name).memory_analysis() for name in names]
        returned = [one.output_size_in_bytes if results else 0 for one in found]
        taken = [one.temp_size_in_bytes for one in found]
        return max(map(sum, zip(taken, returned, strict=True)), default=0)

    def get(self, name: tuple, *args: Any) -> Any:
        """The compiled program; waits for it."""
        if name not in self._programs:
            self.begin(name, *args)
        with preemption.at_once():
            return self._programs[name].result()

    def call(self, name: tuple, *args: Any) -> Any:
        """Run a program."""
        return self.bound(name, *args)(*args)

    def bound(self, name: tuple, *args: Any) -> Callable:
        """The compiled program as a function of its own arguments."""
        return functools.partial(self.get(name, *args), *self.first)

    def shapes(self, name: tuple, *args: Any) -> Any:
        """What a program returns, as shapes; nothing is compiled."""
        return jax.eval_shape(self._jitted(name), *self.first, *args)

    def close(self) -> None:
        """Give up what has not begun to compile."""
        for pool in (self._pool, self._tracer):
            pool.shutdown(wait=False, cancel_futures=True)


class ProgramsOfMembers:
    """What all programs of a run have in common, wherever its environments step."""

    def __init__(self, experiment: Experiment, system: System, members: Members):
        self._experiment, self.system, self.members = experiment, system, members
        self.num_seeds, self.replay = len(members), system.replay
        self._compiled = Compiled(self._jitted, members.numbers())

    def _jitted(self, name: tuple[Any, ...]) -> Any:
        """The jitted function of that name."""
        raise NotImplementedError

    @functools.cached_property
    def fixed(self) -> dict[str, Step]:
        """The experiment's data sets on the devices, once for all seeds."""
        return load_fixed(self._experiment, self.system.env.spec, self.num_seeds)

    def require_traced(self) -> None:
        """Wait until all that was begun ahead is traced; raises what one of the programs raised."""
        self._compiled.require_traced()

    def serve(self, members: Members) -> None:
        """Run the same programs for other members; see `Members.same_programs`."""
        if not self.members.same_programs(members):
            raise ValueError(f"{members} need other programs than {self.members}")
        self.members, self._compiled.first = members, members.numbers()

    def parameters(self) -> dict[str, int]:
        """Numbers that the learners of one seed train."""
        return preflight.parameters(self.system.agent)

    def close(self) -> None:
        """Give up what has not begun to compile."""
        self._compiled.close()
