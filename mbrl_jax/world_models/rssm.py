"""DreamerV3's recurrent state-space model (arXiv 2301.04104, as its code stands since 2024).

h_t = gru(h_{t-1}, z_{t-1}, a_{t-1});  z_t ~ q(z | h_t, o_t), in imagination p(z | h_t);  o_t, r_t
and terminal_t from (h_t, z_t). Where an episode begins, h, z and the action before are zeros and
the cell runs all the same: the first state is gru(0, 0, 0), not a learned one.

Kept from the published code: block-diagonal cell, 1 % of uniform probability in posterior *and*
prior, straight-through samples, free nats row by row, rewards as two-hot over symexp bins whose
untrained prediction is exactly 0. Its networks for images are `Pooled`, its sizes stand in
`rssm_sizes`; a window begins from zeros, or with `agent.context=stored` from the latent that the
replay keeps with its first row. The probability of going on is predicted without γ, as everywhere
here; the published head learns γ (1 - terminal).
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions, masks, optim
from mbrl_jax.envs.spec import (
    action_size,
    action_vector,
    zero_action,
)
from mbrl_jax.keys import named
from mbrl_jax.networks import decoders, encoders, reconstruction
from mbrl_jax.networks.block_gru import RMS_EPS, BlockGru
from mbrl_jax.networks.heads import Mlp
from mbrl_jax.networks.initializers import fan_in_truncated
from mbrl_jax.networks.reconstruction import Kind
from mbrl_jax.replay.latents import NAME as LATENT
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Prediction,
    PyTree,
    Timestep,
    Trajectory,
    WorldModel,
    bounded,
    cached_make,
    number,
    part,
    switch,
)
from mbrl_jax.world_models import readouts


@dataclasses.dataclass(frozen=True)
class Config:
    """Published numbers by default, at the sizes of the published preset "12m" for vectors."""

    deter: int = bounded(2048, low=1)
    hidden: int = bounded(256, low=1)
    groups: int = bounded(32, low=1)
    classes: int = bounded(16, low=1)
    blocks: int = bounded(8, low=1)
    gru_layers: int = bounded(1, low=1)
    prior_layers: int = bounded(2, low=0)
    posterior_layers: int = bounded(1, low=0)
    encoder: Any = part("mbrl_jax.networks.encoders", encoders.Dense(256, 3, "dreamerv3"))
    decoder: Any = part("mbrl_jax.networks.decoders", decoders.Dense(256, 3, "dreamerv3"))
    head_layers: int = bounded(1, low=0)
    head_width: int = bounded(256, low=1)
    num_bins: int = bounded(255, low=2)
    bins: distributions.Bins = "symexp"  # of rewards
    reconstruction: Kind = "symlog"
    unimix: float = number(0.01, low=0, high=1)
    # Nats below which the KL of a row has no gradient. On small tasks a step carries less than one
    # nat given the past, and 1 would switch the prior off.
    free_nats: float = number(1.0, low=0)
    dynamics_scale: float = number(1.0, low=0)
    representation_scale: float = number(0.1, low=0)
    reward_scale: float = number(1.0, low=0)
    unled: Literal["masked", "counted"] = switch(
        "masked",
        published="counted",
        better="masked",
        why="rows that nothing led to (first rows, row 0 of each window): leave them out of the KL "
        "and of what rewards and ends are trained on, or train there too; imagination never gets "
        "there",
    )
    optimiser: optim.Config = optim.Config()

    def validate(self) -> None:
        """Raise ValueError for sizes that do not fit."""
        if self.deter % self.blocks:
            raise ValueError(f"model.blocks={self.blocks} must divide model.deter={self.deter}")
        read = getattr(self.decoder, "deter", self.deter)
        if read not in (0, self.deter):
            raise ValueError(
                f"model.decoder.deter={read} must be model.deter={self.deter}, whose numbers it "
                "reads first, or 0 for a decoder that does not tell them from the others"
            )

    def make(self, spec: EnvSpec) -> WorldModel:
        """Build the record for one environment."""
        return make(self, spec)


class Latent(NamedTuple):
    """What the model knows at a row; entries are latents [T] of all rows."""

    deter: Array  # [deter] h
    stoch: Array  # [groups · classes] z


class Parts(NamedTuple):
    """Static pieces of one model."""

    config: Config
    spec: EnvSpec
    encoder: nn.Module
    gru: nn.Module
    prior: nn.Module
    posterior: nn.Module
    reward: nn.Module
    termination: nn.Module
    decoder: nn.Module
    optimiser: optax.GradientTransformation


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module; raises ValueError where episodes meet in one row."""
    config.validate()
    if spec.seam == "merged":
        raise ValueError(
            "rssm forgets everything on first rows, so it cannot predict the rewards and ends that "
            "a merged seam puts there; set env.protocol.seam=separate"
        )
    observation = spec.observation
    reconstruction.require_kind(config.reconstruction, observation)
    mlp = functools.partial(Mlp, hidden_init=fan_in_truncated(), eps=RMS_EPS)
    head = functools.partial(mlp, width=config.head_width, layers=config.head_layers)
    inner = functools.partial(mlp, width=config.hidden, output_init=fan_in_truncated())
    size = config.groups * config.classes
    parts = Parts(
        config,
        spec,
        encoder=config.encoder.make(observation),
        gru=BlockGru(config.deter, config.hidden, config.blocks, config.gru_layers),
        prior=inner(size, layers=config.prior_layers),
        posterior=inner(size, layers=config.posterior_layers),
        reward=head(config.num_bins, output_init=fan_in_truncated(0.0)),
        termination=head(1, output_init=fan_in_truncated()),
        decoder=config.decoder.make(observation),
        optimiser=config.optimiser.make(),
    )
    functions = (
        *(init, initial_latent, observe, observe_sequence, latent_at, imagine),
        *(predict, features, decode, loss, readouts.apply),
    )
    bound: dict[str, Any] = {f.__name__: functools.partial(f, parts) for f in functions}
    return WorldModel(**bound, begins_windows=True)


# ----------------------------------------------------------------------------------------- state


def init(parts: Parts, key: Key) -> LearnerState:
    """Fresh parameters, running statistics of encoder and decoder, and optimiser state."""
    latent = initial_latent(parts)
    seen = _concatenated(latent)
    action = jnp.zeros((action_size(parts.spec.action),))

    def inner(token):
        arguments = {
            "gru": (latent.deter, (latent.stoch, action)),
            "prior": (latent.deter,),
            "posterior": (jnp.concatenate([latent.deter, token[0]]),),
            "reward": (seen,),
            "termination": (seen,),
        }
        return {
            name: getattr(parts, name).init(named(key, name), *args)["params"]
            for name, args in arguments.items()
        }

    return readouts.init(parts, functools.partial(named, key), seen[None], inner)


def initial_latent(parts: Parts) -> Latent:
    """The latent before anything was seen."""
    config = parts.config
    return Latent(jnp.zeros((config.deter,)), jnp.zeros((config.groups * config.classes,)))


# ------------------------------------------------------------------------------------ the record


def _call(parts: Parts, params: PyTree, name: str, *args) -> Array:
    return getattr(parts, name).apply({"params": params[name]}, *args)


def _concatenated(latent: Latent) -> Array:
    return jnp.concatenate([latent.deter, latent.stoch], axis=-1)


def _categoricals(parts: Parts, params: PyTree, name: str, x: Array) -> Array:
    """Log-probabilities [..., groups, classes] of "prior" or "posterior"."""
    return readouts.categoricals(parts, _call(parts, params, name, x))


def _advance(parts: Parts, params: PyTree, latent: Latent, action: Array) -> Array:
    """h [deter] of the next row."""
    return _call(parts, params, "gru", latent.deter, (latent.stoch, action))


def _filter(
    parts: Parts,
    params: PyTree,
    key: Key,
    latent: Latent,
    token: Array,
    is_first: Array,
    prev_action: Array,
) -> tuple[Latent, Array]:
    """One real row: its latent, and the log-probabilities [groups, classes] of its posterior."""
    past = (*latent, action_vector(parts.spec.action, prev_action))
    deter, stoch, action = (jnp.where(is_first, 0.0, x) for x in past)
    deter = _advance(parts, params, Latent(deter, stoch), action)
    log_probs = _categoricals(parts, params, "posterior", jnp.concatenate([deter, token], axis=-1))
    stoch = readouts.sample(key, log_probs)
    return Latent(deter, stoch), log_probs


def _filter_rows(
    parts: Parts,
    params: PyTree,
    key: Key,
    start: tuple[Latent, PyTree],
    tokens: Array,
    rows: Trajectory,
) -> tuple[Latent, Array]:
    """Rows [T] behind `start`, a latent and the action that followed it: as `_filter`, [T]."""

    def body(before, row):
        row_key, token, is_first, action = row
        latent, log_probs = _filter(parts, params, row_key, before[0], token, is_first, before[1])
        return (latent, action), (latent, log_probs)

    keys = jax.random.split(key, tokens.shape[0])
    xs = (keys, tokens, rows.timestep.is_first, rows.action)
    return jax.lax.scan(body, start, xs)[1]


def observe(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """Filter one real row; `is_first` forgets latent and action."""
    token, _ = readouts.encode(parts, state.params, state.stats, timestep.observation, False)
    return _filter(parts, state.params, key, latent, token, timestep.is_first, prev_action)[0]


def observe_sequence(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    prev_action: Array,
    trajectory: Trajectory,
) -> Latent:
    """Latents [T] of rows [T], continuing `latent`; row t samples with split(key, T)[t]."""
    tokens, _ = readouts.encode(
        parts, state.params, state.stats, trajectory.timestep.observation, False
    )
    return _filter_rows(parts, state.params, key, (latent, prev_action), tokens, trajectory)[0]


def latent_at(parts: Parts, entries: Latent, t: Array) -> Latent:
    """The latent of row t (t may be traced): what `observe` gives there."""
    del parts
    row = lambda x: jax.lax.dynamic_index_in_dim(x, t, keepdims=False)  # noqa: E731
    return jax.tree.map(row, entries)


def imagine(parts: Parts, state: LearnerState, key: Key, latent: Latent, action: Array) -> Latent:
    """One imagined row: z from the prior."""
    vector = action_vector(parts.spec.action, action)
    deter = _advance(parts, state.params, latent, vector)
    log_probs = _categoricals(parts, state.params, "prior", deter)
    return Latent(deter, readouts.sample(key, log_probs))


def predict(parts: Parts, state: LearnerState, latent: Latent) -> Prediction:
    """Reward and discount that arrived with this latent; undefined for a first row."""
    seen = _concatenated(latent)
    return readouts.predict(parts, state, seen, seen)


def features(parts: Parts, state: LearnerState, latent: Latent) -> Array:
    """[deter + groups · classes]: h, z."""
    del parts, state
    return _concatenated(latent)


def decode(parts: Parts, state: LearnerState, latent: Latent) -> PyTree:
    """Mean of the observation; bytes as numbers in [0, 1]."""
    return readouts.decode(parts, state, _concatenated(latent))


# -------------------------------------------------------------------------------------- learning


def loss(
    parts: Parts, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Latent, PyTree, Metrics]]:
    """Loss [] over all rows of windows [B, L+1]; differentiable entries [B] of the first L.

    Row (b, t) samples with `split(split(key, B)[b], L + 1)[t]`; before a window nothing is known.
    Where the replay keeps latents (`replay.latents`), the first row of a window gives its own and
    is not trained on: the windows are the L rows behind it, and `split` makes one key less.
    """
    batch = masks.clean_rows(batch)
    kept = batch.extras.get(LATENT)
    if kept is None:
        start, before = (initial_latent(parts), zero_action(parts.spec.action)), None
    else:
        start, before = jax.tree.map(lambda x: x[:, 0], (kept, batch.action)), 0
        batch = jax.tree.map(lambda x: x[:, 1:], batch)
    config, timestep = parts.config, batch.timestep
    tokens, encoder_stats = readouts.encode(parts, params, stats, timestep.observation, True)
    filter_rows = functools.partial(_filter_rows, parts, params)
    keys = jax.random.split(key, tokens.shape[0])
    if kept is None:  # a window begins as an episode does: no action led to its first row
        timestep = timestep._replace(is_first=timestep.is_first.at[:, 0].set(True))
    rows = batch._replace(timestep=timestep)
    latents, posterior = jax.vmap(filter_rows, (0, before, 0, 0))(keys, start, tokens, rows)
    seen = _concatenated(latents)
    led_to = ~timestep.is_first
    if config.unled == "counted":
        led_to = jnp.ones_like(led_to)

    prior = _categoricals(parts, params, "prior", latents.deter)
    kl = distributions.free_kl_losses(posterior, prior, led_to, config.free_nats)
    reconstruction_loss, decoder_stats = readouts.reconstruct(
        parts, params, stats, seen, timestep.observation
    )
    terms = {"reconstruction": reconstruction_loss}
    mean = functools.partial(masks.masked_mean, mask=led_to)
    terms |= readouts.arrivals(parts, params, seen, timestep, mean)
    total, metrics = readouts.total(parts, terms, kl, posterior)
    if kept is not None:
        latents = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[:, None], rest], axis=1), start[0], latents
        )
    entries = jax.tree.map(lambda x: x[:, :-1], latents)
    return total, (entries, {"encoder": encoder_stats, "decoder": decoder_stats}, metrics)
