"""The nets of Drama's world model, and what each of them says.

Everything takes the static `Parts` first and then parameters; `model.py` makes the record of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions
from mbrl_jax.envs.spec import action_size, action_vector
from mbrl_jax.keys import named
from mbrl_jax.networks.heads import Mlp
from mbrl_jax.networks.initializers import (
    glorot_truncated,
    scaled,
    torch_default,
    uniform_fan_in,
)
from mbrl_jax.types import Array, EnvSpec, Key, PyTree, SequenceCore
from mbrl_jax.world_models import readouts


class Parts(NamedTuple):
    """Static pieces of one model."""

    config: Any  # `drama.Config`
    spec: EnvSpec
    core: SequenceCore
    encoder: nn.Module
    posterior: nn.Module
    prior: nn.Module
    reward: nn.Module
    termination: nn.Module
    decoder: nn.Module
    optimiser: optax.GradientTransformation


def make_parts(config: Any, spec: EnvSpec) -> Parts:
    """Build the nets of `config` for one environment."""
    size = config.groups * config.classes
    core = config.core.make(size + action_size(spec.action))
    mlp = functools.partial(Mlp, width=config.head_width, hidden=config.head_hidden)
    head = functools.partial(mlp, layers=config.head_layers)
    # Posterior and prior heads keep torch's default init, biases included (specification 2).
    prior_in = uniform_fan_in(config.head_width if config.prior_layers else core.width)
    return Parts(
        config=config,
        spec=spec,
        core=core,
        encoder=config.encoder.make(spec.observation),
        posterior=mlp(size, layers=config.posterior_layers)
        if config.posterior_layers
        else _PosteriorHead(size),
        prior=mlp(
            size, layers=config.prior_layers, output_init=prior_in, output_bias_init=prior_in
        ),
        reward=head(
            config.num_bins,
            output_init=_reward_init(config),
        ),
        termination=head(1),
        decoder=config.decoder.make(spec.observation),
        optimiser=config.optimiser.make(),
    )


def _reward_init(config: Any) -> Callable | None:
    """Of the last layer's weights; None for what is usual there."""
    if config.zero_reward_output:
        return nn.initializers.zeros
    if config.reward_gain == 1.0:
        return None
    usual = torch_default if config.head_hidden == "layer_relu" else glorot_truncated
    return scaled(usual, config.reward_gain)


class _PosteriorHead(nn.Module):
    """One linear layer with torch's default init."""

    size: int

    @nn.compact
    def __call__(self, x):
        init = uniform_fan_in(x.shape[-1])
        return nn.Dense(self.size, kernel_init=init, bias_init=init)(x)


def posterior(
    parts: Parts, params: PyTree, stats: PyTree, observation: PyTree, train: bool
) -> tuple[Array, PyTree]:
    """Log-probabilities [..., groups, classes] of q(z | o), and the new encoder statistics."""
    encoded, stats = readouts.encode(parts, params, stats, observation, train)
    logits = parts.posterior.apply({"params": params["posterior"]}, encoded)
    return readouts.categoricals(parts, logits), stats


def prior(parts: Parts, params: PyTree, outputs: Array) -> Array:
    """Log-probabilities [..., groups, classes] of p(z_{t+1} | d_t)."""
    return readouts.categoricals(parts, parts.prior.apply({"params": params["prior"]}, outputs))


def imagined_sample(parts: Parts, key: Key, log_probs: Array) -> Array:
    """One imagined row, [groups, classes] -> [groups · classes]; rounded for an integer buffer."""
    if not parts.config.integer_buffer:
        return readouts.sample(key, log_probs)
    return distributions.sample_rounded(key, log_probs).reshape(-1)


def heard(parts: Parts, key: Key, sample: Array) -> Array:
    """What the core hears of a sample [groups · classes] in imagination.

    An integer buffer cuts numbers below 1 down to 0. Samples that were seen are one-hot to the last
    bit and pass unharmed, imagined ones do not.
    """
    config = parts.config
    if config.integer_buffer:
        sample = jnp.trunc(sample)
    if isinstance(config.dropped_groups, float) and not config.dropped_groups:
        return sample
    kept = jax.random.uniform(named(key, "drop"), (config.groups, 1)) >= config.dropped_groups
    return (kept * sample.reshape(config.groups, -1)).reshape(-1)


def core_input(parts: Parts, sample: Array, action: Array) -> Array:
    """[..., groups · classes + A]: z_t and the action that follows."""
    return jnp.concatenate([sample, action_vector(parts.spec.action, action)], axis=-1)


def advance(
    parts: Parts, params: PyTree, carry: PyTree, sample: Array, action: Array
) -> tuple[PyTree, Array]:
    """Feed (z_t, a_t) to the core: its carry after row t, and d_t."""
    return parts.core.step(params["core"], carry, core_input(parts, sample, action), None)


def training_pass(
    parts: Parts, params: PyTree, key: Key, inputs: Array, resets: Array
) -> tuple[Array, PyTree]:
    """Outputs [B, L, F] and entries [B] of the core over `inputs` [B, L, D], from nothing."""
    noisy = parts.core.unroll_noisy
    if noisy is None:
        unroll = functools.partial(parts.core.unroll, params["core"], None)
        return jax.vmap(unroll)(inputs, resets)[1:]
    keys = jax.random.split(named(key, "dropout"), len(resets))
    run = jax.vmap(functools.partial(noisy, params["core"]), (0, None, 0, 0))
    return run(keys, None, inputs, resets)[1:]


def code_and_seen(parts: Parts, sample: Array, output: Array) -> tuple[Array, Array]:
    """What the decoder and what the heads of reward and end read of z [..., Z] and d [..., F]."""
    if parts.config.reads == "apart":
        return sample, output
    both = jnp.concatenate([sample, output], axis=-1)
    return both, both


def outputs_before(outputs: Array, fresh: Array) -> Array:
    """d_{t-1} of every row [B, L+1, F], from d [B, L, F]; zeros where nothing was before."""
    nothing = jnp.zeros_like(outputs[:, :1])
    before = jnp.concatenate([nothing, outputs], axis=1)
    return jnp.where(fresh[..., None], 0.0, before)


def kl(parts: Parts, posterior: Array, prior: Array, fresh: Array) -> tuple[Array, Array, Array]:
    """KL losses (dynamics, representation, raw) [] of rows [B, T] that are not fresh."""
    if parts.config.free_nats_of == "row":
        return distributions.free_kl_losses(posterior, prior, ~fresh, parts.config.free_nats)
    weight = 1.0 - fresh.astype(jnp.float32)
    return distributions.kl_losses(posterior, prior, weight, parts.config.free_nats)
