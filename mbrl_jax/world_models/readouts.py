"""What latent world models say of a row: observation, reward, end; and how they learn it.

`drama` and `rssm` differ in what a latent is and in which part of it each net reads. The nets, what
their outputs mean, and the terms of the loss are the same. Functions take the model's static
`Parts`, whatever else that holds.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions, legal, optim
from mbrl_jax.envs.spec import example_observation
from mbrl_jax.networks import reconstruction
from mbrl_jax.networks.norms import apply_with_stats
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Prediction,
    PyTree,
    Timestep,
)


class Parts(Protocol):
    """What is read here of a model's static pieces."""

    @property
    def config(self) -> Any:
        """With reconstruction, groups, classes, unimix, bins and the weights of the terms."""

    @property
    def spec(self) -> EnvSpec: ...
    @property
    def encoder(self) -> nn.Module: ...
    @property
    def decoder(self) -> nn.Module: ...
    @property
    def reward(self) -> nn.Module: ...
    @property
    def termination(self) -> nn.Module: ...
    @property
    def optimiser(self) -> optax.GradientTransformation: ...


def init(
    parts: Parts, keys: Callable[[str], Key], code: Array, inner: Callable[[Array], PyTree]
) -> LearnerState:
    """Fresh parameters of all nets, statistics of encoder and decoder, and optimiser state.

    Args:
      parts: static pieces.
      keys: the key of a net, by its name.
      code: [1, F] what the decoder reads.
      inner: given a token [1, E] of the encoder, the parameters of the other nets by name.
    """
    observation = jax.tree.map(
        lambda x: x[None].astype(jnp.float32), example_observation(parts.spec.observation)
    )
    encoder = parts.encoder.init(keys("encoder"), observation, True)
    token = jax.eval_shape(lambda v: parts.encoder.apply(v, observation, False), encoder)
    decoder = parts.decoder.init(keys("decoder"), code, True)
    both = {"encoder": encoder, "decoder": decoder}
    params = {name: variables["params"] for name, variables in both.items()}
    params |= inner(jnp.zeros(token.shape))
    stats = {name: variables.get("batch_stats", {}) for name, variables in both.items()}
    return LearnerState(params, stats, parts.optimiser.init(params))


def encode(
    parts: Parts, params: PyTree, stats: PyTree, observation: PyTree, train: bool
) -> tuple[Array, PyTree]:
    """Tokens [..., E] of observations, and the new statistics of the encoder."""
    x = reconstruction.to_input(parts.config.reconstruction, parts.spec.observation, observation)
    return apply_with_stats(parts.encoder, params["encoder"], stats["encoder"], x, train)


def categoricals(parts: Parts, logits: Array) -> Array:
    """[..., groups · classes] -> log-probabilities [..., groups, classes]."""
    shape = logits.shape[:-1] + (parts.config.groups, parts.config.classes)
    return distributions.unimix_log_probs(logits.reshape(shape), parts.config.unimix)


def sample(key: Key, log_probs: Array) -> Array:
    """One row: [groups, classes] -> [groups · classes]."""
    return distributions.sample_one_hot(key, log_probs).reshape(-1)


def _heads(parts: Parts, params: PyTree, seen: Array) -> tuple[Array, Array]:
    """Logits [..., num_bins] of the reward and [...] of the end."""
    reward = parts.reward.apply({"params": params["reward"]}, seen)
    terminal = parts.termination.apply({"params": params["termination"]}, seen)
    return cast(Array, reward), cast(Array, terminal)[..., 0]


def predict(parts: Parts, state: LearnerState, seen: Array, code: Array) -> Prediction:
    """Reward and discount of features [F] that the heads read; `code` is what is decoded."""
    reward, terminal = _heads(parts, state.params, seen)
    extras = {}
    if legal.is_masked(parts.spec):
        extras = {legal.NAME: decode(parts, state, code)[legal.NAME]}
    mean = distributions.two_hot_mean(reward, parts.config.bins)
    return Prediction(mean, jax.nn.sigmoid(-terminal), extras)


def decode(parts: Parts, state: LearnerState, code: Array) -> PyTree:
    """Mean of the observation as floats; bytes as numbers in [0, 1]."""
    raw, _ = apply_with_stats(
        parts.decoder, state.params["decoder"], state.stats["decoder"], code, False
    )
    return reconstruction.mean(parts.config.reconstruction, parts.spec.observation, raw)


def reconstruct(
    parts: Parts, params: PyTree, stats: PyTree, code: Array, observation: PyTree
) -> tuple[Array, PyTree]:
    """Loss [] summed over an observation, mean over rows; and the new statistics of the decoder."""
    raw, stats = apply_with_stats(parts.decoder, params["decoder"], stats["decoder"], code, True)
    kind = parts.config.reconstruction
    return reconstruction.loss(kind, parts.spec.observation, raw, observation), stats


def arrivals(
    parts: Parts, params: PyTree, seen: Array, timestep: Timestep, mean: Callable[[Array], Array]
) -> dict[str, Array]:
    """Losses "reward" and "termination" [] of features [B, T, F]; `mean` over rows that count."""
    reward, terminal = _heads(parts, params, seen)
    reward = distributions.two_hot_loss(reward, timestep.reward, parts.config.bins)
    terminal = distributions.bernoulli_nll(terminal, timestep.is_terminal.astype(jnp.float32))
    return {
        "reward": parts.config.reward_scale * mean(reward),
        "termination": mean(terminal),
    }


def total(
    parts: Parts, terms: dict[str, Array], kl: tuple[Array, Array, Array], posterior: Array
) -> tuple[Array, Metrics]:
    """Sum [] of terms and scaled KL losses (dynamics, representation, raw), and the metrics."""
    config, (dynamics, representation, raw) = parts.config, kl
    terms = terms | {
        "dynamics": config.dynamics_scale * dynamics,
        "representation": config.representation_scale * representation,
    }
    loss = cast(Array, sum(terms.values()))
    entropy = distributions.categorical_entropy(posterior).sum(axis=-1).mean()
    values = {"loss": loss, **terms, "kl": raw, "posterior_entropy": entropy}
    return loss, {f"model/{name}": (value, jnp.ones(())) for name, value in values.items()}


def apply(
    parts: Parts, state: LearnerState, grads: PyTree, stats: PyTree
) -> tuple[LearnerState, Array]:
    """One optimiser step; with the norm [] of the gradients."""
    params, opt, norm = optim.apply_gradients(parts.optimiser, grads, state.opt, state.params)
    return LearnerState(params, stats, opt), norm
