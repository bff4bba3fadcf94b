"""Agents: a world model, a behaviour and a replay composed into one thing that acts and learns."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import acting, optim, returns
from mbrl_jax.acting import Config as ActingConfig
from mbrl_jax.envs.spec import random_action, zero_action
from mbrl_jax.imagination import imagine_rollout
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Agent,
    AgentCarry,
    AgentState,
    Array,
    Behaviour,
    BoundModel,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Starts,
    Timestep,
    Trajectory,
    Transition,
    WorldModel,
    bind,
    switch,
)

_ROWS_AT_ONCE = 1024  # of contexts that are encoded to imagine from
CAUSE = "agent/cause"  # of a freeze, as its number among `causes`; not for the log
_NO_CAUSE = ("agent", "count", "episode")  # groups of metrics that no update of a learner gives


@dataclasses.dataclass(frozen=True)
class Config:
    """How world model and behaviour meet."""

    num_starts: int = 1024  # M imagination starts of one update
    starts: Literal["trained", "contexts"] = switch(
        "trained",
        published="contexts",
        better="trained",
        why="imagine from rows of the windows that the model was just trained on, or behind "
        "windows drawn for it (replay.context_length rows each), which are encoded anew: at the "
        "published size that is two thirds of a behaviour update",
    )
    acting: ActingConfig = ActingConfig()
    # 0: the behaviour imagines by itself from the replayed rows (Dreamer, Drama).
    # k > 0: branched rollouts of k steps feed a model buffer (Dyna, MBPO).
    branch_length: int = 0

    def validate(self) -> None:
        """Raise ValueError for parts that do not go together."""
        self.acting.validate()
        if self.branch_length and self.starts != "trained":
            raise ValueError("agent.branch_length > 0 has starts of its own: leave agent.starts")

    @property
    def num_contexts(self) -> int:
        """Windows that an update draws to imagine from."""
        return self.num_starts if self.branch_length or self.starts == "contexts" else 0


class Parts(NamedTuple):
    """The pieces of one agent."""

    config: Config
    spec: EnvSpec
    world_model: WorldModel
    behaviour: Behaviour
    replay: Replay
    annotate: Callable


def _as_it_is(state: AgentState, key: Key, batch: Trajectory) -> Trajectory:
    del state, key
    return batch


def make_agent(
    config: Config,
    spec: EnvSpec,
    world_model: WorldModel,
    behaviour: Behaviour,
    replay: Replay,
    annotate: Callable = _as_it_is,
) -> Agent:
    """Compose an agent whose two parts train apart: first the model, then the behaviour on it.

    Args:
      config: how the parts meet.
      spec: of the environment.
      world_model: the model record.
      behaviour: the behaviour record.
      replay: serves the streams that `config` asks for.
      annotate: (state, key, batch) -> batch, before each model update: value gradients, weights
        by distance to an expert, priorities.
    """
    parts = Parts(config, spec, world_model, behaviour, replay, annotate)
    config.validate()
    learn = _learn_from_entries if config.starts == "trained" else _learn_from_contexts
    if config.branch_length:
        learn = _learn_from_branches
    return Agent(
        init=functools.partial(init, parts),
        initial_carry=functools.partial(initial_carry, parts),
        act=functools.partial(act, parts),
        updates={"all": functools.partial(update, parts, learn)},
    )


def init(parts: Parts, key: Key) -> AgentState:
    """Fresh world model and behaviour; the behaviour's input size is read off the model."""
    world_model = parts.world_model.init(named(key, "world_model"))
    latent = parts.world_model.initial_latent()
    shape = jax.eval_shape(parts.world_model.features, world_model, latent)
    behaviour = parts.behaviour.init(named(key, "behaviour"), jnp.zeros(shape.shape, shape.dtype))
    return AgentState(world_model, behaviour, jnp.full((), -1, jnp.int32))


def initial_carry(parts: Parts) -> AgentCarry:
    """What acting starts from in one environment."""
    return AgentCarry(
        acting.empty(parts.config.acting, parts.spec, parts.world_model.initial_latent()),
        zero_action(parts.spec.action),
        parts.behaviour.initial_carry(),
    )


def act(
    parts: Parts,
    state: AgentState,
    key: Key,
    carry: AgentCarry,
    timestep: Timestep,
    *,
    explore: bool,
) -> tuple[AgentCarry, PyTree]:
    """See one row of one environment and choose the action that follows it."""
    model, config = bind(parts.world_model, state.world_model), parts.config.acting
    memory, latent = acting.see(
        config, parts.spec, model, key, carry.memory, carry.prev_action, timestep
    )
    behaviour_carry, action = parts.behaviour.act(
        state.behaviour, named(key, "act"), carry.behaviour, latent, model, explore=explore
    )
    if config.latent == "prior":
        blind = random_action(parts.spec.action, named(key, "blind"))
        action = jax.tree.map(lambda b, a: jnp.where(timestep.is_first, b, a), blind, action)
    return AgentCarry(memory, action, behaviour_carry), action


# -------------------------------------------------------------------------------------- learning


def update(
    parts: Parts, learn, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """One update of model and behaviour; only the replay's counters come back, never its rows.

    A seed whose losses, gradients or new parameters are not finite keeps its last good state from
    then on: `frozen_at` holds the iteration. Replay and environments run on.
    """
    learned, counters, metrics = learn(parts, state, key, replay, iteration)
    # A gradient can be NaN where its loss is not, so the new parameters are looked at too.
    params = (learned.world_model.params, learned.behaviour.params)
    checked = jax.tree.leaves(([total for total, _ in metrics.values()], params))
    finite = optim.gathered([jnp.isfinite(x).all() for x in checked])[0]  # sorted: False first
    alive = state.frozen_at == -1
    freezes = alive & ~finite
    now = jnp.asarray(iteration).astype(jnp.int32)
    frozen_at = jnp.where(freezes, now, state.frozen_at)
    keep = alive & finite
    learned = learned._replace(frozen_at=frozen_at)
    kept = state._replace(frozen_at=frozen_at)
    state = jax.tree.map(lambda new, old: jnp.where(keep, new, old), learned, kept)
    cause = jnp.where(freezes, _first_not_finite(metrics), 0.0)
    metrics[CAUSE] = (cause, freezes.astype(jnp.float32))
    metrics["agent/frozen"] = ((frozen_at != -1).astype(jnp.float32), jnp.ones(()))
    return state, counters, metrics


def _first_not_finite(metrics: Metrics) -> Array:
    """Where the first metric that is not finite stands in `causes` [] float32."""
    names = causes(metrics)
    finite = [jnp.isfinite(metrics[name][0]).all() for name in names]
    return jnp.argmin(jnp.stack([*finite, jnp.zeros((), bool)])).astype(jnp.float32)


def causes(names: Iterable[str]) -> list[str]:
    """Metrics of an update in the order in which they are asked for the cause of a freeze.

    The world model before the behaviour that learns from it, and parts before their sums. A number
    past the last one means that all metrics were finite, and a parameter was not.
    """
    found = [name for name in names if name.split("/")[0] not in _NO_CAUSE]
    is_sum = lambda name: name.endswith(("/loss", "/gradient_norm"))  # noqa: E731
    return sorted(found, key=lambda name: (not name.startswith("model/"), is_sum(name), name))


class Trained(NamedTuple):
    """What comes of one update of the world model."""

    replay: ReplayState  # with the counters after sampling
    batch: Trajectory  # [B, L+1]
    world_model: LearnerState
    entries: PyTree  # [B]
    metrics: Metrics


def _train_model(parts: Parts, state: AgentState, key: Key, replay: ReplayState) -> Trained:
    """Sample windows, annotate them, update the world model."""
    counters, batch, _ = parts.replay.sample(replay, named(key, "sample"), stream="model")
    batch = parts.annotate(state, named(key, "annotate"), batch)
    learned = parts.world_model.update(state.world_model, named(key, "model"), batch)
    return Trained(replay._replace(counters=counters), batch, *learned)


def _learn_from_entries(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Imagination starts from rows of the very windows that the model was trained on."""
    trained = _train_model(parts, state, key, replay)
    starts = draw_starts(
        parts.world_model,
        named(key, "starts"),
        trained.entries,
        trained.batch,
        parts.config.num_starts,
    )
    behaviour, metrics = parts.behaviour.update(
        state.behaviour,
        named(key, "behaviour"),
        bind(parts.world_model, trained.world_model),
        starts,
        trained.batch,
        iteration,
    )
    state = state._replace(world_model=trained.world_model, behaviour=behaviour)
    return state, trained.replay.counters, trained.metrics | metrics


def draw_starts(
    world_model: WorldModel, key: Key, entries: PyTree, batch: Trajectory, num_starts: int
) -> Starts:
    """Latents [M] of different rows of windows [B, L+1], the last row of each left out."""
    windows, length = batch.timestep.reward.shape
    length -= 1
    total = windows * length
    # The ranks of uniform draws: all rows are equally likely, and none is drawn twice.
    flat = jax.lax.top_k(jax.random.uniform(key, (total,)), num_starts)[1]
    window, row = flat // length, flat % length

    def latent(b, t):
        return world_model.latent_at(jax.tree.map(lambda x: x[b], entries), t)

    weight = 1.0 - batch.timestep.is_terminal[window, row].astype(jnp.float32)
    return Starts(jax.vmap(latent)(window, row), weight)


def _learn_from_branches(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Dyna: branch short rollouts off replayed rows into the model buffer, learn from both."""
    trained = _train_model(parts, state, key, replay)
    model, replay = bind(parts.world_model, trained.world_model), trained.replay
    counters, contexts, _ = parts.replay.sample(replay, named(key, "contexts"), stream="imagine")
    starts = _observe_contexts(parts, model, named(key, "observe"), contexts)
    rows = branch(parts, state, named(key, "branch"), model, starts)
    counters = parts.replay.write_back(counters, None, rows)

    replay = replay._replace(counters=counters)
    counters, transitions, _ = parts.replay.sample(
        replay, named(key, "transitions"), stream="behaviour"
    )
    behaviour, metrics = parts.behaviour.update(
        state.behaviour, named(key, "behaviour"), model, starts, transitions, iteration
    )
    state = state._replace(world_model=trained.world_model, behaviour=behaviour)
    return state, counters, trained.metrics | metrics


def _learn_from_contexts(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Imagination starts behind contexts of their own, as the published Drama does.

    The first imagined action follows the state that is expected after the last row of a context.
    """
    trained = _train_model(parts, state, key, replay)
    model = bind(parts.world_model, trained.world_model)
    counters, contexts, _ = parts.replay.sample(
        trained.replay, named(key, "contexts"), stream="imagine"
    )
    starts = _observe_contexts(parts, model, named(key, "observe"), contexts)
    keys = jax.random.split(named(key, "expect"), parts.config.num_starts)
    last_actions = jax.tree.map(lambda x: x[:, -1], contexts.action)
    starts = starts._replace(latent=jax.vmap(model.imagine)(keys, starts.latent, last_actions))
    behaviour, metrics = parts.behaviour.update(
        state.behaviour, named(key, "behaviour"), model, starts, trained.batch, iteration
    )
    state = state._replace(world_model=trained.world_model, behaviour=behaviour)
    return state, counters, trained.metrics | metrics


def _observe_contexts(parts: Parts, model: BoundModel, key: Key, contexts: Trajectory) -> Starts:
    """Latents [M] of the last rows of contexts [M, T], before which nothing is known."""
    num, length = contexts.timestep.reward.shape

    def last_latent(context_key, context):
        entries = acting.observe_from_nothing(parts.spec, model, context_key, context)
        return model.latent_at(entries, length - 1)

    # In groups: all of the published contexts at once would take gigabytes in the encoder.
    latents = jax.lax.map(
        lambda one: last_latent(*one),
        (jax.random.split(key, num), contexts),
        batch_size=min(num, max(1, _ROWS_AT_ONCE // length)),
    )
    weight = 1.0 - contexts.timestep.is_terminal[:, -1].astype(jnp.float32)
    return Starts(latents, weight)


def branch(
    parts: Parts, state: AgentState, key: Key, model: BoundModel, starts: Starts
) -> Transition:
    """Roll the current policy `branch_length` steps; transitions [M · branch_length].

    A step counts (valid = 1) while no termination was predicted before it (arXiv 1906.08253,
    algorithm 2).
    """
    horizon = parts.config.branch_length

    def policy(policy_key, latent):
        carry = parts.behaviour.initial_carry()
        return parts.behaviour.act(state.behaviour, policy_key, carry, latent, model, explore=True)[
            1
        ]

    def extract(latent):
        return model.decode(latent), model.predict(latent)

    def rollout(rollout_key, latent, weight):
        (observations, prediction), actions = imagine_rollout(
            model, policy, rollout_key, latent, horizon, extract
        )
        discount = (prediction.discount[1:] > 0.5).astype(jnp.float32)
        reached = returns.survival(discount, weight)
        before, after = (
            jax.tree.map(lambda x: x[:-1], observations),
            jax.tree.map(lambda x: x[1:], observations),
        )
        return Transition(before, actions, prediction.reward[1:], after, discount, reached)

    keys = jax.random.split(key, starts.weight.shape[0])
    rows = jax.vmap(rollout)(keys, starts.latent, starts.weight)
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), rows)
