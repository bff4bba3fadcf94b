"""TD-MPC2's world model (arXiv 2310.16828): latents that predict themselves, and no decoder.

z = h(o);  z' = d(z, a);  r = R(z, a). Encoder and dynamics end in SimNorm. The loss rolls d along a
window and pulls every z' towards h(o'), the *online* encoder without its gradient:

  Σₜ ρᵗ [20 · mean (zₜ₊₁ - sg h(oₜ₊₁))² + 0.1 · CE(R(zₜ, aₜ), rₜ₊₁)] / L

What the critics add to the gradient is the behaviour's `representation_loss`
(`mbrl_jax.behaviours.tdmpc`, with agent=joint).

Conventions. The reward of (z, a) rides on the latent that follows, where `predict` reads it. An
episode that begins inside a window is encoded there and rolled on from it: nothing is trained
across a seam. `Prediction.extras["age"]` counts the rows since a latent was encoded.

Images of 64 × 64 are moved by up to three pixels wherever they are encoded, in acting too, and pass
four convolutions (`networks.shifted`); critics' targets and the consistency's see them moved anew.

This is the published system for one task; its sizes stand in `tdmpc_sizes`. Task embeddings are
left out; the published burst of updates behind the first random episodes is a phase of an
experiment (`Phase(collect=False)`).

Reference: Hansen, Su & Wang 2024, https://arxiv.org/abs/2310.16828; facts beyond the paper are
those of its code (https://github.com/nicklashansen/tdmpc2).
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions, masks, optim
from mbrl_jax.envs.spec import (
    action_size,
    action_vector,
    only_array,
    require_separate_seam,
)
from mbrl_jax.keys import named
from mbrl_jax.networks import shifted
from mbrl_jax.networks.norms import NormedMlp
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import (
    Array,
    ArraySpec,
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
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes (5 million parameters with the behaviour) and numbers by default."""

    latent: int = bounded(512, low=1)  # numbers of z
    group: int = bounded(8, low=1)  # of them share a softmax
    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=0)  # hidden ones, of dynamics and heads
    encoder_width: int = bounded(256, low=1)
    encoder_layers: int = bounded(1, low=0)
    channels: int = bounded(32, low=1)  # of the convolutions, for images; latent = 16 · channels
    shift: int = bounded(3, low=0)  # pixels that an image is moved by, at most
    num_bins: int = bounded(101, low=2)
    bin_limit: float = number(10.0, "symlog of the largest reward that bins reach", above=0)
    rho: float = number(
        0.5, "weight of a row for each row since the latent was encoded", low=0, high=1
    )
    consistency_scale: float = number(20.0, low=0)
    reward_scale: float = number(0.1, low=0)
    termination: bool = False  # True: learn whether the episode goes on; False: it always does
    termination_scale: float = number(1.0, low=0)
    encoder_rate: float = number(
        0.3, "the encoder's learning rate, as a share of the others'", low=0
    )
    optimiser: optim.Config = optim.Config("adam", 3e-4, clip_norm=20.0, warmup=0, eps=1e-8)

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record; see the module."""
        return make(self, spec)


class Latent(NamedTuple):
    """What the model knows at a row."""

    z: Array  # [D] points of simplices
    reward: Array  # [] that arrived: seen, or expected of the action before
    age: Array  # [] float32: rows since z was encoded


class Parts(NamedTuple):
    """Static pieces of one model."""

    config: Config
    spec: EnvSpec
    nets: dict[str, nn.Module]  # encoder, dynamics, reward, termination where it is learned
    optimiser: optax.GradientTransformation


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module; raises ValueError where the environment does not fit."""
    require_separate_seam(spec, "model=tdmpc")
    if not isinstance(spec.observation, ArraySpec):
        raise ValueError(  # noqa: TRY004
            f"model=tdmpc needs one array as observation, not {spec.observation}"
        )
    parts = Parts(config, spec, make_nets(config, spec.observation), make_optimiser(config))
    functions = (
        *(init, initial_latent, observe, observe_sequence, imagine, predict),
        *(loss, apply),
    )
    bound = {f.__name__: functools.partial(f, parts) for f in functions}
    endless = "" if config.termination else "model.termination=true learns them"
    own: dict[str, Any] = {"latent_at": latent_at, "features": features, "decode": None}
    return WorldModel(**bound, **own, markov=True, endless=endless)


def make_nets(config: Config, observation: ArraySpec) -> dict[str, nn.Module]:
    """The nets, by the names of their parameters."""
    if config.latent % config.group:
        raise ValueError(f"latent={config.latent} is no multiple of group={config.group}")
    mlp = functools.partial(NormedMlp, width=config.width, layers=config.layers)
    nets: dict[str, nn.Module] = {
        "encoder": NormedMlp(
            config.latent, config.encoder_width, config.encoder_layers, config.group
        ),
        "dynamics": mlp(config.latent, group=config.group),
        "reward": mlp(config.num_bins, zero_output=True),
    }
    if is_image(observation):
        size = shifted.size_of(observation.shape, config.channels)
        if size != config.latent:
            raise ValueError(
                f"model.latent={config.latent} must be the {size} numbers that "
                f"model.channels={config.channels} make of an image: set model.latent={size}, or "
                "other channels"
            )
        nets["encoder"] = shifted.ImageEncoder(config.channels, config.group)
    return nets | ({"termination": mlp(1)} if config.termination else {})


def is_image(observation: ArraySpec) -> bool:
    """Whether convolutions encode it."""
    return observation.dtype == "uint8" and len(observation.shape) == 3


def make_optimiser(config: Config) -> optax.GradientTransformation:
    """The configured rule, whose steps of the encoder are shortened afterwards.

    That is a smaller learning rate of the encoder, since Adam's steps are proportional to it.
    """

    def shorten(updates, params):
        del params
        encoder = jax.tree.map(lambda u: config.encoder_rate * u, updates["encoder"])
        return updates | {"encoder": encoder}

    return optax.chain(config.optimiser.make(), optax.stateless(shorten))


def init(parts: Parts, key: Key) -> LearnerState:
    """Fresh parameters and optimiser state."""
    z = jnp.zeros((parts.config.latent,))
    both = jnp.zeros((parts.config.latent + action_size(parts.spec.action),))
    observation = _input(parts, jnp.zeros(only_array(parts.spec, "model=tdmpc").shape))
    examples = {"encoder": observation, "dynamics": both, "reward": both, "termination": z}
    params = {
        name: net.init(named(key, name), examples[name])["params"]
        for name, net in parts.nets.items()
    }
    return LearnerState(params, (), parts.optimiser.init(params))


# --------------------------------------------------------------------- the model, single stream


def initial_latent(parts: Parts) -> Latent:
    """A latent of zeros; `observe` ignores it, the model being Markov."""
    return Latent(jnp.zeros((parts.config.latent,)), *jnp.zeros((2,)))


def encode(parts: Parts, params: PyTree, key: Key, timestep: Timestep) -> Latent:
    """The latent of a real row; the key moves an image."""
    observation = timestep.observation.astype(jnp.float32)
    if is_image(only_array(parts.spec, "model=tdmpc")):
        observation = shifted.random_shift(key, observation, parts.config.shift)
    z = apply_net(parts, params, "encoder", _input(parts, observation))
    reward = jnp.asarray(timestep.reward, jnp.float32)
    return Latent(z, reward, jnp.zeros_like(reward))


def _input(parts: Parts, observation: Array) -> Array:
    """What the encoder reads: an image as it is, anything else as a vector."""
    return observation if is_image(only_array(parts.spec, "model=tdmpc")) else observation.ravel()


def _encode_rows(parts: Parts, params: PyTree, key: Key, timestep: Timestep) -> Latent:
    """Latents [T] of rows [T], in parallel; row t has split(key, T)[t]."""
    keys = jax.random.split(key, timestep.reward.shape[0])
    return jax.vmap(functools.partial(encode, parts, params))(keys, timestep)


def advance(parts: Parts, params: PyTree, latent: Latent, action: PyTree) -> tuple[Latent, Array]:
    """One step of the dynamics: the latent that follows, and the logits [bins] of its reward."""
    inputs = jnp.concatenate([latent.z, action_vector(parts.spec.action, action)], axis=-1)
    logits = apply_net(parts, params, "reward", inputs)
    reward = distributions.two_hot_mean(logits, limit=parts.config.bin_limit)
    z = apply_net(parts, params, "dynamics", inputs)
    return Latent(z, reward, latent.age + 1.0), logits


def apply_net(parts: Parts, params: PyTree, name: str, x: Array) -> Array:
    """One of the nets on x [..., F]."""
    return parts.nets[name].apply({"params": params[name]}, x)


def observe(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """The latent of a real row."""
    del latent, prev_action
    return encode(parts, state.params, key, timestep)


def observe_sequence(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    prev_action: PyTree,
    trajectory: Trajectory,
) -> Latent:
    """Entries of rows [T], in parallel: the latents themselves."""
    del latent, prev_action
    return _encode_rows(parts, state.params, key, trajectory.timestep)


def latent_at(entries: Latent, t: Array | int) -> Latent:
    """The latent of row t."""
    return jax.tree.map(lambda x: x[t], entries)


def imagine(parts: Parts, state: LearnerState, key: Key, latent: Latent, action: PyTree) -> Latent:
    """One imagined row; nothing is drawn."""
    del key
    return advance(parts, state.params, latent, action)[0]


def predict(parts: Parts, state: LearnerState, latent: Latent) -> Prediction:
    """What arrived with this latent."""
    discount = jnp.ones(())
    if parts.config.termination:
        discount = jax.nn.sigmoid(-apply_net(parts, state.params, "termination", latent.z)[..., 0])
    return Prediction(latent.reward, discount, {"age": latent.age})


def features(state: LearnerState, latent: Latent) -> Array:
    """z [D]."""
    del state
    return latent.z


# ------------------------------------------------------------------------------------- training


class Rollout(NamedTuple):
    """The dynamics along the actions of a window."""

    latents: Latent  # [L] open-loop, encoded anew where an episode begins
    z: Array  # [L, D] what follows each
    reward_logits: Array  # [L, bins] of the reward that arrives with it


def roll(parts: Parts, params: PyTree, encoded: Latent, rows: Trajectory) -> Rollout:
    """Roll the dynamics along one window of L + 1 rows, whose latents `encoded` [L + 1] are."""

    def body(latent, row):
        action, is_first, seen = row
        following, logits = advance(parts, params, latent, action)
        begins = functools.partial(jnp.where, is_first)
        return jax.tree.map(begins, seen, following), Rollout(latent, following.z, logits)

    later = jax.tree.map(lambda x: x[1:], (rows.timestep.is_first, encoded))
    actions = jax.tree.map(lambda x: x[:-1], rows.action)
    return jax.lax.scan(body, latent_at(encoded, 0), (actions, *later), unroll=True)[1]


def loss(
    parts: Parts, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Latent, PyTree, Metrics]]:
    """Loss [] over windows [B, L+1]; entries [B, L] are open-loop latents, differentiable.

    Row (b, t) is moved with `split(split(key, B)[b], L + 1)[t]`.
    """
    batch = masks.clean_rows(batch)
    config, rows = parts.config, jax.vmap(transitions)(batch)
    keys = jax.random.split(key, batch.timestep.reward.shape[0])
    encoded = jax.vmap(functools.partial(_encode_rows, parts, params))(keys, batch.timestep)
    rolled = jax.vmap(functools.partial(roll, parts, params))(encoded, batch)
    weight = config.rho**rolled.latents.age / rows.reward.shape[1]

    def weighted(x):  # [B, L]
        return jnp.where(rows.valid > 0, weight * x, 0.0).sum(axis=1).mean()

    target = jax.lax.stop_gradient(encoded.z[:, 1:])
    reward = distributions.two_hot_loss(rolled.reward_logits, rows.reward, limit=config.bin_limit)
    terms = {
        "consistency": (config.consistency_scale, jnp.square(rolled.z - target).mean(axis=-1)),
        "reward": (config.reward_scale, reward),
    }
    terms = {name: (scale, weighted(x)) for name, (scale, x) in terms.items()}
    if config.termination:
        logit = apply_net(parts, params, "termination", rolled.z)[..., 0]
        nll = distributions.bernoulli_nll(logit, 1.0 - rows.discount)
        count = jnp.maximum(rows.valid.sum(), 1.0)
        mean = jnp.where(rows.valid > 0, nll, 0.0).sum() / count
        terms["termination"] = (config.termination_scale, mean)
    total = cast(Array, sum(scale * value for scale, value in terms.values()))
    values = {"loss": total} | {name: value for name, (_, value) in terms.items()}
    metrics = {f"model/{name}": (value, jnp.ones(())) for name, value in values.items()}
    return total, (rolled.latents, stats, metrics)


def apply(
    parts: Parts, state: LearnerState, grads: PyTree, stats: PyTree
) -> tuple[LearnerState, Array]:
    """One optimiser step; (the new state, norm [] of the gradients)."""
    params, opt, norm = optim.apply_gradients(parts.optimiser, grads, state.opt, state.params)
    return LearnerState(params, stats, opt), norm
