"""The loop for JAX environments, as pure functions of one seed: init, chunk, evaluate.

Whole stretches of iterations are one program; see `loops.steps` for what an iteration does.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import legal
from mbrl_jax.keys import at, named
from mbrl_jax.loops.phases import Cadence, Exploration, Static
from mbrl_jax.loops.steps import (
    Acting,
    Evaluation,
    Parts,
    TrainState,
    account,
    add_metrics,
    choose,
    episode_metrics,
    fresh_state,
    update,
)
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    Environment,
    Key,
    Metrics,
    PyTree,
    Replay,
)


class EntryPoints(NamedTuple):
    """The functions that get jitted, of one seed."""

    init: Callable  # (key) -> TrainState
    chunk: Callable  # (Static, TrainState, Cadence, start, stop, fixed) -> (TrainState, Metrics)
    evaluate: Callable  # (number of episodes, explore, AgentState, key, max_steps) -> Evaluation


def make_entry_points(env: Environment, agent: Agent, replay: Replay, num_envs: int) -> EntryPoints:
    """Bind the loop to one environment, agent and replay."""
    parts = Parts(*_traced_once(env, agent), replay, num_envs)
    return EntryPoints(
        init=functools.partial(init, parts),
        chunk=functools.partial(chunk, parts),
        evaluate=functools.partial(evaluate, parts),
    )


def _traced_once(env: Environment, agent: Agent) -> tuple[Environment, Agent]:
    """The same parts; Python runs each once for a shape, and what it traced is inlined each time.

    The shapes of metrics are asked for before a loop and before a conditional: what they hold would
    be traced four times.
    """
    inline = functools.partial(jax.jit, inline=True)
    act = inline(agent.act, static_argnames="explore")
    updates = {name: inline(update) for name, update in agent.updates.items()}
    return env._replace(step=inline(env.step)), agent._replace(act=act, updates=updates)


def init(parts: Parts, key: Key) -> TrainState:
    """Fresh state of one seed. Run it under `jit`: eager leaves may share buffers."""
    env, timestep = jax.vmap(parts.env.reset)(jax.random.split(named(key, "reset"), parts.num_envs))
    return fresh_state(parts, key, env, timestep)


def collect(
    parts: Parts, state: TrainState, pace: Exploration, iteration: Array
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
    timestep = legal.arrived(parts.env.spec, state.timestep, timestep)
    counts = legal.counts(parts.env.spec, state.timestep)
    episode, arrival = account(parts.env.spec, state.episode, timestep)
    state = state._replace(env=env, timestep=timestep, episode=episode, **acting._asdict())
    return state, episode_metrics(arrival) | counts


def learn(
    parts: Parts,
    name: str,
    times: int,
    state: TrainState,
    due: Array,
    iteration: Array,
    fixed: dict[str, PyTree],
) -> tuple[TrainState, Metrics]:
    """Update the agent, `times` in a row, if `due`, a scalar that is the same for all seeds.

    Only the agent and the replay's small counters pass through the conditional.
    """

    def once(operand, turn):
        agent, counters = operand
        replay = state.replay._replace(counters=counters, fixed=fixed)
        agent, counters, metrics = update(parts, name, state.key, agent, replay, iteration, turn)
        return (agent, counters), metrics

    def several(operand):
        def body(turn, loop):
            operand, metrics = once(loop[0], turn)
            return operand, jax.tree.map(jnp.add, loop[1], metrics)

        return jax.lax.fori_loop(0, times, body, (operand, zeros))

    def idle(operand):
        return operand, zeros

    operand = (state.agent, state.replay.counters)
    run = functools.partial(once, turn=None)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, operand)[1])
    (agent, counters), metrics = jax.lax.cond(due, run if times == 1 else several, idle, operand)
    replay = state.replay._replace(counters=counters)
    return state._replace(agent=agent, replay=replay), metrics


def chunk(
    parts: Parts,
    phase: Static,
    state: TrainState,
    pace: Cadence,
    start: Array,
    stop: Array,
    fixed: dict[str, PyTree],
) -> tuple[TrainState, Metrics]:
    """Iterations start … stop - 1.

    Pace and bounds are traced scalars, so chunks of any length and phase share one program. Data
    sets in `fixed` are shared by all seeds.
    """

    def body(iteration, loop):
        state, total = loop
        state, metrics = step(state, iteration)
        return state, jax.tree.map(jnp.add, total, metrics)

    def step(state, iteration):
        metrics: Metrics = {}
        if phase.collect:
            state, metrics = collect(parts, state, pace.exploration, iteration)
        else:
            state = state._replace(replay=parts.replay.settle(state.replay))
        for (name, times), every in zip(phase.updates, pace.every, strict=True):
            due = (every > 0) & (iteration % jnp.maximum(every, 1) == 0)
            state, learned = learn(parts, name, times, state, due, iteration, fixed)
            metrics = add_metrics(metrics, learned)
        return state, metrics

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, state, start)[1]
    )
    return jax.lax.fori_loop(start, stop, body, (state, zeros))


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
        extras = {name: jnp.zeros(()) for name in parts.env.spec.extras}
        episode = Evaluation(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), bool), extras)

        def going_on(loop):
            return ~loop[3].finished & (loop[3].length < max_steps)

        def body(loop):
            carry, env, timestep, episode = loop
            carry, action = act(agent_state, at(lane_key, "act", episode.length), carry, timestep)
            env, after = parts.env.step(env, at(lane_key, "env", episode.length), action)
            timestep = legal.arrived(parts.env.spec, timestep, after)
            episode = Evaluation(
                episode.episode_return + timestep.reward,
                episode.length + 1,
                timestep.is_last,
                jax.tree.map(jnp.add, episode.extras, timestep.extras),
            )
            return carry, env, timestep, episode

        loop = (parts.agent.initial_carry(), env, timestep, episode)
        return jax.lax.while_loop(going_on, body, loop)[3]

    return jax.vmap(lane)(jax.random.split(key, num_episodes))
