"""Actors in imagination: how they choose, what they are shown, and rollouts of them in a model."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions, returns
from mbrl_jax.imagination import imagine_rollout, imagine_together
from mbrl_jax.networks import running
from mbrl_jax.types import Array, BoundModel, Key, LearnerState, Prediction, PyTree, Starts


class Stats(NamedTuple):
    """What learning changes without a gradient."""

    target_critic: PyTree
    low: Array  # [] moving average of the low order statistic of the returns
    high: Array  # []
    features: Any  # running.Running of what the actor was shown; () if not asked for


class Parts(NamedTuple):
    """Static pieces."""

    config: Any  # Config, or that of a behaviour which shares the nets
    actor: nn.Module
    critic: nn.Module
    optimiser: optax.GradientTransformation
    bins: distributions.Bins = "symlog"  # of the critic
    # (returns [...], fraction) -> [] for the range of returns
    quantile: Callable[[Array, float], Array] = returns.order_statistic
    # what the second term of the critic pulls to: the λ-returns of its slow copy, or its values
    slow_targets: Literal["returns", "values"] = "returns"


def log_policy(parts: Parts, params: PyTree, stats: Stats, features: Array) -> Array:
    """Log-probabilities [..., A] of the actor for features [..., F]."""
    if parts.config.normalise_input:
        features = running.normalise(stats.features, features)
    return jax.nn.log_softmax(parts.actor.apply({"params": params}, features))


def act(
    parts: Parts,
    state: LearnerState,
    key: Key,
    carry: tuple,
    latent: PyTree,
    model: BoundModel,
    *,
    explore: bool,
) -> tuple[tuple, Array]:
    """Sample an action [], or take the most probable one when not exploring."""
    log_probs = log_policy(parts, state.params["actor"], state.stats, model.features(latent))
    if explore:
        return carry, jax.random.categorical(key, log_probs)
    return carry, jnp.argmax(log_probs, axis=-1).astype(jnp.int32)


def log_prob_of(log_probs: Array, actions: Array) -> Array:
    """Log-probability [...] of actions [...] among [..., A]."""
    return jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]


class Imagined(NamedTuple):
    """Imagined rollouts of M starts."""

    features: Array  # [M, H+1, F]
    prediction: Prediction  # [M, H+1]; row 0 arrived with the start
    actions: Array  # [M, H]
    weight: Array  # [M] of the starts
    # [M, H] log-probabilities of the actions when they were chosen, where passes are counted
    log_prob: Any = ()


def take_in(parts: Parts, stats: Stats, features: Array) -> Stats:
    """Statistics with features [..., F] among what normalises the actor's input."""
    if not parts.config.normalise_input:
        return stats
    rows = features.reshape(-1, features.shape[-1])
    return stats._replace(features=running.take_in(stats.features, rows))


def imagine(
    parts: Parts, state: LearnerState, key: Key, model: BoundModel, starts: Starts
) -> tuple[LearnerState, Imagined]:
    """Let the policy act H steps in the model from each of M starts.

    What normalises the actor's input takes in the starts before and the rest afterwards, or, where
    passes are counted, the rows of each step before their actions are chosen.
    """
    keys = jax.random.split(key, starts.weight.shape[0])
    if parts.config.counts_passes:
        state, latents, (actions, log_prob) = _imagine_counting(parts, state, keys, model, starts)
    else:
        features = jax.vmap(model.features)(starts.latent)
        state, log_prob = state._replace(stats=take_in(parts, state.stats, features)), ()
        latents, actions = _imagine_apart(parts, state, keys, model, starts)
    # Heads read all rows at once, outside of the loop over steps. Of the latents only what they
    # read is stored: XLA drops the core states from the loop (tested).
    features, prediction = (jax.vmap(jax.vmap(f))(latents) for f in (model.features, model.predict))
    if not parts.config.counts_passes:
        state = state._replace(stats=take_in(parts, state.stats, features[:, 1:]))
    return state, Imagined(features, prediction, actions, starts.weight, log_prob)


def _imagine_apart(parts, state, keys, model, starts):
    """(latents [M, H+1], actions [M, H]): each start for itself, the statistics as they are."""

    def policy(policy_key, carry, latent):
        return act(parts, state, policy_key, carry, latent, model, explore=True)

    def rollout(rollout_key, latent):
        return imagine_rollout(model, policy, rollout_key, latent, parts.config.horizon)

    return jax.vmap(rollout)(keys, starts.latent)


def _imagine_counting(parts, state, keys, model, starts):
    """(state, latents [M, H+1], (actions, their log-probabilities [M, H])): all starts in step."""

    def policy(policy_keys, stats, latents):
        features = jax.vmap(model.features)(latents)
        stats = take_in(parts, stats, features)
        log_probs = log_policy(parts, state.params["actor"], stats, features)
        actions = jax.vmap(jax.random.categorical)(policy_keys, log_probs)
        return stats, actions, log_prob_of(log_probs, actions)

    horizon = parts.config.horizon
    stats, latents, said = imagine_together(
        model, policy, keys, starts.latent, horizon, state.stats
    )
    return state._replace(stats=stats), latents, said
