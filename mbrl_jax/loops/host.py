"""The loop for environments that step on the host: the parts of `loops.fused`, around the step.

The pure functions of one seed are `init`, `act`, `learn`, `evaluate` and `predict`. `run_chunk` and
`loops.play` drive lanes with them, and do nothing else on the device.

Order of an iteration: act and store the rows; send the actions; update the agent while the lanes
step; receive. An update sees no row that is still on its way, so it is the same whether the lanes
step meanwhile or not.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.acting import with_random_actions
from mbrl_jax.evaluate.open_loop import OpenLoop, predict_rows
from mbrl_jax.keys import at
from mbrl_jax.loops.phases import Phase, exploration
from mbrl_jax.loops.seeds import local
from mbrl_jax.loops.steps import (
    Acting,
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
    AgentCarry,
    AgentState,
    Array,
    EnvSpec,
    HostEnvironment,
    HostEnvironments,
    Key,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Step,
    Timestep,
    WorldModel,
)


class Learning(NamedTuple):
    """What learning changes in one seed."""

    agent: AgentState
    counters: PyTree


class Stored(NamedTuple):
    """What learning only reads."""

    storage: PyTree
    position: Array


class LanesFailed(Exception):
    """The environments raised something in the middle of a chunk; it is the cause of this."""

    def __init__(self, replay: ReplayState):
        super().__init__("the environments failed")
        self.replay = replay  # [S], with the rows of the chunk until then


class HostEntryPoints(NamedTuple):
    """The functions that get jitted, of one seed."""

    init: Callable  # (key, timestep [N]) -> TrainState
    # (Acting, AgentState, key, timestep [N], Exploration, iteration) -> (Acting, action)
    act: Callable
    # (name, Learning, key, Stored, iteration, turn or None, fixed) -> (Learning, Metrics)
    learn: Callable
    # (explore, random_share, carry [E], AgentState, key, timestep [E], step)
    #   -> (carry, action [E])
    evaluate: Callable
    predict: Callable  # (context, AgentState, key, rows: Step [T]) -> OpenLoop
    settle: Callable  # (ReplayState) -> ReplayState, in phases that do not collect


def make_entry_points(
    env: HostEnvironments, agent: Agent, world_model: WorldModel, replay: Replay, num_envs: int
) -> HostEntryPoints:
    """Bind the functions to one system."""
    parts = Parts(env, agent, replay, num_envs)
    return HostEntryPoints(
        init=functools.partial(init, parts),
        act=functools.partial(choose, parts),
        learn=functools.partial(learn, parts),
        evaluate=functools.partial(evaluate, parts),
        predict=functools.partial(predict, world_model),
        settle=replay.settle,
    )


# ----------------------------------------------------------------------------------- of one seed


def init(parts: Parts, key: Key, timestep: Timestep) -> TrainState:
    """Fresh state of one seed, whose lanes [N] begin with `timestep`."""
    return fresh_state(parts, key, (), timestep)


def learn(
    parts: Parts,
    name: str,
    learning: Learning,
    key: Key,
    stored: Stored,
    iteration: Array,
    turn: Array | None,
    fixed: dict[str, PyTree],
) -> tuple[Learning, Metrics]:
    """Update the agent once; see `loops.steps.update`."""
    replay = ReplayState(stored.storage, learning.counters, stored.position, fixed)
    agent, counters, metrics = update(parts, name, key, learning.agent, replay, iteration, turn)
    return Learning(agent, counters), metrics


def evaluate(
    parts: Parts,
    explore: bool,
    random_share: float,
    carry: AgentCarry,
    agent: AgentState,
    key: Key,
    timestep: Timestep,
    step: Array,
) -> tuple[AgentCarry, PyTree]:
    """Act in E lanes; lane i does not depend on E."""
    lanes = jnp.arange(timestep.reward.shape[0])
    keys = jax.vmap(lambda lane: at(jax.random.fold_in(key, lane), "act", step))(lanes)
    actor = with_random_actions(parts.agent, parts.env.spec.action, random_share)
    act = functools.partial(actor.act, explore=explore)
    return jax.vmap(act, (None, 0, 0, 0))(agent, keys, carry, timestep)


def predict(
    world_model: WorldModel, context: int, agent: AgentState, key: Key, rows: Step
) -> OpenLoop:
    """What the world model says of one lane's rows [T] after seeing `context` of them."""
    return predict_rows(world_model, context, agent.world_model, key, rows)


# ------------------------------------------------------------------------------------- all seeds


def run_chunk(
    spec: EnvSpec,
    act: Callable,
    learn: Mapping[str, Callable],
    settle: Callable,
    env: HostEnvironment,
    state: TrainState,
    phase: Phase,
    start: int,
    stop: int,
) -> tuple[TrainState, Metrics]:
    """Iterations start … stop - 1 of S seeds in one phase.

    Args:
      spec: of the environments.
      act, learn, settle: for S seeds, compiled; they take the buffers of what they change. Actions
        are NumPy's arrays; `learn` has the agent's updates by name, each (Learning, key, Stored,
        iteration, turn) -> (Learning, Metrics).
      env: open lanes [S, N].
      state: TrainState [S], what came from the lanes as NumPy's arrays; its buffers are given away.
      phase: how to go on.
      start, stop: bounds.

    Returns:
      (state with NumPy's arrays for what came from the lanes, metrics [S] of what was done).
    """
    acting, agent = Acting(state.replay, state.carry), state.agent
    timestep, episode = state.timestep, state.episode
    pace, arrivals, learned = exploration(phase), [], []
    for iteration in range(start, stop):
        now = np.uint32(iteration)
        if phase.collect:
            acting, action = act(acting, agent, state.key, timestep, pace, now)
            with _lanes_may_fail(acting):
                env.send(action)
        else:
            acting = acting._replace(replay=settle(acting.replay))
        for name, turn in _due(phase, iteration):
            storage, counters, position, fixed = acting.replay
            stored = Stored(storage, position)
            learning = Learning(agent, counters)
            (agent, counters), metrics = learn[name](learning, state.key, stored, now, turn)
            acting = acting._replace(replay=ReplayState(storage, counters, position, fixed))
            learned.append(metrics)
        if phase.collect:
            with _lanes_may_fail(acting):
                timestep = env.receive()
            episode, arrival = account(spec, episode, timestep)
            arrivals.append(arrival)
    state = state._replace(agent=agent, timestep=timestep, episode=episode, **acting._asdict())
    totals = episode_metrics(_stacked(arrivals)) if arrivals else {}
    totals = jax.tree.map(lambda x: x.sum(0), totals)
    for metrics in _by_names(local(learned)):
        totals = add_metrics(totals, jax.tree.map(lambda x: x.sum(0), _stacked(metrics)))
    return state, totals


def _due(phase: Phase, iteration: int) -> Iterator[tuple[str, np.int32 | None]]:
    """(name, turn) of each update that runs in an iteration."""
    for due in phase.dues if phase.learn else ():
        if iteration % due.every == 0:
            for turn in range(due.times):
                yield due.name, None if due.times == 1 else np.int32(turn)


def _by_names(learned: list[Metrics]) -> list[list[Metrics]]:
    """Metrics of updates, those with the same names together."""
    groups: dict[tuple[str, ...], list[Metrics]] = {}
    for metrics in learned:
        groups.setdefault(tuple(sorted(metrics)), []).append(metrics)
    return list(groups.values())


@contextlib.contextmanager
def _lanes_may_fail(acting: Acting) -> Iterator[None]:
    """Turn what the environments raise into LanesFailed; `acting` holds the rows until then."""
    try:
        yield
    except Exception as error:
        raise LanesFailed(acting.replay) from error


def _stacked(trees: list[PyTree]) -> PyTree:
    """One pytree with a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def restart(
    env: HostEnvironment, spec: EnvSpec, timestep: Timestep
) -> tuple[HostEnvironment, Timestep]:
    """Go on with lanes that were opened anew, from rows [S, N] seen in lanes that are gone.

    The episodes that were running end there, without being terminal: (environment, the rows to go
    on from). Its first answer are the first rows of new episodes.
    """
    first = env.reset(None)
    if spec.seam == "merged":
        return env, first._replace(reward=timestep.reward, is_terminal=timestep.is_terminal)
    answers = [first]

    def send(actions):
        if not answers:
            env.send(actions)

    def receive():
        return answers.pop() if answers else env.receive()

    # `send` comes before `receive`, so the first actions are the ones that are ignored.
    ended: Any = np.ones_like(timestep.is_last)
    cut = timestep._replace(is_last=ended)
    return env._replace(send=send, receive=receive), cut
