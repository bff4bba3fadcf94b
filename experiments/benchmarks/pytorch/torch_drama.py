"""Drama's world-model update in plain eager PyTorch: what the JAX one is timed against.

Written from the specification (drama.md, sections 2 to 4) for the sizes of a `drama.Config`, with
the core, the layers and the optimiser that it names: STORM's update is this one too. Where
this project departs from the published code (row t predicts what arrives with row t + 1), so does
this module: both sides do the same work, and a test holds losses and gradients of one against the
other.

Choices for speed on one thread, measured on a Zen 5 core: channels_last (6.7 s against 8.1 s in
NCHW for 2048 frames); one chunk for the core, because chunks of 32 would save 0.4 % of the update;
samples by inverse CDF; an optimiser on lists of tensors.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from experiments.benchmarks.pytorch import torch_storm
from mbrl_jax import optim
from mbrl_jax.cores import mamba2, storm
from mbrl_jax.networks.encoders import ImageLayers
from mbrl_jax.networks.heads import LAYER_EPS, RMS_EPS, Hidden
from mbrl_jax.world_models import drama

Tensor = torch.Tensor
LIMIT = 20.0  # of symlog values


class Batch(NamedTuple):
    """Training windows, rows as in `mbrl_jax.types.Trajectory`."""

    frames: Tensor  # [B, L+1, 64, 64, 3] uint8
    actions: Tensor  # [B, L+1] int64
    rewards: Tensor  # [B, L+1]
    terminals: Tensor  # [B, L+1] float


# ------------------------------------------------------------------------------------ distributions


def unimix_log_probs(logits: Tensor, groups: int, unimix: float) -> Tensor:
    """[..., groups · classes] -> log-probabilities [..., groups, classes]."""
    probs = logits.unflatten(-1, (groups, -1)).softmax(-1)
    return ((1.0 - unimix) * probs + unimix / probs.shape[-1]).log()


def sample_index(probs: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Inverse CDF: [..., C] -> [...]."""
    uniform = torch.rand(probs.shape[:-1]) if uniform is None else uniform
    return (probs.cumsum(-1)[..., :-1] <= uniform[..., None]).sum(-1)


def sample_one_hot(log_probs: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Flat one-hot samples with straight-through gradients."""
    probs = log_probs.exp()
    one_hot = torch.zeros_like(probs)
    one_hot.scatter_(-1, sample_index(probs.detach(), uniform)[..., None], 1.0)
    if torch.is_grad_enabled():
        one_hot = one_hot + (probs - probs.detach())
    return one_hot.flatten(-2)


def two_hot_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two-hot code of symlog(target)."""
    bins = logits.shape[-1]
    scaled = target.sign() * target.abs().log1p()
    scaled = (scaled.clamp(-LIMIT, LIMIT) + LIMIT) * ((bins - 1) / (2 * LIMIT))
    lower = scaled.floor().clamp(0, bins - 2)
    upper_weight = scaled - lower
    index = torch.stack([lower, lower + 1], -1).long()
    near = logits.log_softmax(-1).gather(-1, index)
    return -(near[..., 0] * (1 - upper_weight) + near[..., 1] * upper_weight)


def two_hot_mean(logits: Tensor) -> Tensor:
    """The numbers that logits stand for."""
    mean = logits.softmax(-1) @ torch.linspace(-LIMIT, LIMIT, logits.shape[-1])
    return mean.sign() * mean.abs().expm1()


# ------------------------------------------------------------------------------------------- nets


def mlp(
    inputs: int,
    outputs: int,
    width: int,
    layers: int,
    kind: Hidden = "rms_silu",
    eps: float = RMS_EPS,
) -> nn.Sequential:
    """Hidden layers of Linear, a norm and an activation, then a linear output."""
    hidden: list[nn.Module] = []
    for _ in range(layers):
        if kind == "layer_relu":
            hidden += [nn.Linear(inputs, width, bias=False), nn.LayerNorm(width, LAYER_EPS)]
            hidden.append(nn.ReLU())
        else:
            hidden += [nn.Linear(inputs, width), nn.RMSNorm(width, eps=eps), nn.SiLU()]
        inputs = width
    return nn.Sequential(*hidden, nn.Linear(inputs, outputs))


def _normed(c: ImageLayers, convolution: nn.Module, features: int) -> list[nn.Module]:
    return [
        convolution,
        nn.BatchNorm2d(features),
        nn.SiLU() if c.activation == "silu" else nn.ReLU(),
    ]


def encoder(widths: list[int], c: ImageLayers) -> nn.Sequential:
    """[B, 3, 64, 64] -> [B, F]."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(zip([3] + widths, widths, strict=False)):
        stride = 2 if i else c.outer_stride
        convolution = nn.Conv2d(before, after, c.kernel, stride, c.padding, bias=c.bias)
        layers += _normed(c, convolution, after)
    return nn.Sequential(*layers, nn.Flatten())


def decoder(inputs: int, widths: list[int], c: ImageLayers) -> nn.Sequential:
    """[B, Z] -> [B, 3, 64, 64] as the last layer leaves it."""

    def up(before: int, after: int, stride: int, bias: bool) -> nn.ConvTranspose2d:
        added = 2 * c.padding + stride - c.kernel
        return nn.ConvTranspose2d(before, after, c.kernel, stride, c.padding, added, bias=bias)

    widths = widths[::-1]
    layers: list[nn.Module] = [nn.Linear(inputs, 16 * widths[0], bias=c.bias)]
    layers += _normed(c, nn.Unflatten(-1, (widths[0], 4, 4)), widths[0])
    for before, after in zip(widths, widths[1:], strict=False):
        layers += _normed(c, up(before, after, 2, c.bias), after)
    return nn.Sequential(*layers, up(widths[-1], 3, c.outer_stride, True))


class Mixer(nn.Module):
    """Mamba-2 (specification 3.2)."""

    def __init__(self, config: mamba2.Config):
        super().__init__()
        c = self.config = config
        self.in_proj = nn.Linear(c.width, c.inner + c.conv_channels + c.heads, bias=False)
        self.conv_kernel = nn.Parameter(torch.rand(c.conv_width, c.conv_channels) - 0.5)
        self.conv_bias = nn.Parameter(torch.rand(c.conv_channels) - 0.5)
        self.dt_bias = nn.Parameter(torch.empty(c.heads).uniform_(-6.9, -2.3))
        self.a_log = nn.Parameter(torch.empty(c.heads).uniform_(0.0, 2.77))
        self.skip = nn.Parameter(torch.ones(c.heads))
        self.norm = nn.RMSNorm(c.inner, eps=1e-5)
        self.out_proj = nn.Linear(c.inner, c.width, bias=False)

    def _inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        z, xbc, dt = self.in_proj(u).split([c.inner, c.conv_channels, c.heads], -1)
        return z, xbc, F.softplus(dt + self.dt_bias)

    def _scan_inputs(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        x, b, c_out = F.silu(xbc).split([c.inner, c.state_size, c.state_size], -1)
        return x.unflatten(-1, (c.heads, c.head_size)), b, c_out

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(self.norm(y.flatten(-2) * F.silu(z)))

    def unroll(self, u: Tensor, keep_carry: bool = False) -> tuple[Tensor, tuple | None]:
        """[B, L, D] -> [B, L, D] from empty states: one chunk with a masked L × L decay."""
        length, width = u.shape[1], self.config.conv_width
        z, xbc, dt = self._inputs(u)
        padded = F.pad(xbc, (0, 0, width - 1, 0))
        xbc = self.conv_bias
        for tap in range(width):
            xbc = torch.addcmul(xbc, padded[:, tap : tap + length], self.conv_kernel[tap])
        x, b, c = self._scan_inputs(xbc)
        log_decay = (dt * -self.a_log.exp()).cumsum(1).transpose(1, 2)  # [B, H, L]
        past = torch.ones(length, length, dtype=torch.bool).tril()
        since = log_decay[..., :, None] - log_decay[..., None, :]
        decay = since.masked_fill(~past, -torch.inf).exp()
        weight = decay * (c @ b.mT)[:, None]  # [B, H, L, L]
        added = x * dt[..., None]
        y = (weight @ added.transpose(1, 2)).transpose(1, 2) + self.skip[:, None] * x
        carry = None
        if keep_carry:
            kept = (log_decay[..., -1:] - log_decay).exp().transpose(1, 2)  # [B, L, H]
            state = (added * kept[..., None]).flatten(2).mT @ b
            carry = list(padded[:, 1 - width :].unbind(1)), state.view(len(x), *x.shape[2:], -1)
        return self._output(y, z), carry

    def step(self, carry: tuple[list[Tensor], Tensor], u: Tensor) -> tuple[tuple, Tensor]:
        """One row [M, D]; carry: last inputs of the convolution, oldest first, and the state.

        The state [M, H, P, N] changes in place.
        """
        history, state = carry
        z, xbc, dt = self._inputs(u)
        window, xbc = [*history, xbc], self.conv_bias
        for inputs, tap in zip(window, self.conv_kernel, strict=True):
            xbc = torch.addcmul(xbc, inputs, tap)
        x, b, c = self._scan_inputs(xbc)
        state.mul_((dt * -self.a_log.exp()).exp()[..., None, None])
        state.addcmul_((x * dt[..., None])[..., None], b[:, None, None, :])
        y = (state.flatten(1, 2) @ c[..., None]).view_as(x) + self.skip[:, None] * x
        return (window[1:], state), self._output(y, z)


class Core(nn.Module):
    """Stem, residual blocks, final norm (specification 3.1)."""

    def __init__(self, config: mamba2.Config, inputs: int):
        super().__init__()
        width = config.width
        stem = nn.Linear(inputs, width)
        self.stem = nn.Sequential(stem, nn.RMSNorm(width, eps=1e-6), nn.SiLU())
        self.mixers = nn.ModuleList(Mixer(config) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(width, eps=1e-5)

    def unroll(self, x: Tensor, keep_carry: bool = False) -> tuple[Tensor, list]:
        """[B, L, inputs] -> [B, L, D] and the carry after the last row, where wanted."""
        residual, carries = self.stem(x), []
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            y, carry = mixer.unroll(norm(residual), keep_carry)
            residual, carries = residual + y, [*carries, carry]
        return self.final_norm(residual), carries

    def step(self, carry: list, x: Tensor) -> tuple[list, Tensor]:
        """[M, inputs] -> the carry and [M, D]."""
        residual, carries = self.stem(x), []
        for layer, norm, mixer in zip(carry, self.norms, self.mixers, strict=True):
            layer, y = mixer.step(layer, norm(residual))
            residual, carries = residual + y, [*carries, layer]
        return carries, self.final_norm(residual)

    @staticmethod
    def copy_carry(carry: list) -> list:
        """A carry for steps to change."""
        return [(history, state.clone()) for history, state in carry]


class WorldModel(nn.Module):
    """All parts of the model for `num_actions` actions and 64×64×3 frames."""

    def __init__(self, config: drama.Config, num_actions: int):
        super().__init__()
        self.config, self.num_actions = config, num_actions
        size, width = config.groups * config.classes, config.core.width
        widths = [config.encoder.depth * m for m in config.encoder.multipliers]
        self.encoder = encoder(widths, config.encoder.layers)
        self.posterior = nn.Linear(16 * widths[-1], size)
        cores = {mamba2.Config: Core, storm.Config: torch_storm.Core}
        self.core = cores[type(config.core)](config.core, size + num_actions)
        heads = (config.head_width, config.head_layers, config.head_hidden)
        self.prior = mlp(width, size, config.head_width, config.prior_layers, config.head_hidden)
        self.reward = mlp(width, config.num_bins, *heads)
        self.termination = mlp(width, 1, *heads)
        self.decoder = decoder(size, widths, config.decoder.layers)
        self.to(memory_format=torch.channels_last)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Of posterior or prior: [..., groups · classes] -> [..., groups, classes]."""
        return unimix_log_probs(logits, self.config.groups, self.config.unimix)

    def core_input(self, samples: Tensor, actions: Tensor) -> Tensor:
        """Samples and one-hot actions, side by side."""
        return torch.cat([samples, F.one_hot(actions, self.num_actions).float()], -1)


def to_images(frames: Tensor) -> Tensor:
    """[M, 64, 64, 3] uint8 -> [M, 3, 64, 64] in [0, 1], channels last in memory."""
    return frames.permute(0, 3, 1, 2).float().div_(255.0)


# --------------------------------------------------------------------------------------- learning


def kl_terms(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """(dynamics, representation) [] of log-probabilities [B, L, groups, classes]."""

    def mean_kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum((-2, -1)).mean().clamp(min=free_nats)

    return mean_kl(posterior.detach(), prior), mean_kl(posterior, prior.detach())


def head_terms(
    model: WorldModel, posterior: Tensor, outputs: Tensor, batch: Batch
) -> dict[str, Tensor]:
    """All terms of the loss but the reconstruction, from d [B, L, D] and q [B, L+1 or L, …]."""
    config = model.config
    seen = posterior.shape[1] - 1  # rows whose successor was seen
    dynamics, representation = kl_terms(
        posterior[:, 1:], model.log_probs(model.prior(outputs[:, :seen])), config.free_nats
    )
    logits = model.termination(outputs)[..., 0]
    return {
        "reward": two_hot_loss(model.reward(outputs), batch.rewards[:, 1:]).mean(),
        "termination": F.binary_cross_entropy_with_logits(logits, batch.terminals[:, 1:]),
        "dynamics": config.dynamics_scale * dynamics,
        "representation": config.representation_scale * representation,
    }


def world_model_loss(
    model: WorldModel, batch: Batch, uniform: Tensor | None = None
) -> dict[str, Tensor]:
    """Terms of the loss; row t predicts what arrives with row t + 1."""
    config, rows = model.config, batch.rewards.shape[1]
    frames = batch.frames[:, : rows - (config.last_row == "arrival")]
    images = to_images(frames.flatten(0, 1))
    logits = model.posterior(model.encoder(images))
    posterior = model.log_probs(logits.unflatten(0, frames.shape[:2]))
    samples = sample_one_hot(posterior, uniform)
    reconstruction = model.decoder(samples.flatten(0, 1))
    if config.reconstruction == "sigmoid":
        reconstruction = reconstruction.sigmoid()
    inputs = model.core_input(samples[:, : rows - 1], batch.actions[:, :-1])
    outputs, _ = model.core.unroll(inputs)
    error = F.mse_loss(reconstruction, images, reduction="sum") / len(images)
    return {"reconstruction": error} | head_terms(model, posterior, outputs, batch)


class LaProp:
    """Clip by global norm, then LaProp with warm-up (specification 4), on lists of tensors."""

    def __init__(self, params: Iterable[nn.Parameter], config: optim.Config):
        self.params, self.config = list(params), config
        self.mu = [torch.zeros_like(p) for p in self.params]
        self.nu = [torch.zeros_like(p) for p in self.params]
        self.count, self.correction = 0, 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Use up the gradients."""
        c = self.config
        nn.utils.clip_grad_norm_(self.params, c.clip_norm, foreach=True)
        grads = [p.grad for p in self.params]
        self.count += 1
        rate = c.learning_rate * min(1.0, self.count / c.warmup)
        torch._foreach_mul_(self.nu, c.b2)
        torch._foreach_addcmul_(self.nu, grads, grads, value=1 - c.b2)
        denominator = torch._foreach_div(self.nu, 1 - c.b2**self.count)
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, c.eps)
        torch._foreach_mul_(self.mu, c.b1)
        torch._foreach_addcdiv_(self.mu, grads, denominator, value=(1 - c.b1) * rate)
        self.correction = c.b1 * self.correction + (1 - c.b1) * rate
        torch._foreach_add_(self.params, self.mu, alpha=-rate / self.correction)
        for p in self.params:
            p.grad = None


class Adam:
    """Clip by global norm, then torch's own Adam."""

    def __init__(self, params: Iterable[nn.Parameter], config: optim.Config):
        self.params, self.config = list(params), config
        betas = (config.b1, config.b2)
        self.inner = torch.optim.Adam(self.params, config.learning_rate, betas, config.eps)

    def step(self) -> None:
        """Use up the gradients."""
        nn.utils.clip_grad_norm_(self.params, self.config.clip_norm, foreach=True)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)


def optimiser_of(params: Iterable[nn.Parameter], config: optim.Config) -> LaProp | Adam:
    """The one that `config` names."""
    return (LaProp if config.name == "laprop" else Adam)(params, config)


def world_model_update(model: WorldModel, optimiser: LaProp | Adam, batch: Batch) -> float:
    """One optimiser step; the loss."""
    loss = sum(world_model_loss(model, batch).values())
    loss.backward()
    optimiser.step()
    return loss.item()
