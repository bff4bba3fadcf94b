"""A world model that is told the environment's own rewards or ends, instead of learning them.

Both are functions (o, a, o') of observations in their own shapes, named in the config: a bare name
is looked up in `mbrl_jax.envs.rules`, others read `module:function`. They are asked about imagined
rows; with real rows what really arrived stands in the latent, as ever.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from mbrl_jax.envs import rules
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Prediction,
    PyTree,
    Timestep,
    Trajectory,
    WorldModel,
    cached_make,
    part,
)
from mbrl_jax.world_models import ensemble
from mbrl_jax.world_models.combinators.wrapping import with_learning


@dataclasses.dataclass(frozen=True)
class Config:
    """The wrapped model, and the functions that are known."""

    model: Any = part("mbrl_jax.world_models", ensemble.Config())
    reward: str | None = None  # (o, a, o') -> []; None: the model's own
    ends: str | None = None  # (o, a, o') -> [] bool, whether o' is terminal; None: the model's own

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record. Raises ValueError for unknown names, or a model that decodes nothing."""
        return make(self, spec)


class Latent(NamedTuple):
    """The wrapped model's latent, and what arrived with it."""

    inner: PyTree
    reward: Array  # []
    discount: Array  # []


class Parts(NamedTuple):
    """Static pieces."""

    model: WorldModel
    reward: Callable | None
    ends: Callable | None


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module to a config and an environment."""
    model = config.model.make(spec)
    if model.decode is None:
        raise ValueError("known rewards and ends read observations; this world model decodes none")
    reward, ends = (rules.find(name) if name else None for name in (config.reward, config.ends))
    parts = Parts(model, reward, ends)
    functions = (initial_latent, observe, observe_sequence, latent_at, imagine, predict)
    bound = {f.__name__: functools.partial(f, parts) for f in (*functions, features, decode)}
    return with_learning(
        model,
        loss=functools.partial(loss, parts),
        apply=model.apply,
        update=functools.partial(update, parts),
        endless="" if ends else model.endless,
        **bound,
    )


def initial_latent(parts: Parts) -> Latent:
    """The wrapped model's, with reward 0."""
    return Latent(parts.model.initial_latent(), jnp.zeros(()), jnp.ones(()))


def observe(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """Filter one real row; what arrived is taken from it."""
    inner = parts.model.observe(state, key, latent.inner, timestep, prev_action)
    return Latent(inner, *_arrived(timestep))


def observe_sequence(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    prev_action: PyTree,
    trajectory: Trajectory,
) -> Latent:
    """Entries of `[T]` rows: the wrapped model's, and what arrived with each, `[T]`."""
    inner = parts.model.observe_sequence(state, key, latent.inner, prev_action, trajectory)
    return Latent(inner, *_arrived(trajectory.timestep))


def latent_at(parts: Parts, entries: Latent, t: Array) -> Latent:
    """The latent of row t."""
    inner = parts.model.latent_at(entries.inner, t)
    return Latent(inner, entries.reward[t], entries.discount[t])


def imagine(parts: Parts, state: LearnerState, key: Key, latent: Latent, action: PyTree) -> Latent:
    """One imagined row of the wrapped model, and what the known functions say of it."""
    inner = parts.model.imagine(state, key, latent.inner, action)
    assert parts.model.decode is not None
    before, after = (parts.model.decode(state, one) for one in (latent.inner, inner))
    reward, discount = jnp.zeros(()), jnp.ones(())
    if parts.reward is not None:
        reward = jnp.asarray(parts.reward(before, action, after), jnp.float32)
    if parts.ends is not None:
        discount = 1.0 - jnp.asarray(parts.ends(before, action, after), jnp.float32)
    return Latent(inner, reward, discount)


def predict(parts: Parts, state: LearnerState, latent: Latent) -> Prediction:
    """What is known of this latent, and for the rest the wrapped model's prediction."""
    prediction = parts.model.predict(state, latent.inner)
    if parts.reward is not None:
        prediction = prediction._replace(reward=latent.reward)
    if parts.ends is not None:
        prediction = prediction._replace(discount=latent.discount)
    return prediction


def features(parts: Parts, state: LearnerState, latent: Latent) -> Array:
    """The wrapped model's `[F]`."""
    return parts.model.features(state, latent.inner)


def decode(parts: Parts, state: LearnerState, latent: Latent) -> PyTree:
    """The wrapped model's observation."""
    assert parts.model.decode is not None
    return parts.model.decode(state, latent.inner)


def loss(
    parts: Parts, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Latent, PyTree, Metrics]]:
    """The wrapped model's loss, with entries of this one."""
    assert parts.model.loss is not None
    total, (entries, stats, metrics) = parts.model.loss(params, stats, key, batch)
    return total, (Latent(entries, *_arrived(batch.timestep)), stats, metrics)


def update(
    parts: Parts, state: LearnerState, key: Key, batch: Trajectory
) -> tuple[LearnerState, Latent, Metrics]:
    """The same around an update that is not derived."""
    state, entries, metrics = parts.model.update(state, key, batch)
    return state, Latent(entries, *_arrived(batch.timestep)), metrics


def _arrived(timestep: Timestep) -> tuple[Array, Array]:
    """Reward and discount of rows in any leading shape."""
    reward = jnp.asarray(timestep.reward, jnp.float32)
    return reward, 1.0 - jnp.asarray(timestep.is_terminal, jnp.float32)
