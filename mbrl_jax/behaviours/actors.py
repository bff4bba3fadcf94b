"""Actors in imagination: how they choose, what they are shown, and rollouts of them in a model."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions, masks, returns
from mbrl_jax.behaviours.choices import Choices
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
    choices: Choices
    bins: distributions.Bins = "symlog"  # of the critic
    # (returns [...], fraction) -> [] for the range of returns
    quantile: Callable[[Array, float], Array] = returns.order_statistic
    # what the second term of the critic pulls to: the λ-returns of its slow copy, or its values
    slow_targets: Literal["returns", "values"] = "returns"
    discounted_weights: bool = False  # of imagined steps: times γᵏ after k of them
    # prediction [...] -> mask [..., A] of what is allowed; None: everything always is
    allowed: Callable[[Prediction], Array] | None = None


def policy(
    parts: Parts, params: PyTree, stats: Stats, features: Array, mask: Array | None = None
) -> PyTree:
    """The actor's distribution [...] for features [..., F]: what `parts.choices` reads.

    Of discrete actions it is their log-probabilities [..., A], among those that `mask` allows.
    """
    if parts.config.normalise_input:
        features = running.normalise(stats.features, features)
    raw = parts.actor.apply({"params": params}, features)
    return parts.choices.read(raw) if mask is None else parts.choices.read(raw, mask)


def mask_of(parts: Parts, prediction: Prediction) -> Array | None:
    """What of the actions is allowed at predictions [...]: [..., A], or None."""
    return None if parts.allowed is None else parts.allowed(prediction)


def _mask_at(parts: Parts, model: BoundModel, latent: PyTree) -> Array | None:
    return None if parts.allowed is None else parts.allowed(model.predict(latent))


def choose(
    parts: Parts, state: LearnerState, key: Key, latent: PyTree, model: BoundModel, *, explore: bool
) -> Array:
    """A choice at a latent: drawn, or the most probable one when not exploring."""
    features, mask = model.features(latent), _mask_at(parts, model, latent)
    distribution = policy(parts, state.params["actor"], state.stats, features, mask)
    if explore:
        return parts.choices.sample(key, distribution)
    return parts.choices.mode(distribution)


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
    """Sample an action, or take the most probable one when not exploring."""
    choice = choose(parts, state, key, latent, model, explore=explore)
    return carry, parts.choices.action(choice)


def follows_choices(parts: Parts, model: BoundModel) -> BoundModel:
    """The model, imagining what the action of a choice leads to."""

    def imagine(key, latent, choice):
        return model.imagine(key, latent, parts.choices.action(choice))

    return model._replace(imagine=imagine)


class Imagined(NamedTuple):
    """Imagined rollouts of M starts; all is finite where steps weigh 0 (`_without_dead`)."""

    features: Array  # [M, H+1, F]
    prediction: Prediction  # [M, H+1]; row 0 arrived with the start
    actions: Array  # [M, H, …] choices: what `parts.choices` draws
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
        if parts.config.weigh_reached:
            features = masks.clean(features, starts.weight)
        state, log_prob = state._replace(stats=take_in(parts, state.stats, features)), ()
        latents, actions = _imagine_apart(parts, state, keys, model, starts)
    # Heads read all rows at once, outside of the loop over steps. Of the latents only what they
    # read is stored: XLA drops the core states from the loop (tested).
    features, prediction = (jax.vmap(jax.vmap(f))(latents) for f in (model.features, model.predict))
    imagined = Imagined(features, prediction, actions, starts.weight, log_prob)
    imagined = _without_dead(parts, imagined)
    if not parts.config.counts_passes:
        state = state._replace(stats=take_in(parts, state.stats, imagined.features[:, 1:]))
    return state, imagined


def _without_dead(parts: Parts, imagined: Imagined) -> Imagined:
    """What is not finite behind the ends of rollouts as 0, where steps there weigh 0.

    Losses multiply by these weights, and 0 · NaN is NaN.
    """
    if not parts.config.weigh_reached:
        return imagined
    features, prediction, actions, weight, log_prob = imagined
    reached = jax.vmap(returns.reached_states)(prediction.discount, weight)
    led_to = jnp.concatenate([reached[:, :1], reached[:, :-1]], axis=1)  # so was its prediction
    return Imagined(
        masks.clean(features, reached),
        masks.clean(prediction, led_to),
        masks.clean(actions, reached[:, :-1]),
        weight,
        masks.clean(log_prob, reached[:, :-1]),
    )


def _imagine_apart(parts, state, keys, model, starts):
    """(latents [M, H+1], actions [M, H]): each start for itself, the statistics as they are."""

    def follow(policy_key, carry, latent):
        return carry, choose(parts, state, policy_key, latent, model, explore=True)

    dreamed = follows_choices(parts, model)

    def rollout(rollout_key, latent):
        return imagine_rollout(dreamed, follow, rollout_key, latent, parts.config.horizon)

    return jax.vmap(rollout)(keys, starts.latent)


def _imagine_counting(parts, state, keys, model, starts):
    """(state, latents [M, H+1], (actions, their log-probabilities [M, H])): all starts in step."""

    def follow(policy_keys, stats, latents):
        features = jax.vmap(model.features)(latents)
        stats = take_in(parts, stats, features)
        mask = jax.vmap(functools.partial(_mask_at, parts, model))(latents)
        distribution = policy(parts, state.params["actor"], stats, features, mask)
        choices = jax.vmap(parts.choices.sample)(policy_keys, distribution)
        return stats, choices, parts.choices.log_prob(distribution, choices)

    horizon, dreamed = parts.config.horizon, follows_choices(parts, model)
    stats, latents, said = imagine_together(
        dreamed, follow, keys, starts.latent, horizon, state.stats
    )
    return state._replace(stats=stats), latents, said
