"""Drama's behaviour update in plain eager PyTorch: what the JAX one is timed against.

Written from the specification (drama.md, section 5) for the sizes of an `actor_critic.Config` and
its switches of returns, ends and weights; rewards are aligned and no input is normalised. So both
sides do the same work, in STORM's update too.

Choices for speed: states change in place, heads run once for the whole rollout, and contexts pass
the core in parallel.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from experiments.benchmarks.pytorch.torch_drama import (
    Adam,
    LaProp,
    Tensor,
    WorldModel,
    mlp,
    sample_index,
    sample_one_hot,
    to_images,
    two_hot_loss,
    two_hot_mean,
)
from mbrl_jax.behaviours import actor_critic


class Latent(NamedTuple):
    """Starts of imagination."""

    carry: Any  # of the core
    output: Tensor  # [M, D]
    sample: Tensor  # [M, groups · classes]


class Behaviour(nn.Module):
    """Actor, critic and its slow copy."""

    def __init__(self, config: actor_critic.Config, features: int, num_actions: int):
        super().__init__()
        c = self.config = config
        self.actor = mlp(features, num_actions, c.actor_width, c.layers, c.hidden)
        self.critic = mlp(features, c.num_bins, c.critic_width, c.layers, c.hidden)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.low = self.high = 0.0  # moving averages of the returns' order statistics

    def trained(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [*self.actor.parameters(), *self.critic.parameters()]


class Imagined(NamedTuple):
    """Rollouts, time first."""

    features: Tensor  # [H+1, M, F]
    actions: Tensor  # [H, M]
    reward: Tensor  # [H, M] arrived with row t + 1
    discount: Tensor  # [H, M]


@torch.no_grad()
def imagine(model: WorldModel, behaviour: Behaviour, start: Latent) -> Imagined:
    """The actor acts H steps in the model; the carry of `start` is used up."""
    model.eval()
    carry, output, sample = start
    features, actions = [torch.cat([sample, output], -1)], []
    for _ in range(behaviour.config.horizon):
        actions.append(sample_index(behaviour.actor(features[-1]).softmax(-1)))
        carry, output = model.core.step(carry, model.core_input(sample, actions[-1]))
        sample = sample_one_hot(model.log_probs(model.prior(output)))
        features.append(torch.cat([sample, output], -1))
    rows = torch.stack(features)
    outputs = rows[1:, :, sample.shape[-1] :]
    reward = two_hot_mean(model.reward(outputs))
    discount = (-model.termination(outputs)[..., 0]).sigmoid()
    model.train()
    return Imagined(rows, torch.stack(actions), reward, discount)


@torch.no_grad()
def context_latent(model: WorldModel, frames: Tensor, actions: Tensor) -> Latent:
    """Encode contexts [M, C] afresh, as the published code does before every behaviour update.

    The frame after the last action is not there: the start's sample is the prior's.
    """
    model.eval()
    samples = [  # 1024 frames at a time: their feature maps stay near the caches
        sample_one_hot(model.log_probs(model.posterior(model.encoder(to_images(frames[:, t])))))
        for t in range(actions.shape[1])
    ]
    outputs, carry = model.core.unroll(model.core_input(torch.stack(samples, 1), actions), True)
    model.train()
    output = outputs[:, -1]
    return Latent(carry, output, sample_one_hot(model.log_probs(model.prior(output))))


@torch.no_grad()
def lambda_returns(imagined: Imagined, values: Tensor, config: actor_critic.Config) -> Tensor:
    """[H, M] from values [H+1, M]."""
    following, returns = values[-1], []
    discount, lambda_ = imagined.discount, config.lambda_
    if config.ends == "threshold":
        discount = (discount >= 0.5).float()
    for t in reversed(range(len(imagined.reward))):
        mixed = values[t + 1] if config.mixed_value == "next" else values[t]
        mixed = (1 - lambda_) * mixed + lambda_ * following
        following = imagined.reward[t] + config.gamma * discount[t] * mixed
        returns.append(following)
    return torch.stack(returns[::-1])


def actor_loss(behaviour: Behaviour, imagined: Imagined, advantage: Tensor) -> Tensor:
    """REINFORCE with an entropy bonus [H, M]."""
    log_probs = behaviour.actor(imagined.features[:-1]).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    chosen = log_probs.gather(-1, imagined.actions[..., None])[..., 0]
    return -(chosen * advantage + behaviour.config.entropy * entropy)


def critic_loss(behaviour: Behaviour, imagined: Imagined) -> tuple[Tensor, Tensor]:
    """(loss [H, M], advantage [H, M]); moves the return range."""
    config, features = behaviour.config, imagined.features
    logits = behaviour.critic(features)
    with torch.no_grad():
        values = two_hot_mean(logits)
        slow_values = two_hot_mean(behaviour.slow_critic(features))
        targets, slow_targets = (lambda_returns(imagined, v, config) for v in (values, slow_values))
        low, high = (
            targets.flatten().kthvalue(max(int(fraction * targets.numel()), 1)).values.item()
            for fraction in (config.low_fraction, config.high_fraction)
        )
        behaviour.low += config.range_decay * (low - behaviour.low)
        behaviour.high += config.range_decay * (high - behaviour.high)
        advantage = (targets - values[:-1]) / max(1.0, behaviour.high - behaviour.low)
    loss = two_hot_loss(logits[:-1], targets) + two_hot_loss(logits[:-1], slow_targets)
    return loss, advantage


def behaviour_loss(behaviour: Behaviour, imagined: Imagined) -> Tensor:
    """Actor and critic loss [] (specification 5)."""
    loss, advantage = critic_loss(behaviour, imagined)
    loss = loss + actor_loss(behaviour, imagined, advantage)
    if not behaviour.config.weigh_reached:
        return loss.mean()
    reached = imagined.discount[:-1].cumprod(0)
    weight = torch.cat([torch.ones_like(reached[:1]), reached])
    return (weight * loss).mean()


@torch.no_grad()
def update_slow_critic(behaviour: Behaviour) -> None:
    """Let it follow the live one."""
    slow, live = behaviour.slow_critic.parameters(), behaviour.critic.parameters()
    torch._foreach_lerp_(list(slow), list(live), behaviour.config.target_decay)


def behaviour_update(
    model: WorldModel, behaviour: Behaviour, optimiser: LaProp | Adam, start: Latent
) -> float:
    """Imagine, then one optimiser step and one of the slow critic; the loss."""
    loss = behaviour_loss(behaviour, imagine(model, behaviour, start))
    loss.backward()
    optimiser.step()
    update_slow_critic(behaviour)
    return loss.item()
