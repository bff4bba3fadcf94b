"""What all agents share: state, acting, the guard that freezes a seed, and updates by name.

How a world model and a behaviour learn together is said by the type of the agent's config:
`apart` (first the model, then the behaviour in it), `branched` (Dyna: the model feeds a buffer that
the behaviour learns from) and `joint` (one gradient through both).
"""

import functools
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from mbrl_jax import acting, legal, optim
from mbrl_jax.envs.spec import random_action, zero_action
from mbrl_jax.keys import named
from mbrl_jax.replay import latents
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
)

_ROWS_AT_ONCE = 1024  # of contexts that are encoded to imagine from
CAUSE = "agent/cause"  # of a freeze, as `number_of` its metric; not for the log
_NO_CAUSE = ("agent", "count", "episode")  # groups of metrics that no update of a learner gives


class Annotate(Protocol):
    """Add to a batch before the model trains on it: value gradients, weights, priorities."""

    def __call__(self, state: AgentState, key: Key, batch: Trajectory) -> Trajectory:
        """The batch; what is added stands in `Step.extras`, where the model's loss reads it."""


class Parts(NamedTuple):
    """The pieces of one agent."""

    config: Any  # of the agent: `apart.Config`, …
    spec: EnvSpec
    world_model: WorldModel
    behaviour: Behaviour
    replay: Replay
    annotate: Annotate
    keeps_latents: bool = False  # beside every row of the replay: `replay.latents`


class Learn(Protocol):
    """How an agent learns, without the guard."""

    def __call__(
        self, parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
    ) -> tuple[AgentState, PyTree, Metrics]:
        """(state, counters of the replay, metrics)."""


def make_parts(
    config: Any,
    spec: EnvSpec,
    world_model: WorldModel,
    behaviour: Behaviour,
    replay: Replay,
    keeps_latents: bool = False,
) -> Parts:
    """The pieces, with the config's `annotate` made."""
    annotate: Annotate = _as_it_is
    if config.annotate is not None:
        annotate = config.annotate.make(spec, world_model, behaviour)
    if replay is not None:  # who only acts needs none
        replay = replay._replace(sample=functools.partial(_sample, replay.sample))
    return Parts(config, spec, world_model, behaviour, replay, annotate, keeps_latents)


def _sample(sample: Callable, state: ReplayState, key: Key, **stream: str) -> tuple:
    """`Replay.sample` with NaN for every reward, and what else arrived, that is infinite.

    The guard freezes what learns from NaN; two-hot bins would take infinity for a large number.
    """
    counters, batch, indices = sample(state, key, **stream)
    if isinstance(batch, Transition):
        return counters, batch._replace(reward=_finite(batch.reward)), indices
    arrived = batch.timestep
    arrived = arrived._replace(
        reward=_finite(arrived.reward), extras=jax.tree.map(_finite, arrived.extras)
    )
    return counters, batch._replace(timestep=arrived), indices


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isinf(x), jnp.nan, x)


def _as_it_is(state: AgentState, key: Key, batch: Trajectory) -> Trajectory:
    del state, key
    return batch


def bind_parts(parts: Parts, learns: dict[str, Learn]) -> Agent:
    """The record; each of `learns` and each named update of the parts behind the guard.

    Raises ValueError where two updates have the same name.
    """
    of_model = {name: _of_model(f) for name, f in parts.world_model.updates.items()}
    of_behaviour = {name: _of_behaviour(f) for name, f in parts.behaviour.updates.items()}
    names = [*learns, *of_model, *of_behaviour]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two updates of this agent are called {sorted(twice)[0]!r}")
    every = learns | of_model | of_behaviour
    return Agent(
        init=functools.partial(init, parts),
        initial_carry=functools.partial(initial_carry, parts),
        act=functools.partial(act, parts),
        updates={name: functools.partial(guarded, parts, learn) for name, learn in every.items()},
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
    latent = parts.world_model.initial_latent()
    return AgentCarry(
        acting.empty(parts.config.acting, parts.spec, latent),
        zero_action(parts.spec.action),
        parts.behaviour.initial_carry(),
        {latents.NAME: latent} if parts.keeps_latents else {},
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
    # What a behaviour remembers (a plan, …) ends with the episode.
    fresh = parts.behaviour.initial_carry()
    begun = jax.tree.map(lambda f, c: jnp.where(timestep.is_first, f, c), fresh, carry.behaviour)
    told = legal.told(model, timestep)
    behaviour_carry, action = parts.behaviour.act(
        state.behaviour, named(key, "act"), begun, latent, told, explore=explore
    )
    if config.latent == "prior":
        blind = random_action(parts.spec.action, named(key, "blind"), legal.of(timestep))
        begins = acting.begins(config, carry.memory, timestep)
        action = jax.tree.map(lambda b, a: jnp.where(begins, b, a), blind, action)
    record = {latents.NAME: latent} if parts.keeps_latents else carry.record
    return AgentCarry(memory, action, behaviour_carry, record), action


# -------------------------------------------------------------------------------------- learning


def guarded(
    parts: Parts, learn: Learn, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """One update by `learn`; only the replay's counters come back, never its rows.

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
    """`number_of` the first metric that is not finite [] float32; 0 where all are."""
    names = causes(metrics)
    finite = [jnp.isfinite(metrics[name][0]).all() for name in names]
    first = jnp.argmin(jnp.stack([*finite, jnp.zeros((), bool)]))
    return jnp.asarray([*map(number_of, names), 0], jnp.float32)[first]


def number_of(name: str) -> int:
    """A number for a metric that float32 holds exactly, whatever other metrics there are."""
    return zlib.crc32(name.encode()) & 0xFFFFFF


def cause_of(number: float, names: Iterable[str]) -> str:
    """The metric that froze a seed, in words; `number` as `CAUSE` has it."""
    found = [name for name in names if number_of(name) == int(number)]
    return found[0] if found else "a parameter"


def causes(names: Iterable[str]) -> list[str]:
    """Metrics of an update in the order in which they are asked for the cause of a freeze.

    The world model before the behaviour that learns from it, and parts before their sums.
    """
    found = [name for name in names if name.split("/")[0] not in _NO_CAUSE]
    is_sum = lambda name: name.endswith(("/loss", "/gradient_norm"))  # noqa: E731
    return sorted(found, key=lambda name: (not name.startswith("model/"), is_sum(name), name))


# -------------------------------------------------------------------------- pieces of an update


class Trained(NamedTuple):
    """What comes of the world model's half of an update."""

    replay: ReplayState  # with the counters after sampling
    batch: Trajectory  # [B, L+1]
    world_model: LearnerState
    entries: PyTree  # [B]
    metrics: Metrics


def draw_batch(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState
) -> tuple[ReplayState, Trajectory]:
    """Windows [B, L+1] of the stream "model", annotated."""
    replay, batch, _ = draw_windows(parts, state, key, replay)
    return replay, batch


def draw_windows(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState
) -> tuple[ReplayState, Trajectory, PyTree]:
    """The same, with where they lie in the replay."""
    counters, batch, indices = parts.replay.sample(replay, named(key, "sample"), stream="model")
    batch = parts.annotate(state, named(key, "annotate"), batch)
    return replay._replace(counters=counters), batch, indices


def train_model(parts: Parts, state: AgentState, key: Key, replay: ReplayState) -> Trained:
    """Sample windows, annotate them, update the world model."""
    replay, batch = draw_batch(parts, state, key, replay)
    learned = parts.world_model.update(state.world_model, named(key, "model"), batch)
    return Trained(replay, batch, *learned)


def keep_model(parts: Parts, state: AgentState, key: Key, replay: ReplayState) -> Trained:
    """Sample windows and only look at them with the world model as it is."""
    replay, batch = draw_batch(parts, state, key, replay)
    model = bind(parts.world_model, state.world_model)
    keys = jax.random.split(named(key, "model"), batch.timestep.reward.shape[0])
    look = functools.partial(acting.observe_from_nothing, parts.spec, model)
    return Trained(replay, batch, state.world_model, jax.vmap(look)(keys, batch), {})


def learn_model(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Train the world model alone."""
    del iteration
    trained = train_model(parts, state, key, replay)
    state = state._replace(world_model=trained.world_model)
    return state, trained.replay.counters, trained.metrics


def _of_model(update: Callable) -> Learn:
    def learn(parts, state, key, replay, iteration):
        del iteration
        replay, batch = draw_batch(parts, state, key, replay)
        learned, metrics = update(state.world_model, named(key, "model"), batch)
        return state._replace(world_model=learned), replay.counters, metrics

    return learn


def _of_behaviour(update: Callable) -> Learn:
    def learn(parts, state, key, replay, iteration):
        del iteration
        replay, batch = draw_batch(parts, state, key, replay)
        model = bind(parts.world_model, state.world_model)
        learned, metrics = update(state.behaviour, named(key, "behaviour"), model, batch)
        return state._replace(behaviour=learned), replay.counters, metrics

    return learn


def draw_starts(
    world_model: WorldModel, key: Key, entries: PyTree, batch: Trajectory, num_starts: int
) -> Starts:
    """Latents [M] of different rows of windows [B, L+1], the last row of each left out."""
    chex.assert_rank(batch.timestep.reward, 2)
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


def observe_contexts(parts: Parts, model: BoundModel, key: Key, contexts: Trajectory) -> Starts:
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
