"""An experiment is a value: frozen configs that say what to build and how long to run it."""

import dataclasses
from typing import NamedTuple

from mbrl_jax.agent import Config as AgentConfig
from mbrl_jax.agent import make_agent
from mbrl_jax.behaviours import actor_critic, ppo, sac
from mbrl_jax.envs import atari, envpool, gymnax, probe
from mbrl_jax.replay import dyna, ring
from mbrl_jax.train import config, host_loop, loop
from mbrl_jax.types import Agent, Environment, EnvSpec, HostEnvironments, Replay, WorldModel
from mbrl_jax.world_models import drama, ensemble


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to run. The type of each config decides what it builds.

    A *step* is one row of one environment of a seed, so a run has Σ iterations · num_envs of
    them. Environment steps, logged beside, leave out the rows that only begin an episode.
    """

    name: str
    env: gymnax.Config | probe.Config | atari.Config | envpool.Config
    model: drama.Config | ensemble.Config
    behaviour: actor_critic.Config | ppo.Config | sac.Config
    replay: ring.Config
    agent: AgentConfig
    phases: tuple[loop.Phase, ...]
    stop_after: int | None = None  # rows of each environment: the run ends there, within a phase
    model_buffer: dyna.Config | None = None  # with agent.branch_length > 0
    num_envs: int = 1  # N, environments of one seed
    log_every: int = 100  # iterations between rows of metrics.jsonl
    checkpoint_every: int = 500  # iterations; a multiple of log_every
    eval_episodes: int = 100  # greedy episodes of each seed after the last step
    eval_max_steps: int = 10_000  # environment steps after which such an episode is cut
    open_loop_context: int = 1  # rows that the report's open-loop prediction may see
    debug: tuple[str, ...] = ()  # assignments that `--debug` makes beside shorter phases

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
        if self.num_envs < 1 or not self.phases or min(p.iterations for p in self.phases) < 0:
            raise ValueError("num_envs and the phases' iterations must be positive")
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"stop_after={self.stop_after} must be positive, or None")
        if self.iterations >= 2**32:
            raise ValueError(f"{self.iterations} iterations do not fit into their 32-bit counter")
        if self.log_every < 1 or self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} must be a multiple of "
                f"log_every={self.log_every}, and both positive"
            )
        if bool(self.agent.branch_length) != (self.model_buffer is not None):
            raise ValueError(
                "agent.branch_length > 0 and a model_buffer belong together: set both or neither"
            )
        self.agent.validate()
        trained = self.replay.batch_size * self.replay.length
        if not self.agent.num_contexts and self.agent.num_starts > trained:
            raise ValueError(
                f"agent.num_starts={self.agent.num_starts} exceeds the {trained} rows of a batch "
                "(replay.batch_size · replay.length); lower it or enlarge the batch"
            )
        rows, needed = 0, self.real_replay.least_rows(self.num_envs)
        for phase in self.phases:
            if phase.learn and phase.iterations and rows + 1 < needed:
                raise ValueError(
                    f"learning begins after {rows} rows of each environment, but the replay can "
                    f"be sampled from {needed} rows on; lengthen the first phase (a phase with "
                    f"learn=false) or shorten replay.length"
                )
            rows += phase.iterations if phase.collect else 0

    @property
    def real_replay(self) -> ring.Config:
        """The ring, with the streams that the agent reads from it."""
        streams = {"num_contexts": self.agent.num_contexts}
        if self.model_buffer is not None:
            streams["num_transitions"] = self.model_buffer.num_real_windows
        return dataclasses.replace(self.replay, **streams)

    def make_replay(self, spec: EnvSpec) -> Replay:
        """The ring, wrapped by the model buffer if there is one."""
        real = self.real_replay.make(self.num_envs)
        if self.model_buffer is None:
            return real
        rows = self.agent.num_starts * self.agent.branch_length
        return dataclasses.replace(self.model_buffer, rows_per_update=rows).make(real, spec)


class System(NamedTuple):
    """An experiment, built."""

    env: Environment | HostEnvironments
    world_model: WorldModel
    agent: Agent
    replay: Replay
    entry: loop.EntryPoints | host_loop.HostEntryPoints


def build(experiment: Experiment) -> System:
    """Build the records. Raises ValueError where configs do not fit the environment."""
    env = experiment.env.make()
    on_transitions = experiment.model_buffer or isinstance(experiment.model, ensemble.Config)
    if env.spec.seam == "merged" and on_transitions:
        raise ValueError(
            "this world model or model buffer learns from transitions, which need the last row of "
            "every episode; set env.protocol.seam=separate"
        )
    world_model = experiment.model.make(env.spec)
    behaviour = experiment.behaviour.make(env.spec)
    replay = experiment.make_replay(env.spec)
    agent = make_agent(experiment.agent, env.spec, world_model, behaviour, replay)
    if isinstance(env, HostEnvironments):
        make, parts = host_loop.make_entry_points, (env, agent, world_model, replay)
    else:
        make, parts = loop.make_entry_points, (env, agent, replay)
    entry = make(*parts, experiment.num_envs)
    return System(env, world_model, agent, replay, entry)


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
    """The same experiment in seconds: short phases, small nets, few episodes."""
    experiment = config.override(experiment, experiment.debug)
    warmup = experiment.real_replay.least_rows(experiment.num_envs) + 4
    phases = tuple(
        dataclasses.replace(phase, iterations=2 * phase.learn_every + 4 if phase.learn else warmup)
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
