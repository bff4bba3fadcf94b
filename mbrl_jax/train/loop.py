"""The one training loop, as pure functions of one seed: init, chunk, evaluate.

`iteration` counts rows of a lane, in uint32. It is an argument and not state, because it is the
same for all seeds: conditionals on it stay real conditionals under the seed vmap.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.acting import mix_random
from mbrl_jax.envs.spec import example_row
from mbrl_jax.keys import at, named
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    Environment,
    EnvSpec,
    HostEnvironments,
    Key,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Step,
    Timestep,
)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of iterations; an experiment is a sequence of them.

    In each iteration every environment adds a row (`collect`) and, at every `learn_every`-th, the
    agent updates (`learn`). Each action is a uniform one with probability `random_share`: 1 for a
    stretch that explores, whether the agent learns meanwhile or not. A uniform action is held for
    `random_rows` rows: chance alone hardly leads far from the policy's path (temporally extended
    exploration: Dabney et al. 2020, arXiv 2006.01782).
    """

    iterations: int
    collect: bool = True
    learn: bool = True
    learn_every: int = 1
    random_share: float = 0.0
    random_rows: int = 1

    def validate(self) -> None:
        """Raise ValueError for numbers that mean nothing."""
        if self.learn_every < 1 or self.random_rows < 1:
            raise ValueError("learn_every and random_rows must be positive")
        if not 0 <= self.random_share <= 1:
            raise ValueError(f"random_share={self.random_share} must lie between 0 and 1")


class Cadence(NamedTuple):
    """A phase as scalars: traced, and the same for all seeds."""

    learn_every: Array  # [] uint32; 0 means never
    random_share: Array  # [] float32
    random_rows: Array  # [] uint32


def cadence(phase: Phase) -> Cadence:
    """The traced part of a phase."""
    every = phase.learn_every if phase.learn else 0
    return Cadence(np.uint32(every), np.float32(phase.random_share), np.uint32(phase.random_rows))


class Episode(NamedTuple):
    """The running episode of one environment."""

    episode_return: Array  # []
    length: Array  # [] int32 environment steps


class TrainState(NamedTuple):
    """Everything that changes in one seed; S seeds add a leading axis to every leaf."""

    key: Key
    agent: AgentState
    replay: ReplayState
    carry: PyTree  # AgentCarry [N]
    env: PyTree  # [N]
    timestep: Timestep  # [N] seen, not yet stored
    episode: Episode  # [N]


class EntryPoints(NamedTuple):
    """The functions that get jitted, of one seed."""

    init: Callable  # (key) -> TrainState
    chunk: Callable  # (collecting, TrainState, Cadence, start, stop) -> (TrainState, Metrics)
    evaluate: Callable  # (number of episodes, explore, AgentState, key, max_steps) -> Evaluation


def make_entry_points(env: Environment, agent: Agent, replay: Replay, num_envs: int) -> EntryPoints:
    """Bind the loop to one environment, agent and replay."""
    parts = Parts(*_traced_once(env, agent), replay, num_envs)
    return EntryPoints(
        init=functools.partial(init, parts),
        chunk=functools.partial(chunk, parts),
        evaluate=functools.partial(evaluate, parts),
    )


class Parts(NamedTuple):
    """Static pieces of the loop."""

    env: Environment | HostEnvironments
    agent: Agent
    replay: Replay
    num_envs: int


def _traced_once(env: Environment, agent: Agent) -> tuple[Environment, Agent]:
    """The same parts; Python runs each once for a shape, and what it traced is inlined each time.

    The shapes of metrics are asked for before a loop and before a conditional: what they hold would
    be traced four times.
    """
    inline = functools.partial(jax.jit, inline=True)
    act = inline(agent.act, static_argnames="explore")
    updates = {name: inline(update) for name, update in agent.updates.items()}
    return env._replace(step=inline(env.step)), agent._replace(act=act, updates=updates)


def _lanes(parts: Parts, tree: PyTree) -> PyTree:
    """Repeat a lane's pytree for N lanes."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (parts.num_envs,) + jnp.shape(x)), tree)


def init(parts: Parts, key: Key) -> TrainState:
    """Fresh state of one seed. Run it under `jit`: eager leaves may share buffers."""
    env, timestep = jax.vmap(parts.env.reset)(jax.random.split(named(key, "reset"), parts.num_envs))
    return fresh_state(parts, key, env, timestep)


def fresh_state(parts: Parts, key: Key, env: PyTree, timestep: Timestep) -> TrainState:
    """The state of one seed whose environments [N] were just reset."""
    return TrainState(
        key=named(key, "train"),
        agent=parts.agent.init(named(key, "agent")),
        replay=parts.replay.init(example_row(parts.env.spec)),
        carry=_lanes(parts, parts.agent.initial_carry()),
        env=env,
        timestep=timestep,
        episode=_lanes(parts, Episode(jnp.zeros(()), jnp.zeros((), jnp.int32))),
    )


class Acting(NamedTuple):
    """What acting changes in one seed."""

    replay: ReplayState
    carry: PyTree  # AgentCarry [N]


def choose(
    parts: Parts,
    acting: Acting,
    agent: AgentState,
    key: Key,
    timestep: Timestep,
    pace: Cadence,
    iteration: Array,
) -> tuple[Acting, PyTree]:
    """Act once in every environment and store the rows [N]; returns the actions [N]."""
    act_keys = jax.random.split(at(key, "act", iteration), parts.num_envs)
    act = functools.partial(parts.agent.act, explore=True)
    carry, action = jax.vmap(act, (None, 0, 0, 0))(agent, act_keys, acting.carry, timestep)
    # Keys of a stretch of rows, not of one: the same lane draws the same action until it is over.
    stretch = iteration // pace.random_rows
    random_keys = jax.random.split(at(key, "random", stretch), parts.num_envs)
    mix = functools.partial(mix_random, parts.env.spec.action)
    carry, action = jax.vmap(mix, (0, 0, 0, None))(random_keys, carry, action, pace.random_share)
    return Acting(parts.replay.add(acting.replay, Step(timestep, action)), carry), action


class Arrival(NamedTuple):
    """What one step of the lanes [..., N] meant for their episodes."""

    episode_return: Array  # [..., N] so far
    length: Array  # [..., N]
    done: Array  # [..., N] bool: an episode is over
    is_step: Array  # [..., N] bool: an environment step, and not the row that begins an episode


def account(spec: EnvSpec, episode: Episode, timestep: Timestep) -> tuple[Episode, Arrival]:
    """Count what arrived in the lanes [..., N], for JAX arrays and NumPy's alike."""
    xp = timestep.reward.__array_namespace__()
    total, length = episode.episode_return + timestep.reward, episode.length + 1
    if spec.seam == "merged":  # every row is what a step led to; a first one ends an episode
        done = timestep.is_first
        running = Episode(xp.where(done, 0.0, total), xp.where(done, 0, length))
        return running, Arrival(total, length, done, xp.ones_like(done))
    is_step = ~timestep.is_first
    running = Episode(xp.where(is_step, total, 0.0), xp.where(is_step, length, 0))
    return running, Arrival(*running, timestep.is_last, is_step)


def episode_metrics(arrival: Arrival) -> Metrics:
    """Metrics [...] of what arrived in lanes [..., N]."""
    xp = arrival.done.__array_namespace__()
    sum_done = lambda x: xp.where(arrival.done, x, 0).sum(-1).astype("float32")  # noqa: E731
    count = sum_done(1)
    return {
        "episode/return": (sum_done(arrival.episode_return), count),
        "episode/length": (sum_done(arrival.length), count),
        "count/env_steps": (arrival.is_step.sum(-1).astype("float32"), xp.ones_like(count)),
    }


def collect(
    parts: Parts, state: TrainState, pace: Cadence, iteration: Array
) -> tuple[TrainState, Metrics]:
    """Act once in every environment, store the rows, and see what follows."""
    acting, action = choose(
        parts,
        Acting(state.replay, state.carry),
        state.agent,
        state.key,
        state.timestep,
        pace,
        iteration,
    )
    env_keys = jax.random.split(at(state.key, "env", iteration), parts.num_envs)
    env, timestep = jax.vmap(parts.env.step)(state.env, env_keys, action)
    episode, arrival = account(parts.env.spec, state.episode, timestep)
    state = state._replace(env=env, timestep=timestep, episode=episode, **acting._asdict())
    return state, episode_metrics(arrival)


def update(
    parts: Parts, key: Key, agent: AgentState, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """One update of the agent: (agent, the replay's counters, metrics)."""
    agent, counters, metrics = parts.agent.update(
        agent, at(key, "learn", iteration), replay, iteration
    )
    return agent, counters, metrics | {"count/updates": (jnp.ones(()), jnp.ones(()))}


def learn(
    parts: Parts, state: TrainState, due: Array, iteration: Array
) -> tuple[TrainState, Metrics]:
    """Update the agent if `due`, a scalar that is the same for all seeds.

    Only the agent and the replay's small counters pass through the conditional.
    """

    def run(operand):
        agent, counters = operand
        replay = state.replay._replace(counters=counters)
        agent, counters, metrics = update(parts, state.key, agent, replay, iteration)
        return (agent, counters), metrics

    def idle(operand):
        return operand, zeros

    operand = (state.agent, state.replay.counters)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, operand)[1])
    (agent, counters), metrics = jax.lax.cond(due, run, idle, operand)
    replay = state.replay._replace(counters=counters)
    return state._replace(agent=agent, replay=replay), metrics


def chunk(
    parts: Parts,
    collecting: bool,
    state: TrainState,
    pace: Cadence,
    start: Array,
    stop: Array,
) -> tuple[TrainState, Metrics]:
    """Iterations start … stop - 1.

    Pace and bounds are traced scalars, so chunks of any length and phase share one program.
    """

    def body(iteration, loop):
        state, total = loop
        state, metrics = step(state, iteration)
        return state, jax.tree.map(jnp.add, total, metrics)

    def step(state, iteration):
        collected = {}
        if collecting:
            state, collected = collect(parts, state, pace, iteration)
        due = (pace.learn_every > 0) & (iteration % jnp.maximum(pace.learn_every, 1) == 0)
        state, learned = learn(parts, state, due, iteration)
        return state, collected | learned

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, state, start)[1]
    )
    return jax.lax.fori_loop(start, stop, body, (state, zeros))


class Evaluation(NamedTuple):
    """Complete episodes of one seed, one from each lane: short ones are no favourites."""

    episode_return: Array  # [E]
    length: Array  # [E] int32
    finished: Array  # [E] bool; False: cut at the step limit


def evaluate(
    parts: Parts,
    num_episodes: int,
    explore: bool,
    agent_state: AgentState,
    key: Key,
    max_steps: Array,
) -> Evaluation:
    """Play one episode in each of E fresh environments, greedily unless `explore`."""
    act = functools.partial(parts.agent.act, explore=explore)

    def lane(lane_key):
        env, timestep = parts.env.reset(named(lane_key, "reset"))
        episode = Evaluation(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), bool))

        def going_on(loop):
            return ~loop[3].finished & (loop[3].length < max_steps)

        def body(loop):
            carry, env, timestep, episode = loop
            carry, action = act(agent_state, at(lane_key, "act", episode.length), carry, timestep)
            env, timestep = parts.env.step(env, at(lane_key, "env", episode.length), action)
            episode = Evaluation(
                episode.episode_return + timestep.reward, episode.length + 1, timestep.is_last
            )
            return carry, env, timestep, episode

        loop = (parts.agent.initial_carry(), env, timestep, episode)
        return jax.lax.while_loop(going_on, body, loop)[3]

    return jax.vmap(lane)(jax.random.split(key, num_episodes))
