"""An experiment is a value: frozen configs that say what to build and how long to run it."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from mbrl_jax import legal
from mbrl_jax.envs.spec import require_sized
from mbrl_jax.errors import UnknownField
from mbrl_jax.evaluate.open_loop import OPEN_LOOP_ROWS
from mbrl_jax.experiment import config
from mbrl_jax.experiment.annotations import tag
from mbrl_jax.loops import fused, host, seeds
from mbrl_jax.loops.phases import Phase
from mbrl_jax.types import (
    Agent,
    EnvSpec,
    HostEnvironments,
    Replay,
    Step,
    WorldModel,
    bounded,
    part,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to run. The type of each config decides what it builds.

    A *step* is one row of one environment of a seed, so a run has Σ iterations · num_envs of
    them. Environment steps, logged beside, leave out the rows that only begin an episode.
    """

    name: str
    env: Any = part("mbrl_jax.envs")
    model: Any = part("mbrl_jax.world_models")
    behaviour: Any = part("mbrl_jax.behaviours")
    replay: Any = part("mbrl_jax.replay")
    agent: Any = part("mbrl_jax.agents")
    phases: tuple[Phase, ...] = ()
    # rows of each environment: the run ends there, within a phase
    stop_after: int | None = bounded(None, low=1)
    num_envs: int = bounded(1, low=1)  # N, environments of one seed
    log_every: int = bounded(100, low=1)  # iterations between rows of metrics.jsonl
    checkpoint_every: int = bounded(500, low=1)  # iterations; a multiple of log_every
    eval_episodes: int = bounded(100, low=0)  # greedy episodes of each seed after the last step
    # environment steps after which such an episode is cut
    eval_max_steps: int = bounded(10_000, low=1)
    # iterations between evaluations in training; a multiple of log_every
    eval_every: int = bounded(0, low=0)
    # environments of the same kind that are played too, by name ("eval/NAME/return")
    eval_envs: tuple[tuple[str, Any], ...] = ()
    data: tuple[tuple[str, Any], ...] = ()  # `datasets.Config`s by name, shared by all seeds
    # rows that the report's open-loop prediction may see
    open_loop_context: int = bounded(1, low=1, high=OPEN_LOOP_ROWS - 1)
    debug: tuple[str, ...] = ()  # assignments that `--debug` makes beside shorter phases
    # what `--set` assigns beside a part or a number: ("model.core=storm", assignments)
    with_parts: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def iterations(self) -> int:
        """Rows of each environment in the whole run."""
        planned = sum(phase.iterations for phase in self.phases)
        return planned if self.stop_after is None else min(planned, self.stop_after)

    @property
    def steps(self) -> int:
        """Rows of a seed in the whole run."""
        return self.iterations * self.num_envs

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together, before anything is traced."""
        if not self.phases:
            raise ValueError("phases is empty: a run needs one at the least")
        if self.iterations >= 2**32:
            raise ValueError(f"{self.iterations} iterations do not fit into their 32-bit counter")
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} must be a multiple of "
                f"log_every={self.log_every}"
            )
        if self.eval_every % self.log_every:
            raise ValueError(
                f"eval_every={self.eval_every} must be a multiple of log_every={self.log_every}"
            )
        if self.eval_every and not self.eval_episodes:
            raise ValueError(f"eval_every={self.eval_every} needs eval_episodes of at least 1")
        known = {name for name, _ in self.data}
        if (read := getattr(self.replay, "data", None)) is not None and read not in known:
            raise ValueError(
                f"the replay reads the data set {read!r}, and data names "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        self.agent.check_batch(self.replay.batch_size * self.replay.length)
        rows, needed = 0, self.least_rows
        for phase in self.phases:
            if phase.learn and phase.iterations and rows + phase.collect < needed:
                raise ValueError(
                    f"learning begins after {rows} rows of each environment, but the replay can "
                    f"be sampled from {needed} rows on; lengthen the first phase (a phase with "
                    f"learn=false) or shorten replay.length"
                )
            rows += phase.iterations if phase.collect else 0

    @property
    def least_rows(self) -> int:
        """Rows that a lane must hold before the agent can learn."""
        return self.replay.least_rows(self.num_envs, tuple(self.agent.streams().items()))

    def make_replay(self, spec: EnvSpec) -> Replay:
        """The replay, with the streams that the agent reads from it."""
        return self.agent.make_replay(self.replay, self.num_envs, spec)


def task_of(experiment: Experiment) -> str:
    """Name of the task that an experiment plays."""
    return str(getattr(experiment.env, "name", None) or tag(type(experiment.env)))


def title_of(experiment: Experiment) -> str:
    """What a run of it is called where people read: system and task."""
    return f"{experiment.name} on {task_of(experiment)}"


class System(NamedTuple):
    """An experiment, built."""

    env: Any  # Environment, or HostEnvironments
    world_model: WorldModel
    agent: Agent
    replay: Replay
    entry: Any  # fused.EntryPoints, or host.HostEntryPoints


def build(experiment: Experiment) -> System:
    """Build the records. Raises ValueError where configs do not fit the environment."""
    env = experiment.env.make()
    require_sized(env.spec)
    legal.require_mask(env.spec)
    world_model = experiment.model.make(env.spec)
    behaviour = experiment.behaviour.make(env.spec)
    replay = experiment.make_replay(env.spec)
    agent = experiment.agent.make(env.spec, world_model, behaviour, replay)
    _check_updates(experiment, agent)
    num_envs = experiment.num_envs
    entry: fused.EntryPoints | host.HostEntryPoints
    if isinstance(env, HostEnvironments):
        env = legal.watched(env)
        entry = host.make_entry_points(env, agent, world_model, replay, num_envs)
    else:
        entry = fused.make_entry_points(env, agent, replay, num_envs)
    return System(env, world_model, agent, replay, entry)


def _check_updates(experiment: Experiment, agent: Agent) -> None:
    """Raise ValueError for an update that a phase asks for and the agent does not have."""
    for phase in experiment.phases:
        for due in phase.dues:
            if due.name not in agent.updates:
                raise ValueError(
                    f"a phase asks for the update {due.name!r}, and this agent has "
                    f"{', '.join(sorted(agent.updates))}"
                )


def load_fixed(experiment: Experiment, spec: EnvSpec, num_seeds: int) -> dict[str, Step]:
    """The data sets of an experiment, [R, …] each, on the devices of S seeds.

    Raises ConfigError for a file that is missing or does not fit the environment.
    """
    if not experiment.data:
        return {}
    from mbrl_jax import datasets

    try:
        loaded = {name: datasets.load(one, spec) for name, one in experiment.data}
    except ValueError as error:
        raise config.ConfigError(f"data: {error}") from error
    return jax.tree.map(lambda x: seeds.replicate(x, num_seeds), loaded)


def with_settings(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """`config.override`, and what `with_parts` says of the parts that are exchanged.

    What is assigned itself counts more than what comes with a part, wherever it stands.
    """
    said = {assignment.partition("=")[0].strip() for assignment in assignments}
    for assignment in assignments:
        before, experiment = experiment, config.override(experiment, [assignment])
        for part_of, settings in experiment.with_parts:
            if has_part(experiment, part_of) and not has_part(before, part_of):
                told = [s for s in settings if s.partition("=")[0] not in said]
                experiment = config.override(experiment, told)
    return experiment


def has_part(experiment: Experiment, assignment: str) -> bool:
    """Whether the part, or the number, that "path=name" names stands there."""
    path, _, name = assignment.partition("=")
    return str(config.flatten(experiment).get(path)) == name


def with_steps(experiment: Experiment, steps: int) -> Experiment:
    """Lengthen or shorten the last phase so that a seed makes `steps` steps, or stop before it.

    Raises ConfigError where that is impossible.
    """
    if steps <= 0 or steps % experiment.num_envs:
        raise config.ConfigError(
            f"--steps={steps} must be positive and a multiple of num_envs={experiment.num_envs}"
        )
    before = sum(phase.iterations for phase in experiment.phases[:-1])
    iterations = steps // experiment.num_envs
    if iterations < before:
        return dataclasses.replace(experiment, stop_after=iterations)
    final = dataclasses.replace(experiment.phases[-1], iterations=iterations - before)
    phases = (*experiment.phases[:-1], final)
    return dataclasses.replace(experiment, phases=phases, stop_after=None)


def for_debug(experiment: Experiment) -> Experiment:
    """The same experiment in seconds: short phases, small nets, few episodes.

    Assignments of `debug` to a part that was exchanged for another one are left out.
    """
    for assignment in experiment.debug:
        with contextlib.suppress(UnknownField):
            experiment = config.override(experiment, [assignment])
    warmup = experiment.least_rows + 4
    phases = tuple(
        dataclasses.replace(phase, iterations=_debug_length(phase) if phase.learn else warmup)
        for phase in experiment.phases
    )
    return dataclasses.replace(
        experiment,
        phases=phases,
        log_every=10,
        checkpoint_every=20,
        eval_episodes=2,
        eval_max_steps=20,
    )


def _debug_length(phase: Phase) -> int:
    """Iterations in which each update of a phase runs at least twice."""
    return 2 * max(due.every for due in phase.dues) + 4
