"""The compiled programs of a run, compiled at the same time where that is possible."""

import functools
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from mbrl_jax.train import seeds
from mbrl_jax.train.checkpoint import template_like
from mbrl_jax.train.experiment import Experiment, System
from mbrl_jax.train.loop import Cadence, TrainState
from mbrl_jax.train.report import open_loop_of_seed
from mbrl_jax.types import AgentState


class Programs:
    """The entry points of one system for S seeds; each is traced and compiled once.

    A program is compiled at its first call, unless `compile_ahead` has begun with it before.
    """

    def __init__(self, experiment: Experiment, system: System, num_seeds: int):
        self.num_seeds = num_seeds
        self._experiment, self._system = experiment, system
        # XLA releases Python's lock while it compiles; threads beyond the cores gain nothing.
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._compiled: dict[tuple, Future] = {}

    def compile_ahead(self, keys: jax.Array, *, fresh: bool) -> None:
        """Begin to compile what a run needs from its start (`fresh`) or from a checkpoint on."""
        state = self.state_template(keys)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        pace = Cadence(number, jax.ShapeDtypeStruct((), jnp.float32))
        self._begin(("chunk", self._experiment.phases[0].collect), state, pace, number, number)
        if fresh:
            self._begin(("init",), keys)
        episodes = self._experiment.eval_episodes
        self._begin(("evaluate", episodes, False), state.agent, keys, number)
        self._begin(("open_loop",), state.agent, keys)

    def close(self) -> None:
        """Give up what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def state_template(self, keys: jax.Array) -> TrainState:
        """Shapes, dtypes and shardings of the TrainState [S]."""
        return template_like(
            jax.eval_shape(self._jitted(("init",)), keys), seeds.seed_sharding(self.num_seeds)
        )

    def init(self, keys: jax.Array) -> TrainState:
        """Fresh state [S]."""
        return self._call(("init",), keys)

    def chunk(self, collecting: bool, *args: Any) -> tuple[TrainState, dict, float]:
        """Run `loop.chunk`: (state, metrics on the host, seconds without compiling)."""
        program = self._program(("chunk", collecting), *args)
        began = time.perf_counter()
        state, metrics = program(*args)
        metrics = jax.device_get(metrics)
        return state, metrics, time.perf_counter() - began

    def evaluate(
        self, num_episodes: int, explore: bool, agent: AgentState, keys: jax.Array, max_steps: int
    ):
        """Run `loop.evaluate`: Evaluation [S, E] on the host."""
        name = ("evaluate", num_episodes, explore)
        return jax.device_get(self._call(name, agent, keys, jnp.int32(max_steps)))

    def open_loop(self, agent: AgentState, keys: jax.Array):
        """Open-loop predictions [S] for the pictures, on the host."""
        return jax.device_get(self._call(("open_loop",), agent, keys))

    def _jitted(self, name: tuple):
        entry, (kind, *options) = self._system.entry, name
        if kind == "init":
            return seeds.over_seeds(entry.init, self.num_seeds)
        if kind == "chunk":
            fn = functools.partial(entry.chunk, *options)
            return seeds.over_seeds(fn, self.num_seeds, num_shared=3, donate=True)
        if kind == "evaluate":
            fn = functools.partial(entry.evaluate, *options)
            return seeds.over_seeds(fn, self.num_seeds, num_shared=1)
        fn = functools.partial(open_loop_of_seed, self._experiment, self._system)
        return seeds.over_seeds(fn, self.num_seeds)

    def _begin(self, name: tuple, *args: Any) -> None:
        def compile_now():
            return self._jitted(name).lower(*args).compile()

        self._compiled[name] = self._pool.submit(compile_now)

    def _program(self, name: tuple, *args: Any):
        if name not in self._compiled:
            self._begin(name, *args)
        return self._compiled[name].result()

    def _call(self, name: tuple, *args: Any):
        return self._program(name, *args)(*args)
