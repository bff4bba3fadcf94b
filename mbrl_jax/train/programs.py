"""The programs of a run for S seeds, whatever its environment: init, chunk, evaluate, open_loop."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs import stepped
from mbrl_jax.evaluate import quality
from mbrl_jax.evaluate.open_loop import OPEN_LOOP_ROWS
from mbrl_jax.experiment.experiment import Experiment, System
from mbrl_jax.experiment.members import Members, systems
from mbrl_jax.loops import host, play, seeds
from mbrl_jax.loops.phases import Cadence, Phase, Static, cadence, static
from mbrl_jax.loops.steps import Evaluation, TrainState
from mbrl_jax.runs.checkpoint import template_like
from mbrl_jax.train.compiled import ProgramsOfMembers
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.report import draws, open_loop_of_seed
from mbrl_jax.types import AgentState, HostEnvironments

NUM_SHARED = {"chunk": 4, "evaluate": 1}  # arguments that are the same for all seeds


def make_programs(
    experiment: Experiment, system: System, members: Members
) -> "Programs | HostPrograms":
    """The programs for the kind of environment that the system has."""
    on_host = isinstance(system.env, HostEnvironments)
    return (HostPrograms if on_host else Programs)(experiment, system, members)


class Programs(ProgramsOfMembers):
    """Of a JAX environment: whole chunks of iterations are one program."""

    on_host = False

    def __init__(self, experiment: Experiment, system: System, members: Members):
        super().__init__(experiment, system, members)
        self._system_of = systems(experiment, system)

    def compile_ahead(self, keys: jax.Array, *, fresh: bool, evaluating: bool = True) -> None:
        """Begin to compile what a run needs from its start (`fresh`) or from a checkpoint on.

        `evaluating`: and at its end.
        """
        state = self.state_template(keys)
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        chunks = {static(p): cadence(p) for p in reversed(self._experiment.phases)}
        first, *later = reversed(chunks.items())
        self._begin_chunk(first, state, number)
        if fresh:
            self._compiled.begin(("init",), keys)
        for chunk in later:
            self._begin_chunk(chunk, state, number)
        if not evaluating:
            return
        if episodes := self._experiment.eval_episodes:
            limit = jax.ShapeDtypeStruct((), jnp.int32)
            self._compiled.begin(("evaluate", episodes, False), state.agent, keys, limit)
        if draws(self.system):
            self._compiled.begin(self._open_loop_name(), state.agent, keys)

    def _begin_chunk(self, chunk: tuple[Static, Cadence], state: TrainState, number) -> None:
        kind, pace = chunk
        self._compiled.begin(("chunk", kind), state, pace, number, number, self.fixed)

    def temporaries(self) -> int:
        """Bytes that an update takes on a device beside the state; waits until it is compiled."""
        return self._compiled.temporaries("chunk")

    def evaluation_temporaries(self) -> int:
        """The same of what follows the last step."""
        return self._compiled.temporaries("evaluate", "open_loop", results=True)

    def serve(self, members: Members) -> None:
        """As everywhere; lanes that are stepped from outside serve them too."""
        super().serve(members)
        self.__dict__.pop("_stepped", None)

    def state_template(self, keys: jax.Array) -> TrainState:
        """Shapes, dtypes and shardings of the TrainState [S]."""
        shapes = self._compiled.shapes(("init",), keys)
        return template_like(shapes, seeds.seed_sharding(self.num_seeds))

    def init(self, keys: jax.Array) -> TrainState:
        """Fresh state [S]."""
        return self._compiled.call(("init",), keys)

    def resume(self, keys: jax.Array, state: TrainState, iteration: int) -> TrainState:
        """The state to go on from after a checkpoint: environments are part of it."""
        del keys, iteration
        return state

    def chunk(
        self, phase: Phase, state: TrainState, start: int, stop: int
    ) -> tuple[TrainState, dict, float]:
        """Run `fused.chunk`: (state, metrics on the host, seconds without compiling)."""
        args = state, cadence(phase), np.uint32(start), np.uint32(stop), self.fixed
        program = self._compiled.bound(("chunk", static(phase)), *args)
        began = time.perf_counter()
        state, metrics = program(*args)
        metrics = seeds.gather(metrics, self.num_seeds)
        return state, metrics, time.perf_counter() - began

    def evaluate(
        self,
        num_episodes: int,
        explore: bool,
        agent: AgentState,
        keys: jax.Array,
        max_steps: int,
        protocol: str = "clean",
    ) -> Evaluation:
        """Run `fused.evaluate`: Evaluation [S, E] on the host; other protocols lane by lane."""
        if protocol != "clean":
            args = (num_episodes, explore, agent, keys, max_steps, protocol)
            return self._stepped.evaluate(*args)
        name = ("evaluate", num_episodes, explore)
        played = self._compiled.call(name, agent, keys, np.int32(max_steps))
        return seeds.gather(played, self.num_seeds)

    def film(self, agent: AgentState, keys: jax.Array, max_steps: int) -> list[play.Film]:
        """A greedy episode of each seed, with what was seen."""
        return self._stepped.film(agent, keys, max_steps)

    def open_loop(
        self,
        agent: AgentState,
        keys: jax.Array,
        context: int | None = None,
        num_rows: int = OPEN_LOOP_ROWS,
    ):
        """Open-loop predictions [S] for the pictures, on the host; `context` rows are seen."""
        name = self._open_loop_name(context, num_rows)
        return seeds.gather(self._compiled.call(name, agent, keys), self.num_seeds)

    def _open_loop_name(self, context: int | None = None, num_rows: int = OPEN_LOOP_ROWS) -> tuple:
        context = self._experiment.open_loop_context if context is None else context
        return "open_loop", context, num_rows

    def quality(self, agent: AgentState, keys: jax.Array, measured: quality.Config):
        """What the world model predicts, `quality.Predicted` [S, E], on the host."""
        predicted = self._compiled.call(("quality", measured), agent, keys)
        return seeds.gather(predicted, self.num_seeds)

    @functools.cached_property
    def _stepped(self) -> HostPrograms:
        """The programs of the same system in lanes that are stepped from outside of jit."""

        def system_of(numbers):
            system = self._system_of(numbers)
            env, (_, world_model, agent, replay, _) = stepped.on_host(system.env), system
            parts = (env, agent, world_model, replay, self._experiment.num_envs)
            return system._replace(env=env, entry=host.make_entry_points(*parts))

        return HostPrograms(self._experiment, system_of({}), self.members, system_of)

    def _jitted(self, name: tuple[Any, ...]):
        (kind, *options), num_shared = name, NUM_SHARED.get(name[0], 0)

        def of_member(system: System):
            if kind == "open_loop":
                return functools.partial(open_loop_of_seed, system, *options)
            if kind == "quality":
                parts = (system.env, system.agent, system.world_model, *options)
                return functools.partial(quality.measure, *parts)
            return functools.partial(getattr(system.entry, kind), *options)

        return self.members.over(self._system_of, of_member, num_shared, donate=kind == "chunk")
