"""DreamerV3's actor-critic: imagined returns, and the critic's loss on replayed rows (2301.04104).

Rollouts, targets and the loss over imagined rows are those of `actor_critic`. DreamerV3 adds that
every replayed row is a start, and that the return imagined from it serves once more: mixed with the
rewards that were really received, it is what the critic learns on the replayed rows themselves, and
through their features it shapes the world model. So there is no update here: `agents.joint` takes
one gradient of the world model's loss and of `representation_loss`. The critic has symexp bins, its
second term pulls to the slow critic's own value and not to returns, and percentiles interpolate.

As the code published in 2024 with `discounted_weights`; without, the weights of imagined steps are
products of predicted discounts without γ, from 1 - is_terminal of the start on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mbrl_jax import distributions, legal, masks, optim, returns
from mbrl_jax.behaviours import actor_critic, choices
from mbrl_jax.behaviours.actor_critic import Parts, Stats
from mbrl_jax.networks.block_gru import RMS_EPS
from mbrl_jax.networks.heads import Mlp
from mbrl_jax.networks.initializers import fan_in_truncated
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
    Timestep,
    Trajectory,
    bounded,
    cached_make,
    number,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config(actor_critic.Config):
    """DreamerV3's numbers; sizes as of its preset "12m"."""

    horizon: int = bounded(15, low=1)
    critic_width: int = bounded(256, low=1)
    # of the actor, None as `hidden` layers start; the critic begins at exactly 0
    output_gain: float | None = bounded(0.01, low=0)
    gamma: float = number(1.0 - 1.0 / 333.0, low=0, high=1)
    bins: distributions.Bins = "symexp"  # of the critic
    discounted_weights: bool = switch(
        False,
        published=True,
        better=False,
        why="what an imagined step weighs: the probability of getting there, or that times γᵏ "
        "after k steps, so that late steps count less in the losses (the published head of ends "
        "learns γ too)",
    )
    # K newest rows of each window to imagine from and to learn on; 0: all
    last_rows: int = bounded(0, low=0)
    replay_scale: float = number(0.3, low=0)  # of the critic's loss on replayed rows
    optimiser: optim.Config = optim.Config()

    def make(self, spec: EnvSpec) -> Behaviour:
        """Build the record for one environment."""
        return make(self, spec)


@cached_make
def make(config: Config, spec: EnvSpec) -> Behaviour:
    """Bind the functions; raises ValueError for a merged seam, or a gradient that cannot flow."""
    actor_critic.require_gradient(config, spec)
    if spec.seam == "merged":
        raise ValueError(
            "dreamer learns from the last row of every episode, which a merged seam leaves out; "
            "set env.protocol.seam=separate"
        )
    mlp = functools.partial(
        Mlp,
        layers=config.layers,
        hidden=config.hidden,
        hidden_init=fan_in_truncated(),
        eps=RMS_EPS,
    )
    made = choices.choices_of(spec.action, config.real_actions)
    gain = None if config.output_gain is None else fan_in_truncated(config.output_gain)
    parts = Parts(
        config,
        actor=mlp(made.size, config.actor_width, output_init=gain),
        critic=mlp(config.num_bins, config.critic_width, output_init=fan_in_truncated(0.0)),
        optimiser=config.optimiser.make(),
        choices=made,
        allowed=legal.reader(spec),
        bins=config.bins,
        quantile=jnp.quantile,
        slow_targets="values",
        discounted_weights=config.discounted_weights,
    )
    functions: dict[str, Callable] = {
        "init": actor_critic.init,
        "act": actor_critic.act,
        "representation_loss": representation_loss,
        "apply": apply,
    }
    bound: dict[str, Any] = {name: functools.partial(f, parts) for name, f in functions.items()}
    return Behaviour(initial_carry=tuple, learns_from="entries", **bound)


def representation_loss(
    parts: Parts,
    params: PyTree,
    stats: Stats,
    key: Key,
    model: BoundModel,
    entries: PyTree,
    batch: Trajectory,
) -> tuple[Array, tuple[Stats, Metrics]]:
    """Actor and critic loss [] from the last K of the first L rows of windows [B, L+1].

    Imagination and its loss stop at the latents; the loss on replayed rows goes on into them. With
    `gradient=dynamics` (DreamerV2's) the actor's gradient goes through the model, whose parameters
    it leaves alone.
    Raises ValueError where a window has fewer than K rows.
    """
    windows, length = batch.timestep.reward.shape[0], batch.timestep.reward.shape[1] - 1
    num_rows = parts.config.last_rows or length
    if num_rows > length:
        raise ValueError(f"behaviour.last_rows={num_rows} exceeds replay.length={length}")
    latent_at = jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None))
    latents = latent_at(entries, jnp.arange(length - num_rows, length))
    timestep = jax.tree.map(lambda x: x[:, length - num_rows : length], batch.timestep)

    flat = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), latents)
    weight = 1.0 - timestep.is_terminal.reshape(-1).astype(jnp.float32)
    starts = jax.lax.stop_gradient(Starts(flat, weight))
    policy = LearnerState(jax.lax.stop_gradient(params), stats, ())
    if parts.config.gradient == "dynamics":
        total, (targets, stats, metrics) = actor_critic.loss_through(
            parts, policy, key, model, starts, params
        )
    else:
        acted, imagined = actor_critic.imagine(parts, policy, key, model, starts)
        total, (targets, stats, metrics) = actor_critic.loss_and_targets(
            parts, params, acted.stats, jax.lax.stop_gradient(imagined)
        )
    imagined_return = targets.live[:, 0].reshape(windows, num_rows)
    features = jax.vmap(jax.vmap(model.features))(latents)
    replayed = replay_loss(parts, params, stats, features, timestep, imagined_return)
    total = total + parts.config.replay_scale * replayed
    one = jnp.ones(())
    metrics |= {"behaviour/loss": (total, one), "behaviour/replay_loss": (replayed, one)}
    return total, (stats, metrics)


def replay_loss(
    parts: Parts,
    params: PyTree,
    stats: Stats,
    features: Array,
    timestep: Timestep,
    imagined_return: Array,
) -> Array:
    """The critic's loss [] on replayed rows: mean over those that a row of their episode follows.

    Args:
      parts: static pieces.
      params: of actor and critic.
      stats: of the learner.
      features: [B, K, F], through which the gradient goes on.
      timestep: [B, K] of the same rows.
      imagined_return: [B, K] λ-returns of imagination from them.
    """
    config = parts.config
    target = jax.vmap(replay_return, (0, 0, None, None))(
        timestep, imagined_return, config.gamma, config.lambda_
    )
    before = features[:, :-1]
    logits = parts.critic.apply({"params": params["critic"]}, before)
    slow = parts.critic.apply({"params": stats.target_critic}, before)
    led_on = ~timestep.is_last[:, :-1]
    target = masks.clean(target, led_on)
    error = distributions.two_hot_loss(logits, target, parts.bins)
    error += distributions.two_hot_loss(
        logits, distributions.two_hot_mean(slow, parts.bins), parts.bins
    )
    return masks.masked_mean(error, led_on)


def replay_return(timestep: Timestep, value: Array, gamma: float, lambda_: float) -> Array:
    """λ-returns of replayed rows, which go on to `value` where their episode or window does not.

    Rₜ = rₜ₊₁ + γ (1 - terminalₜ₊₁) [(1 - λₜ₊₁) vₜ₊₁ + λₜ₊₁ Rₜ₊₁] with λₜ = λ (1 - lastₜ) and
    R_{K-1} = v_{K-1}.

    Args:
      timestep: [K] rows of one window; episodes may meet in it.
      value: [K] of the rows: here the returns imagined from them.
      gamma: discount.
      lambda_: mixing weight in [0, 1].

    Returns:
      [K-1] returns; that of a last row means nothing.
    """
    reward, value = timestep.reward[1:], value
    discount = gamma * (1.0 - timestep.is_terminal[1:].astype(jnp.float32))
    ends = timestep.is_last[1:]
    # At an end the whole return is known: nothing of the next episode is mixed in.
    reward = jnp.where(ends, reward + discount * value[1:], reward)
    discount = jnp.where(ends, 0.0, discount)
    return returns.lambda_return(reward, discount, value[1:], value[-1], lambda_)


def apply(
    parts: Parts, state: LearnerState, grads: PyTree, stats: Stats
) -> tuple[LearnerState, Array]:
    """One optimiser step, then the slow critic follows; with the norm [] of the gradients."""
    return actor_critic.apply_gradients(parts, state, stats, grads)
