"""Proximal policy optimisation in imagination, the option of the published Drama.

Nets, imagined rollouts and targets are those of `actor_critic`; what differs is how often they are
learned from: several epochs over one set of rollouts, and so a clipped ratio of the policies'
probabilities (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7). As published
(specification section 5), values, λ-returns, the range of returns and advantages are computed anew
for each epoch, advantages are not whitened, the slow critic follows each optimiser step, and the
warm-up counts updates, not optimiser steps.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import distributions
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.behaviours.actor_critic import (
    Imagined,
    Parts,
    Stats,
    Targets,
    policy,
)
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Array,
    Behaviour,
    BoundModel,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Starts,
    bounded,
    cached_make,
    number,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config(actor_critic.Config):
    """The actor-critic's sizes and numbers, which PPO shares, and its own; as published."""

    epochs: int = bounded(3, low=1)  # passes over the imagined rows in one update
    # optimiser steps of an epoch; published: 16,384 rows, which is all
    num_minibatches: int = bounded(1, low=1)
    clip: float = number(0.2, above=0)  # the ratio counts within 1 ± clip
    critic_scale: float = number(1.0, low=0)  # of the critic's term with its own returns
    slope: Literal["whole", "half"] = switch(
        "whole",
        published="half",
        better="whole",
        price="-0.00 ± 0.03",
        why="slope of the surrogate within the clip range: that of the ratio, or half of it, which "
        "lets the entropy weigh double (torch halves the gradient where two arguments of a minimum "
        "are equal, and the published one detaches the other)",
    )

    def make(self, spec: EnvSpec) -> Behaviour:
        """Build the record for one environment."""
        return make(self, spec)


class Rows(NamedTuple):
    """What optimiser steps learn from; with leading [R] rows of an epoch or a minibatch."""

    features: Array  # [F]
    action: PyTree  # [] choices
    old_log_prob: Array  # [] of the action when it was imagined
    targets: Targets  # []
    mask: Any = None  # [A] of what was allowed; None: everything


@cached_make
def make(config: Config, spec: EnvSpec) -> Behaviour:
    """Bind the functions of this module; raises ValueError for a gradient that it has not."""
    if config.gradient == "dynamics":
        raise ValueError(
            "ppo learns by the probability of what it drew, and gradient=dynamics goes through the "
            "model: use behaviour=actor_critic, or behaviour.gradient=reinforce"
        )
    parts = actor_critic.make_parts(config, spec, config.epochs * config.num_minibatches)
    return actor_critic.bind_parts(parts, update)


def clipped_surrogate(
    ratio: Array, advantage: Array, clip: float, slope: Literal["whole", "half"] = "whole"
) -> Array:
    """min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), elementwise (arXiv 1707.06347, equation 7).

    Beyond the limits nothing is gained, and so there is no gradient, by moving ρ further in the
    direction of the advantage; the way back stays open. Within them both arguments are equal, and
    each gets half of the gradient: `slope="half"` drops the second half.
    """
    limited = jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage
    if slope == "half":
        limited = jax.lax.stop_gradient(limited)
    return jnp.minimum(ratio * advantage, limited)


def kl_estimate(log_ratio: Array) -> Array:
    """(ρ - 1) - ln ρ, elementwise: its mean over old actions estimates KL(old ‖ new)."""
    return jnp.expm1(log_ratio) - log_ratio


def loss(parts: Parts, params: PyTree, stats: Stats, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """PPO's loss [] over rows [R], and what to report of it."""
    config, targets, weight = parts.config, rows.targets, rows.targets.weight
    distribution = policy(parts, params["actor"], stats, rows.features, rows.mask)
    log_ratio = parts.choices.log_prob(distribution, rows.action) - rows.old_log_prob
    ratio = jnp.exp(log_ratio)
    entropy = parts.choices.entropy(distribution, rows.action)
    gain = clipped_surrogate(ratio, targets.advantage, config.clip, config.slope)
    gain += config.entropy * entropy
    logits = parts.critic.apply({"params": params["critic"]}, rows.features)
    error = config.critic_scale * distributions.two_hot_loss(logits, targets.live)
    error += distributions.two_hot_loss(logits, targets.slow)
    actor_loss, critic_loss = -(weight * gain).mean(), (weight * error).mean()
    values = {
        "loss": actor_loss + critic_loss,
        "actor_loss": actor_loss,
        "critic_loss": critic_loss,
        "entropy": entropy.mean(),
        "imagined_return": targets.live.mean(),
        "kl": kl_estimate(log_ratio).mean(),
        "clipped": (jnp.abs(ratio - 1.0) > config.clip).mean(dtype=jnp.float32),
    }
    return actor_loss + critic_loss, values


def epoch(
    parts: Parts, imagined: Imagined, old_log_prob: Array, state: LearnerState, key: Key
) -> tuple[LearnerState, dict[str, Array]]:
    """One pass over imagined rollouts [M, H]; metrics [num_minibatches].

    Targets are computed once, with the nets that the epoch begins with.
    """
    logits = parts.critic.apply({"params": state.params["critic"]}, imagined.features)
    targets, stats = actor_critic.make_targets(parts, state.stats, imagined, logits)
    mask = actor_critic.mask_before(parts, imagined)
    rows = Rows(imagined.features[:, :-1], imagined.actions, old_log_prob, targets, mask)
    rows = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), rows)

    def step(state, minibatch):
        if parts.config.counts_passes:
            stats = actor_critic.take_in(parts, state.stats, minibatch.features)
            state = state._replace(stats=stats)
        gradient = jax.grad(functools.partial(loss, parts), has_aux=True)
        grads, values = gradient(state.params, state.stats, minibatch)
        state, norm = actor_critic.apply_gradients(parts, state, state.stats, grads)
        stats = state.stats
        return state, values | {"gradient_norm": norm, "return_range": stats.high - stats.low}

    minibatches = _minibatches(rows, key, parts.config.num_minibatches)
    return jax.lax.scan(step, state._replace(stats=stats), minibatches)


def update(
    parts: Parts,
    state: LearnerState,
    key: Key,
    model: BoundModel,
    starts: Starts,
    batch: PyTree,
    iteration: Array,
) -> tuple[LearnerState, Metrics]:
    """Imagine from M starts and take `epochs` passes over the rollouts; metrics are step means.

    Raises ValueError where the minibatches do not divide the M · horizon rows.
    """
    del batch, iteration  # imagined data only, no schedule
    state, imagined = actor_critic.imagine(parts, state, named(key, "imagine"), model, starts)
    old_log_prob = imagined.log_prob
    if not parts.config.counts_passes:
        features, mask = imagined.features[:, :-1], actor_critic.mask_before(parts, imagined)
        distribution = policy(parts, state.params["actor"], state.stats, features, mask)
        old_log_prob = parts.choices.log_prob(distribution, imagined.actions)
    keys = jax.random.split(named(key, "epochs"), parts.config.epochs)
    one = functools.partial(epoch, parts, imagined, old_log_prob)
    state, values = jax.lax.scan(one, state, keys)
    metrics = {
        f"behaviour/{name}": (x.sum(), jnp.full((), x.size, jnp.float32))
        for name, x in values.items()
    }
    return state, metrics


def _minibatches(rows: Rows, key: Key, num_minibatches: int) -> Rows:
    """Rows [R] in random order as [num_minibatches, R / num_minibatches]; all of them in order."""
    num_rows = len(rows.old_log_prob)
    if num_rows % num_minibatches:
        raise ValueError(
            f"num_minibatches={num_minibatches} does not divide the {num_rows} imagined rows "
            "(num_starts · horizon): choose a divisor"
        )
    if num_minibatches > 1:  # of one minibatch only sums are taken, whatever the order
        order = jax.random.permutation(key, num_rows)
        rows = jax.tree.map(lambda x: x[order], rows)
    return jax.tree.map(lambda x: x.reshape((num_minibatches, -1) + x.shape[1:]), rows)
