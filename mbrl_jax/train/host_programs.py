"""The programs of a run whose environments step on the host: one for each half of an iteration."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import example_observation, first_timestep, zero_action
from mbrl_jax.evaluate import quality
from mbrl_jax.evaluate.open_loop import OPEN_LOOP_ROWS
from mbrl_jax.experiment.experiment import Experiment, System
from mbrl_jax.experiment.members import Members, systems
from mbrl_jax.keys import at, lane_seeds, named
from mbrl_jax.loops import host, play, seeds
from mbrl_jax.loops.phases import Due, Phase, exploration
from mbrl_jax.loops.steps import Acting, Evaluation, TrainState
from mbrl_jax.runs.checkpoint import template_like
from mbrl_jax.train.compiled import ProgramsOfMembers
from mbrl_jax.train.report import draws, films_rendered
from mbrl_jax.types import (
    AgentState,
    HostEnvironment,
    PyTree,
    Step,
    Timestep,
)

MAX_LANES = 16  # of one seed in evaluation: each plays several episodes, one after the other
NUM_SHARED = {"act": 2, "learn": 3, "evaluate": 1}  # arguments that are the same for all seeds
DONATING = ("act", "learn", "evaluate", "settle")  # they take the buffers of what comes first
PUBLISHED_LANES = 32  # of one seed where episodes are counted as the published Drama does


def _learn_name(due: Due) -> tuple:
    """Of the program of one update; whether it is one of several decides its key."""
    return ("learn", due.name, due.times > 1)


class HostPrograms(ProgramsOfMembers):
    """As `programs.Programs`, with lanes that are opened at `init` or `resume`."""

    on_host = True

    def __init__(
        self,
        experiment: Experiment,
        system: System,
        members: Members,
        system_of: Callable[[Mapping[str, Any]], System] | None = None,
    ):
        super().__init__(experiment, system, members)
        self._rows = seeds.padded(self.num_seeds)
        self._system_of = system_of or systems(experiment, system)
        self._env: Any = None  # open lanes: a HostEnvironment

    def compile_ahead(self, keys: jax.Array, *, fresh: bool, evaluating: bool = True) -> None:
        """Begin to compile what a run needs from its start (`fresh`) or from a checkpoint on.

        `evaluating`: and at its end.
        """
        without = (() if fresh else ("init",)) + (() if evaluating else ("evaluate", "predict"))
        for name, args in self.arguments(keys).items():
            if name[0] not in without:
                self._compiled.begin(name, *args)

    def arguments(self, keys: jax.Array) -> dict[tuple, tuple]:
        """What the programs of a run are compiled for, by their names; the largest first."""
        state, count = self.state_template(keys), jax.ShapeDtypeStruct((), jnp.uint32)
        pace = exploration(self._experiment.phases[0])
        timestep = self._timesteps(self._experiment.num_envs)
        storage, counters, position, _ = state.replay
        learning = host.Learning(state.agent, counters)
        acting, stored = Acting(state.replay, state.carry), host.Stored(storage, position)
        lanes = self._num_lanes(self._experiment.eval_episodes)
        turn = jax.ShapeDtypeStruct((), jnp.int32)
        learns = {
            _learn_name(due): (
                *(learning, state.key, stored, count),
                *(None if due.times == 1 else turn, self.fixed),
            )
            for phase in self._experiment.phases
            for due in phase.dues
        }
        programs = learns | {
            ("init",): (keys, timestep),
            ("act",): (acting, state.agent, state.key, timestep, pace, count),
            ("evaluate", True, 0.0, 1): self._evaluate_args(1, state.agent, keys),
        }
        if lanes:
            programs["evaluate", False, 0.0, lanes] = self._evaluate_args(lanes, state.agent, keys)
        if draws(self.system):
            context = self._experiment.open_loop_context
            programs["predict", context] = (state.agent, keys, self._steps(OPEN_LOOP_ROWS))
        return programs

    def temporaries(self) -> int:
        """Bytes that an update takes on a device beside the state; waits until it is compiled."""
        return self._compiled.temporaries("learn")

    def evaluation_temporaries(self) -> int:
        """The same of what follows the last step."""
        return self._compiled.temporaries("evaluate", "predict", results=True)

    def serve(self, members: Members) -> None:
        """As everywhere; lanes are opened anew."""
        super().serve(members)
        self._close_lanes()

    def close(self) -> None:
        """Close the lanes, and give up what has not begun to compile."""
        super().close()
        self._close_lanes()

    def _close_lanes(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None

    def state_template(self, keys: jax.Array) -> TrainState:
        """Shapes, dtypes and shardings of the TrainState [S]."""
        timesteps = self._timesteps(self._experiment.num_envs)
        return self._template(self._compiled.shapes(("init",), keys, timesteps))

    def init(self, keys: jax.Array) -> TrainState:
        """Open the lanes; fresh state [S]."""
        self._env = self._open(keys, self._experiment.num_envs)
        return self._compiled.call(("init",), keys, self._put(self._env.reset(None)))

    def resume(self, keys: jax.Array, state: TrainState, iteration: int) -> TrainState:
        """Open new lanes, with other seeds than those before; the state to go on from."""
        keys = jax.jit(jax.vmap(lambda key: at(key, "resumed", iteration)))(keys)
        env = self._open(keys, self._experiment.num_envs)
        timestep = seeds.local(state.timestep)
        self._env, timestep = host.restart(env, self.system.env.spec, timestep)
        episode = jax.tree.map(np.zeros_like, seeds.local(state.episode))
        return self._stored(state._replace(timestep=timestep, episode=episode))

    def chunk(
        self, phase: Phase, state: TrainState, start: int, stop: int
    ) -> tuple[TrainState, dict, float]:
        """Run `host.run_chunk`: (state, metrics on the host, seconds without compiling)."""
        program = self._compiled.bound(("act",))
        names = {due.name: _learn_name(due) for due in phase.dues}
        learn = {due: self._learn_from_fixed(name) for due, name in names.items()}

        def act(acting, agent, key, timestep, *shared):
            acting, action = program(acting, agent, key, self._given(timestep), *shared)
            return acting, seeds.local(action)

        # All programs are waited for before the chunk gives the state away: a signal ends the run
        # here, and the state can be saved.
        settle: Any = None if phase.collect else self._compiled.bound(("settle",), state.replay)
        began = time.perf_counter()
        timestep, episode = seeds.local((state.timestep, state.episode))
        state = state._replace(timestep=timestep, episode=episode)
        metrics_of = (self._compiled.get(name).out_info[1] for name in names.values())
        idle = {
            metric: jax.tree.map(lambda x: np.zeros(self.num_seeds, x.dtype), of)
            for one in metrics_of
            for metric, of in one.items()
        }
        state, metrics = host.run_chunk(
            self.system.env.spec, act, learn, settle, self._env, state, phase, start, stop
        )
        metrics = idle | seeds.gather(metrics, self.num_seeds)
        return self._stored(state), metrics, time.perf_counter() - began

    def evaluate(
        self,
        num_episodes: int,
        explore: bool,
        agent: AgentState,
        keys: jax.Array,
        max_steps: int,
        protocol: str = "clean",
    ) -> Evaluation:
        """Evaluation [S, E] in lanes of its own; "published" counts the first episodes to end."""
        lanes, episodes = self._num_lanes(num_episodes), play.play_episodes
        if protocol == "published":
            lanes, episodes = PUBLISHED_LANES, play.play_first_episodes
        act = self._evaluating(explore, lanes, agent, keys)
        with contextlib.closing(self._open(keys, lanes, evaluation=True)) as env:
            played = episodes(env, act, self._carry(lanes), num_episodes, max_steps)
        return seeds.gather(played, self.num_seeds)

    def film(self, agent: AgentState, keys: jax.Array, max_steps: int) -> list[play.Film]:
        """A greedy episode of each seed: with the keys of an evaluation, its first one.

        Where no image is seen it shows what the environment renders, if it does.
        """
        act = self._evaluating(False, 1, agent, keys)
        rendered = films_rendered(self.system.env)
        with contextlib.closing(self._open(keys, 1, evaluation=True, rendered=rendered)) as env:
            films = play.play_film(env, act, self._carry(1), max_steps, rendered)
        return films[: self.num_seeds]

    def open_loop(
        self,
        agent: AgentState,
        keys: jax.Array,
        context: int | None = None,
        num_rows: int = OPEN_LOOP_ROWS,
    ):
        """Open-loop predictions [S] for the pictures, on the host; `context` rows are seen."""
        act = self._evaluating(True, 1, agent, keys)
        with contextlib.closing(self._open(keys, 1, evaluation=True)) as env:
            played = play.play_rows(env, act, self._carry(1), num_rows)
        rows = self._put(jax.tree.map(lambda x: x[:, 0], played))
        context = self._experiment.open_loop_context if context is None else context
        # A program has a name for each shape that it is called with.
        of_rows = () if num_rows == OPEN_LOOP_ROWS else (num_rows,)
        predicted = self._compiled.call(("predict", context, *of_rows), agent, keys, rows)
        return seeds.gather(predicted, self.num_seeds)

    def quality(self, agent: AgentState, keys: jax.Array, measured: quality.Config):
        """What the world model predicts, `quality.Predicted` [S, E], on the host."""
        share = measured.random_share
        act = self._evaluating(True, measured.lanes, agent, keys, share)
        # Rewards and ends as they were learned from, and not as an evaluation counts them.
        with contextlib.closing(self._open(keys, measured.lanes)) as env:
            rows = play.play_rows(env, act, self._carry(measured.lanes), measured.rows)
        predicted = self._compiled.call(("quality", measured), agent, keys, self._put(rows))
        return seeds.gather(predicted, self.num_seeds)

    def _learn_from_fixed(self, name: tuple) -> Callable:
        """An update that has the data sets."""
        update = self._compiled.bound(name)
        return lambda *args: update(*args, self.fixed)

    # ------------------------------------------------------------------------------------- lanes

    def _open(
        self, keys: jax.Array, num_lanes: int, evaluation: bool = False, rendered: bool = False
    ) -> HostEnvironment:
        numbers = jax.jit(jax.vmap(lambda key: lane_seeds(named(key, "lanes"), num_lanes)))(keys)
        env = self.system.env
        opened = env.open_rendered if rendered else env.open
        return opened(seeds.local(numbers), evaluation=evaluation)

    @staticmethod
    def _num_lanes(num_episodes: int) -> int:
        return min(num_episodes, MAX_LANES)

    def _carry(self, num_lanes: int) -> PyTree:
        """Where acting starts from in lanes [S, E]."""
        shape = (self._rows // jax.process_count(), num_lanes)
        carry = self.system.agent.initial_carry()
        lanes = jax.tree.map(lambda x: np.broadcast_to(x, shape + np.shape(x)), carry)
        return self._put(lanes)

    def _put(self, tree: PyTree) -> PyTree:
        return seeds.place(tree, self.num_seeds)

    def _given(self, tree: PyTree) -> PyTree:
        """What came from the lanes as a program takes it: its own process may give it as it is."""
        return tree if jax.process_count() == 1 else self._put(tree)

    def _stored(self, state: TrainState) -> TrainState:
        """The state with what came from the lanes put on the devices."""
        timestep, episode = self._put((state.timestep, state.episode))
        return state._replace(timestep=timestep, episode=episode)

    # ---------------------------------------------------------------------------------- programs

    def _jitted(self, name: tuple[Any, ...]):
        kind, *options = name
        shared, donate = NUM_SHARED.get(kind, 0), kind in DONATING

        def of_member(system: System):
            if kind == "evaluate":  # for so many lanes, which the shapes tell
                return functools.partial(system.entry.evaluate, *options[:2])
            if kind == "predict":
                return functools.partial(system.entry.predict, options[0])
            if kind == "learn":
                return functools.partial(system.entry.learn, options[0])
            if kind == "quality":
                parts = (system.env.spec, system.world_model, *options)
                return functools.partial(quality.measure_rows, *parts)
            return getattr(system.entry, kind)

        return self.members.over(self._system_of, of_member, shared, donate)

    def _evaluate_args(self, lanes: int, agent: AgentState, keys: jax.Array) -> tuple:
        step = jax.ShapeDtypeStruct((), jnp.int32)
        return self._carry(lanes), agent, keys, self._timesteps(lanes), step

    def _evaluating(
        self,
        explore: bool,
        lanes: int,
        agent: AgentState,
        keys: jax.Array,
        random_share: float = 0.0,
    ):
        """(carry, timestep, step) -> (carry, action): act in lanes [S, E]."""
        args = self._evaluate_args(lanes, agent, keys)
        program = self._compiled.bound(("evaluate", explore, random_share, lanes), *args)

        def act(carry, timestep, step):
            carry, action = program(carry, agent, keys, self._given(timestep), step)
            return carry, seeds.local(action)

        return act

    def _template(self, tree: PyTree) -> PyTree:
        return template_like(tree, seeds.seed_sharding(self.num_seeds))

    def _timesteps(self, *axes: int) -> Timestep:
        """Template of timesteps [S, *axes]."""
        lane = first_timestep(example_observation(self.system.env.spec.observation))
        shape = (self._rows, *axes)
        lanes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape + x.shape, x.dtype), lane)
        return self._template(lanes)

    def _steps(self, length: int) -> Step:
        """Template of rows [S, T]."""
        lead = self._rows, length
        action = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(lead + x.shape, x.dtype),
            zero_action(self.system.env.spec.action),
        )
        return Step(self._timesteps(length), self._template(action))
