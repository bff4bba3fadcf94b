"""DreamerV3's joint update for vectors in plain eager PyTorch: what the JAX one is timed against.

Written from the specification (world_models.md, section 1) for the sizes of an `rssm.Config` and a
`dreamer.Config` with their defaults: discrete actions, symlog reconstruction, free nats row by row,
rewards and values over symexp bins, one gradient of everything. Windows hold no first row but their
own, as those of the other updates here.

Choices for speed on one thread: the encoder, all heads and the prior run once for the whole batch;
the part of the cell that reads what all blocks hear is one product.
"""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from experiments.benchmarks.pytorch.torch_drama import (
    Adam,
    LaProp,
    Tensor,
    mlp,
    sample_index,
    sample_one_hot,
    unimix_log_probs,
)
from mbrl_jax.behaviours import dreamer
from mbrl_jax.networks.block_gru import RMS_EPS, UPDATE_BIAS
from mbrl_jax.world_models import rssm

LIMIT = 20.0  # of symlog values


class Batch(NamedTuple):
    """Training windows."""

    observations: Tensor  # [B, L+1, D]
    actions: Tensor  # [B, L+1] int64
    rewards: Tensor  # [B, L+1]
    terminals: Tensor  # [B, L+1] float


class Imagined(NamedTuple):
    """Rollouts from M starts, time first."""

    features: Tensor  # [H+1, M, F]
    actions: Tensor  # [H, M]
    rewards: Tensor  # [H, M] arrived with row t + 1
    discounts: Tensor  # [H, M]
    weights: Tensor  # [M] of the starts


# ------------------------------------------------------------------------------------ distributions


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp_bins(num_bins: int) -> Tensor:
    """What the bins stand for, symmetric about 0."""
    even = torch.linspace(-LIMIT, LIMIT, num_bins)
    bins = even.sign() * even.abs().expm1()
    return (bins - bins.flip(0)) / 2


def two_hot_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy [...] with the two-hot code of target [...] over symexp bins."""
    bins = symexp_bins(logits.shape[-1])
    target = target.clamp(bins[0], bins[-1]).contiguous()
    lower = (torch.bucketize(target, bins, right=True) - 1).clamp(0, len(bins) - 2)
    share = (target - bins[lower]) / (bins[lower + 1] - bins[lower])
    near = logits.log_softmax(-1).gather(-1, torch.stack([lower, lower + 1], -1))
    return -(near[..., 0] * (1 - share) + near[..., 1] * share)


def two_hot_mean(logits: Tensor) -> Tensor:
    """The numbers that logits stand for; those of ±b are taken together."""
    probs, half = logits.softmax(-1), logits.shape[-1] // 2
    surplus = probs[..., -half:] - probs[..., :half].flip(-1)
    return surplus @ symexp_bins(logits.shape[-1])[-half:]


# ------------------------------------------------------------------------------------------- nets


class BlockLinear(nn.Module):
    """[M, g, i] -> [M, g, o]; of the rows of a kernel the last `shared` read what all hear."""

    def __init__(self, blocks: int, inputs: int, outputs: int, shared: int = 0):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(blocks, inputs + shared, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(blocks, outputs))
        self.inputs = inputs

    def forward(self, x: Tensor, heard: Tensor | None = None) -> Tensor:
        y = torch.bmm(x.transpose(0, 1), self.kernel[:, : self.inputs]).transpose(0, 1)
        if heard is not None:
            wide = self.kernel[:, self.inputs :].transpose(0, 1).flatten(1)
            y = y + (heard @ wide).view_as(y)
        return y + self.bias


class Cell(nn.Module):
    """The block-diagonal GRU."""

    def __init__(self, config: rssm.Config, num_actions: int):
        super().__init__()
        c = self.config = config
        size = c.deter // c.blocks
        inputs = (c.deter, c.groups * c.classes, num_actions)
        self.dense = nn.ModuleList(nn.Linear(n, c.hidden) for n in inputs)
        self.norms = nn.ModuleList(nn.RMSNorm(c.hidden, RMS_EPS) for _ in inputs)
        self.inner = BlockLinear(c.blocks, size, size, len(inputs) * c.hidden)
        self.inner_norm = nn.RMSNorm(c.deter, RMS_EPS)
        self.gates = BlockLinear(c.blocks, size, 3 * size)

    def forward(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        pairs = zip(self.norms, self.dense, (h, z, action), strict=True)
        heard = torch.cat([F.silu(norm(dense(x))) for norm, dense, x in pairs], -1)
        blocks = (self.config.blocks, -1)
        x = self.inner(h.unflatten(-1, blocks), heard)
        x = F.silu(self.inner_norm(x.flatten(1))).unflatten(-1, blocks)
        reset, candidate, update = (gate.flatten(1) for gate in self.gates(x).chunk(3, -1))
        update = (update + UPDATE_BIAS).sigmoid()
        return torch.lerp(h, (reset.sigmoid() * candidate).tanh(), update)


class WorldModel(nn.Module):
    """All parts of the model for vectors [D] and `num_actions` actions."""

    def __init__(self, config: rssm.Config, observation: int, num_actions: int):
        super().__init__()
        self.config, self.num_actions = config, num_actions
        size, enc, dec = config.groups * config.classes, config.encoder, config.decoder
        features, head = config.deter + size, (config.head_width, config.head_layers)
        self.encoder = _mlp(observation, enc.width, enc.width, enc.layers - 1)
        self.encoder.extend([nn.RMSNorm(enc.width, RMS_EPS), nn.SiLU()])
        self.gru = Cell(config, num_actions)
        self.prior = _mlp(config.deter, size, config.hidden, config.prior_layers)
        self.posterior = _mlp(
            config.deter + enc.width, size, config.hidden, config.posterior_layers
        )
        self.reward = _mlp(features, config.num_bins, *head)
        self.termination = _mlp(features, 1, *head)
        self.decoder = _mlp(features, observation, dec.width, dec.layers)

    def log_probs(self, logits: Tensor) -> Tensor:
        """[..., groups · classes] -> [..., groups, classes]."""
        return unimix_log_probs(logits, self.config.groups, self.config.unimix)

    def observe(
        self, tokens: Tensor, actions: Tensor, uniform: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, L, deter], z [B, L, …] and log-probabilities of tokens [B, L, E], from zeros."""
        h = tokens.new_zeros(len(tokens), self.config.deter)
        z = tokens.new_zeros(len(tokens), self.config.groups * self.config.classes)
        action = tokens.new_zeros(len(tokens), self.num_actions)
        rows = []
        for t, token in enumerate(tokens.unbind(1)):
            h = self.gru(h, z, action)
            log_probs = self.log_probs(self.posterior(torch.cat([h, token], -1)))
            z = sample_one_hot(log_probs, None if uniform is None else uniform[:, t])
            action = F.one_hot(actions[:, t], self.num_actions).float()
            rows.append((h, z, log_probs))
        return tuple(torch.stack(column, 1) for column in zip(*rows, strict=True))

    def imagine(self, h: Tensor, z: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The next h and z [M] after actions [M]."""
        h = self.gru(h, z, F.one_hot(actions, self.num_actions).float())
        return h, sample_one_hot(self.log_probs(self.prior(h)))


def _mlp(inputs: int, outputs: int, width: int, layers: int) -> nn.Sequential:
    return mlp(inputs, outputs, width, layers, eps=RMS_EPS)


class Behaviour(nn.Module):
    """Actor, critic and its slow copy."""

    def __init__(self, config: dreamer.Config, features: int, num_actions: int):
        super().__init__()
        c = self.config = config
        self.actor = _mlp(features, num_actions, c.actor_width, c.layers)
        self.critic = _mlp(features, c.num_bins, c.critic_width, c.layers)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.low = self.high = 0.0  # moving averages of the returns' percentiles

    def trained(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [*self.actor.parameters(), *self.critic.parameters()]


# --------------------------------------------------------------------------------------- learning


def world_model_loss(
    model: WorldModel, batch: Batch, uniform: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Terms of the loss, and features [B, L+1, F]; row 0 of a window is led to by nothing."""
    config, observations = model.config, symlog(batch.observations)
    h, z, posterior = model.observe(model.encoder(observations), batch.actions, uniform)
    features = torch.cat([h, z], -1)
    prior = model.log_probs(model.prior(h))[:, 1:]
    posterior, led_to = posterior[:, 1:], features[:, 1:]

    def mean_kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum((-2, -1)).clamp(min=config.free_nats).mean()

    logits = model.termination(led_to)[..., 0]
    reward = two_hot_loss(model.reward(led_to), batch.rewards[:, 1:]).mean()
    terms = {
        "reconstruction": (model.decoder(features) - observations).square().sum(-1).mean(),
        "reward": config.reward_scale * reward,
        "termination": F.binary_cross_entropy_with_logits(logits, batch.terminals[:, 1:]),
        "dynamics": config.dynamics_scale * mean_kl(posterior.detach(), prior),
        "representation": config.representation_scale * mean_kl(posterior, prior.detach()),
    }
    return terms, features


@torch.no_grad()
def imagine(model: WorldModel, behaviour: Behaviour, features: Tensor, weights: Tensor) -> Imagined:
    """The actor acts H steps from features [M, F], which begin with h."""
    h, z = features.split([model.config.deter, features.shape[-1] - model.config.deter], -1)
    rows, actions = [features], []
    for _ in range(behaviour.config.horizon):
        actions.append(sample_index(behaviour.actor(rows[-1]).softmax(-1)))
        h, z = model.imagine(h, z, actions[-1])
        rows.append(torch.cat([h, z], -1))
    dreamed = torch.stack(rows)
    rewards = two_hot_mean(model.reward(dreamed[1:]))
    discounts = (-model.termination(dreamed[1:])[..., 0]).sigmoid()
    return Imagined(dreamed, torch.stack(actions), rewards, discounts, weights)


def _lambda_returns(
    rewards: Tensor, discounts: Tensor, mixed: Tensor, last: Tensor, lambda_: float
) -> Tensor:
    """[H, M] of rows [H, M] and the value [M] behind the last; discounts hold γ."""
    returns = []
    for reward, discount, value in zip(
        *(x.flip(0) for x in (rewards, discounts, mixed)), strict=True
    ):
        last = reward + discount * ((1 - lambda_) * value + lambda_ * last)
        returns.append(last)
    return torch.stack(returns[::-1])


def _moved(behaviour: Behaviour, returns: Tensor) -> float:
    """The range of returns, by which advantages are divided, after these [H, M]."""
    config, sorted_ = behaviour.config, returns.flatten().sort().values

    def percentile(fraction: float) -> float:
        place = fraction * (len(sorted_) - 1)
        low = sorted_[int(place)]
        high = sorted_[min(int(place) + 1, len(sorted_) - 1)]
        return (low + (place - int(place)) * (high - low)).item()

    behaviour.low += config.range_decay * (percentile(config.low_fraction) - behaviour.low)
    behaviour.high += config.range_decay * (percentile(config.high_fraction) - behaviour.high)
    return max(1.0, behaviour.high - behaviour.low)


def imagination_loss(behaviour: Behaviour, imagined: Imagined) -> tuple[Tensor, Tensor]:
    """Actor and critic loss [], and the returns [M] of the starts."""
    config, features = behaviour.config, imagined.features
    logits = behaviour.critic(features)
    with torch.no_grad():
        values, slow = two_hot_mean(logits), two_hot_mean(behaviour.slow_critic(features))
        discounts = config.gamma * imagined.discounts
        returns = _lambda_returns(
            imagined.rewards, discounts, values[1:], values[-1], config.lambda_
        )
        advantage = (returns - values[:-1]) / _moved(behaviour, returns)
        factors = torch.cat([imagined.weights[None], imagined.discounts[:-1]])
        weight = factors.cumprod(0)
    log_probs = behaviour.actor(features[:-1]).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    chosen = log_probs.gather(-1, imagined.actions[..., None])[..., 0]
    loss = two_hot_loss(logits[:-1], returns) + two_hot_loss(logits[:-1], slow[:-1])
    loss = loss - (chosen * advantage + config.entropy * entropy)
    return (weight * loss).mean(), returns[0]


def replay_loss(
    behaviour: Behaviour, features: Tensor, batch: Batch, imagined_return: Tensor
) -> Tensor:
    """The critic's loss [] on replayed rows [B, L], whose gradient reaches the features."""
    config, length = behaviour.config, features.shape[1]
    with torch.no_grad():
        rewards, terminals = batch.rewards[:, 1:length].T, batch.terminals[:, 1:length].T
        values = imagined_return.T
        target = _lambda_returns(
            rewards, config.gamma * (1 - terminals), values[1:], values[-1], config.lambda_
        ).T
        slow = two_hot_mean(behaviour.slow_critic(features[:, :-1]))
    logits = behaviour.critic(features[:, :-1])
    return (two_hot_loss(logits, target) + two_hot_loss(logits, slow)).mean()


def joint_loss(model: WorldModel, behaviour: Behaviour, batch: Batch) -> Tensor:
    """The model's loss, actor and critic's from every row but the last, and that of replay."""
    terms, features = world_model_loss(model, batch)
    features = features[:, :-1]
    weights = 1 - batch.terminals[:, :-1]
    imagined = imagine(model, behaviour, features.detach().flatten(0, 1), weights.flatten())
    loss, returns = imagination_loss(behaviour, imagined)
    replayed = replay_loss(behaviour, features, batch, returns.view(features.shape[:2]))
    return sum(terms.values()) + loss + behaviour.config.replay_scale * replayed


def update(
    model: WorldModel,
    behaviour: Behaviour,
    optimisers: tuple[LaProp | Adam, LaProp | Adam],
    batch: Batch,
) -> float:
    """One gradient, a step of either optimiser and one of the slow critic; the loss."""
    loss = joint_loss(model, behaviour, batch)
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()
    with torch.no_grad():
        slow, live = behaviour.slow_critic.parameters(), behaviour.critic.parameters()
        torch._foreach_lerp_(list(slow), list(live), behaviour.config.target_decay)
    return loss.item()
