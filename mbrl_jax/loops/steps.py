"""What both loops do in an iteration, as pure functions of one seed.

`iteration` counts rows of a lane, in uint32. It is an argument and not state, because it is the
same for all seeds: conditionals on it stay real conditionals under the seed vmap.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import legal
from mbrl_jax.acting import mix_random
from mbrl_jax.envs.spec import example_row
from mbrl_jax.keys import at, named
from mbrl_jax.loops.phases import Exploration
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    EnvSpec,
    Key,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Step,
    Timestep,
)


class Parts(NamedTuple):
    """Static pieces of the loop."""

    env: Any  # Environment, or HostEnvironments
    agent: Agent
    replay: Replay
    num_envs: int


class Episode(NamedTuple):
    """The running episode of one environment."""

    episode_return: Array  # []
    length: Array  # [] int32 environment steps
    extras: dict[str, Array] = {}  # [] sums of what else the environment says


class TrainState(NamedTuple):
    """Everything that changes in one seed; S seeds add a leading axis to every leaf."""

    key: Key
    agent: AgentState
    replay: ReplayState
    carry: PyTree  # AgentCarry [N]
    env: PyTree  # [N]
    timestep: Timestep  # [N] seen, not yet stored
    episode: Episode  # [N]


def _lanes(parts: Parts, tree: PyTree) -> PyTree:
    """Repeat a lane's pytree for N lanes."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (parts.num_envs,) + jnp.shape(x)), tree)


def fresh_state(parts: Parts, key: Key, env: PyTree, timestep: Timestep) -> TrainState:
    """The state of one seed whose environments [N] were just reset."""
    carry = parts.agent.initial_carry()
    row = example_row(parts.env.spec)._replace(extras=carry.record)
    zeros = {name: jnp.zeros(()) for name in parts.env.spec.extras}
    return TrainState(
        key=named(key, "train"),
        agent=parts.agent.init(named(key, "agent")),
        replay=parts.replay.init(row),
        carry=_lanes(parts, carry),
        env=env,
        timestep=timestep,
        episode=_lanes(parts, Episode(jnp.zeros(()), jnp.zeros((), jnp.int32), zeros)),
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
    pace: Exploration,
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
    carry, action = jax.vmap(mix, (0, 0, 0, None, 0))(
        random_keys, carry, action, pace.random_share, legal.of(timestep)
    )
    rows = Step(timestep, action, carry.record)
    return Acting(parts.replay.add(acting.replay, rows), carry), action


class Arrival(NamedTuple):
    """What one step of the lanes [..., N] meant for their episodes."""

    episode_return: Array  # [..., N] so far
    length: Array  # [..., N]
    done: Array  # [..., N] bool: an episode is over
    is_step: Array  # [..., N] bool: an environment step, and not the row that begins an episode
    extras: dict[str, Array] = {}  # [..., N] sums so far


def account(spec: EnvSpec, episode: Episode, timestep: Timestep) -> tuple[Episode, Arrival]:
    """Count what arrived in the lanes [..., N], for JAX arrays and NumPy's alike."""
    xp = timestep.reward.__array_namespace__()
    total, length = episode.episode_return + timestep.reward, episode.length + 1
    extras = {name: episode.extras[name] + x for name, x in timestep.extras.items()}
    if spec.seam == "merged":  # every row is what a step led to; a first one ends an episode
        done = timestep.is_first
        running = Episode(
            xp.where(done, 0.0, total),
            xp.where(done, 0, length),
            {name: xp.where(done, 0.0, x) for name, x in extras.items()},
        )
        return running, Arrival(total, length, done, xp.ones_like(done), extras)
    is_step = ~timestep.is_first
    running = Episode(
        xp.where(is_step, total, 0.0),
        xp.where(is_step, length, 0),
        {name: xp.where(is_step, x, 0.0) for name, x in extras.items()},
    )
    return running, Arrival(
        running.episode_return, running.length, timestep.is_last, is_step, running.extras
    )


def episode_metrics(arrival: Arrival) -> Metrics:
    """Metrics [...] of what arrived in lanes [..., N]."""
    xp = arrival.done.__array_namespace__()
    sum_done = lambda x: xp.where(arrival.done, x, 0).sum(-1).astype("float32")  # noqa: E731
    count = sum_done(1)
    return {
        "episode/return": (sum_done(arrival.episode_return), count),
        "episode/length": (sum_done(arrival.length), count),
        **{f"episode/{name}": (sum_done(x), count) for name, x in arrival.extras.items()},
        "count/env_steps": (arrival.is_step.sum(-1).astype("float32"), xp.ones_like(count)),
    }


def update(
    parts: Parts,
    name: str,
    key: Key,
    agent: AgentState,
    replay: ReplayState,
    iteration: Array,
    turn: Array | None,
) -> tuple[AgentState, PyTree, Metrics]:
    """One update of the agent by its name: (agent, the replay's counters, metrics).

    `turn` [] counts the updates of one iteration; None where there is only one.
    """
    own = key if name == "all" else named(key, name)
    key = at(own, "learn", iteration)
    if turn is not None:
        key = jax.random.fold_in(key, turn)
    agent, counters, metrics = parts.agent.updates[name](agent, key, replay, iteration)
    one = (jnp.ones(()), jnp.ones(()))
    counts = {"count/updates": one}
    if name != "all":
        counts[f"count/{name}"] = one
    return agent, counters, metrics | counts


def add_metrics(total: Metrics, more: Metrics) -> Metrics:
    """Sums and counts of both."""
    both = {
        name: jax.tree.map(lambda x, y: x + y, total[name], more[name])
        for name in total
        if name in more
    }
    return total | more | both


class Evaluation(NamedTuple):
    """Complete episodes of one seed, one from each lane: short ones are no favourites."""

    episode_return: Array  # [E]
    length: Array  # [E] int32
    finished: Array  # [E] bool; False: cut at the step limit
    extras: dict[str, Array] = {}  # [E] sums of what else the environment says
