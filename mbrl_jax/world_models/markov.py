"""A Markov world model from few functions: what a step leads to, and how that is learned.

The latent of a row is its observation as a flat vector, together with what arrived with it, so
that everything else of the record is the same for all such models: a real row is copied, nothing
is remembered, the entries of a window are its stacked latents, and decoding gives the observation
its own shape back. `mbrl_jax.world_models.ensemble` and `sindy` are built on it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mbrl_jax.envs.spec import (
    action_vector,
    flat_observation,
    flat_size,
    from_flat,
    require_separate_seam,
)
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import (
    Apply,
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    NamedModelUpdate,
    Prediction,
    PyTree,
    Timestep,
    Trajectory,
    Transition,
    WorldModel,
)


class Latent(NamedTuple):
    """One observation and what arrived with it."""

    observation: Array  # [D] float32, flat
    reward: Array  # []
    discount: Array  # [] probability that the episode goes on
    extras: dict[str, Array]  # `Prediction.extras`


class Forward(Protocol):
    """One imagined step."""

    def __call__(
        self, state: LearnerState, key: Key, observation: Array, action: Array
    ) -> tuple[Array, Array, Array, dict[str, Array]]:
        """(next observation [D], reward [], discount [], extras) of `observation` [D].

        `action` [A] is a vector: one-hot where actions are discrete. The key is consumed.
        """


class Loss(Protocol):
    """What the model is trained on, without the entries."""

    def __call__(
        self, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """(loss [], (stats, Metrics)) of windows [B, L+1]; see `flat_transitions`."""


class Update(Protocol):
    """One update of a model without a gradient, without the entries."""

    def __call__(
        self, state: LearnerState, key: Key, batch: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        """(state, Metrics) after windows [B, L+1]; see `flat_transitions`."""


def make(
    spec: EnvSpec,
    *,
    init: Callable[[Key], LearnerState],
    forward: Forward,
    loss: Loss | None = None,
    apply: Apply | None = None,
    update: Update | None = None,
    updates: Mapping[str, NamedModelUpdate] | None = None,
    features: Callable[[LearnerState, Array], Array] | None = None,
    extras: Mapping[str, float] | None = None,
    endless: str = "",
) -> WorldModel:
    """The record of a Markov model.

    Args:
      spec: of the environment.
      init: (key) -> LearnerState.
      forward: what an action leads to.
      loss: with `apply`, for models that follow a gradient.
      apply: (state, grads, stats) -> (state, norm); as in `WorldModel`.
      update: instead of both, for models that are fitted in closed form.
      updates: further ones, by name.
      features: (state, observation [D]) -> [F]; None: the observation itself.
      extras: names of the scalars that `forward` says beside, with their values on real rows.
      endless: as in `WorldModel`, for models that say discount 1 whatever happens.

    Raises ValueError for environments that never show the end of an episode, and without a way to
    learn.
    """
    require_separate_seam(spec, "a Markov model")
    extras = dict(extras or {})
    see = functools.partial(_observe, spec, extras)
    see_all = functools.partial(_observe_sequence, see)
    return WorldModel(
        init=init,
        initial_latent=functools.partial(_initial_latent, spec, extras),
        observe=see,
        observe_sequence=see_all,
        latent_at=latent_at,
        imagine=functools.partial(_imagine, spec, forward),
        predict=predict,
        features=functools.partial(_features, features),
        decode=functools.partial(_decode, spec),
        loss=None if loss is None else functools.partial(_loss, see_all, loss),
        apply=apply,
        update=None if update is None else functools.partial(_update, see_all, update),
        updates=updates or {},
        markov=True,
        endless=endless,
    )


def _initial_latent(spec: EnvSpec, extras: dict[str, float]) -> Latent:
    """A latent of zeros; what is observed does not depend on it."""
    zeros = jnp.zeros((flat_size(spec.observation),))
    return Latent(zeros, jnp.zeros(()), jnp.zeros(()), _real(extras))


def _real(extras: dict[str, float]) -> dict[str, Array]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in extras.items()}


def _observe(
    spec: EnvSpec,
    extras: dict[str, float],
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """The latent of a real row: a copy of what the environment said."""
    del state, key, latent, prev_action
    observation = flat_observation(spec.observation, timestep.observation)
    reward, ends = (jnp.asarray(x, jnp.float32) for x in (timestep.reward, timestep.is_terminal))
    return Latent(observation, reward, 1.0 - ends, _real(extras))


def _observe_sequence(
    see: Callable,
    state: LearnerState,
    key: Key,
    latent: Latent,
    prev_action: PyTree,
    trajectory: Trajectory,
) -> Latent:
    """Entries of rows [T]: the stacked latents themselves."""
    one = lambda timestep: see(state, key, latent, timestep, prev_action)  # noqa: E731
    return jax.vmap(one)(trajectory.timestep)


def latent_at(entries: Latent, t: Array) -> Latent:
    """The latent of row t."""
    return jax.tree.map(lambda x: x[t], entries)


def _imagine(
    spec: EnvSpec, forward: Forward, state: LearnerState, key: Key, latent: Latent, action: PyTree
) -> Latent:
    action = action_vector(spec.action, action)
    following = Latent(*forward(state, key, latent.observation, action))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), following)


def predict(state: LearnerState, latent: Latent) -> Prediction:
    """What arrived with this latent."""
    del state
    return Prediction(latent.reward, latent.discount, latent.extras)


def _features(features: Callable | None, state: LearnerState, latent: Latent) -> Array:
    return latent.observation if features is None else features(state, latent.observation)


def _decode(spec: EnvSpec, state: LearnerState, latent: Latent) -> PyTree:
    """The observation, in its own shape (float32)."""
    del state
    return from_flat(spec.observation, latent.observation)


def _entries(see_all: Callable, batch: Trajectory) -> Latent:
    """Latents [B, L+1] of windows."""
    return jax.vmap(functools.partial(see_all, None, None, None, None))(batch)


def _loss(
    see_all: Callable, loss: Loss, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Latent, PyTree, Metrics]]:
    entries = _entries(see_all, batch)
    value, (stats, metrics) = loss(params, stats, key, batch)
    return value, (entries, stats, metrics)


def _update(
    see_all: Callable, update: Update, state: LearnerState, key: Key, batch: Trajectory
) -> tuple[LearnerState, Latent, Metrics]:
    state, metrics = update(state, key, batch)
    return state, _entries(see_all, batch), metrics


def flat_transitions(spec: EnvSpec, batch: Trajectory) -> Transition:
    """All transitions of windows [B, L+1], [B * L], as flat float vectors."""
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(transitions)(batch))
    observation, next_observation = (
        flat_observation(spec.observation, x) for x in (rows.observation, rows.next_observation)
    )
    action = action_vector(spec.action, rows.action)
    return rows._replace(observation=observation, action=action, next_observation=next_observation)
