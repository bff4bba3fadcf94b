"""Drama's world model (arXiv 2410.08893): categorical latents over a Mamba sequence core.

z_t ~ q(z | o_t);  d_t = core(z_≤t, a_≤t);  p(z_{t+1} | d_t);  r_{t+1}, terminal_{t+1} from d_t;
o_t from z_t. The posterior sees the frame alone, so a window encodes in parallel.

Conventions of the record (`mbrl_jax.types.WorldModel`): the latent of row t holds the core carry
after row t - 1, the output d_{t-1}, and z_t. A training window has L + 1 rows, the last of which
serves as target only. What the code cites as "specification" stands in SPECIFICATION.md.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import distributions, masks, optim
from mbrl_jax.cores import mamba2
from mbrl_jax.networks import decoders, encoders, heads, reconstruction
from mbrl_jax.networks.reconstruction import Kind
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
from mbrl_jax.world_models.drama import nets
from mbrl_jax.world_models.drama.nets import Parts


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes and weights by default (specification sections 2 to 4)."""

    core: Any = part("mbrl_jax.cores", mamba2.Config())
    encoder: Any = part("mbrl_jax.networks.encoders", encoders.Image64())
    decoder: Any = part("mbrl_jax.networks.decoders", decoders.Image64())
    groups: int = bounded(32, low=1)
    classes: int = bounded(32, low=1)
    posterior_layers: int = bounded(0, low=0)
    prior_layers: int = bounded(0, low=0)
    head_layers: int = bounded(1, low=0)
    head_width: int = bounded(256, low=1)
    head_hidden: heads.Hidden = "rms_silu"  # hidden layers of prior, reward and termination
    num_bins: int = bounded(255, low=2)
    bins: distributions.Bins = "symlog"  # of rewards
    # How the decoder is scored, and what the encoder reads: `networks.reconstruction`.
    reconstruction: Kind = "sigmoid"
    zero_reward_output: bool = False
    # Times the initial weights of the reward's last layer: published ones predict rewards of up to
    # 47 before anything is learned, and exact zeros let nothing through to the layers below.
    reward_gain: float = bounded(1.0, low=0)
    unimix: float = number(0.01, low=0, high=1)
    # What is drawn and predicted from: the frame's latent and the core's output, each for itself
    # (Drama, STORM), or both for everything (S4WM, R2I).
    reads: Literal["apart", "both"] = "apart"
    # whether the features hold the core's state beside its output (R2I)
    features_hold: Literal["output", "state"] = "output"
    # Nats below which a KL term has no gradient. On small tasks a step carries less than one nat
    # given the past, and 1 would switch the prior off.
    free_nats: float = number(1.0, low=0)
    free_nats_of: Literal["batch", "row"] = "batch"  # the mean over a batch, or row by row
    dynamics_scale: float = number(1.0, low=0)
    representation_scale: float = number(0.1, low=0)
    reward_scale: float = number(1.0, low=0)  # larger where rewards are rare
    boundaries: Literal["reset", "ignored", "early"] = switch(
        "reset",
        published="ignored",
        better="reset",
        price="-0.00 ± 0.02",
        why="where episodes meet inside a window: empty the core's state and mask the KL, or train "
        "across the seam; reset wherever episodes are short. Early is R2I's: the state is emptied, "
        "but a row too soon, so that the first row is led to by the last two of the episode before",
    )
    integer_buffer: bool = switch(
        False,
        published=True,
        better=False,
        price="-0.05 ± 0.01",
        why="imagined samples reach the core as integers: rounding has left about a fifth of the "
        "one-hot groups just below 1, and they vanish; published with CUDA graphs, which "
        "train.yaml switches on",
    )
    # Share of the one-hot groups that the core does not hear in imagination, drawn at random.
    dropped_groups: float = number(0.0, low=0, high=1)
    last_row: Literal["seen", "arrival"] = switch(
        "seen",
        published="arrival",
        better="seen",
        price="+0.00 ± 0.03",
        why="the last row of a training window is seen like all others, or only its reward and end "
        "are read, which the last action brought; as published, replay.length then counts frames",
    )
    optimiser: optim.Config = optim.Config()

    def validate(self) -> None:
        """Raise ValueError for settings that do not go together."""
        if self.reads == "both" and self.last_row == "arrival":
            raise ValueError(
                "model.reads=both predicts rewards from the row that they arrived with, and "
                "model.last_row=arrival does not see the last one: use last_row=seen"
            )

    def make(self, spec: EnvSpec) -> WorldModel:
        """Build the record for one environment."""
        return make(self, spec)


Config.__module__ = __package__  # "drama" on the command line, and so in config.json


class Latent(NamedTuple):
    """What the model knows at a row."""

    carry: PyTree  # of the core, after the previous row
    output: Array  # [F] d of the previous row
    sample: Array  # [groups · classes] z of this row


class Entries(NamedTuple):
    """Compact memory of a window from which the latent of any row can be rebuilt."""

    core: PyTree  # the core's own entries
    outputs: Array  # [T, F]
    samples: Array  # [T, groups · classes]
    is_fresh: Array  # [T] rows before which nothing is known
    start: Latent  # carry and output before row 0


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module to one config and environment."""
    config.validate()
    reconstruction.require_kind(config.reconstruction, spec.observation)
    parts = nets.make_parts(config, spec)
    functions = (
        *(init, initial_latent, observe, observe_sequence, latent_at, imagine),
        *(predict, features, decode, loss, readouts.apply),
    )
    return WorldModel(**{f.__name__: functools.partial(f, parts) for f in functions})


# ----------------------------------------------------------------------------------------- state


def init(parts: Parts, key: Key) -> LearnerState:
    """Fresh parameters, running statistics and optimiser state."""
    keys = dict(zip(parts._fields, jax.random.split(key, len(parts)), strict=True))
    fresh = initial_latent(parts)
    code, seen = nets.code_and_seen(parts, fresh.sample, fresh.output)

    def inner(token):
        inputs = {"posterior": token, "prior": fresh.output, "reward": seen, "termination": seen}
        nets = {n: getattr(parts, n).init(keys[n], x)["params"] for n, x in inputs.items()}
        return {"core": parts.core.init(keys["core"]), **nets}

    return readouts.init(parts, keys.__getitem__, code[None], inner)


def initial_latent(parts: Parts) -> Latent:
    """The latent before anything was seen."""
    size = parts.config.groups * parts.config.classes
    return Latent(parts.core.initial_carry(), jnp.zeros((parts.core.width,)), jnp.zeros((size,)))


# ------------------------------------------------------------------------------------ the record


def observe(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """Filter one real row; `is_first` forgets latent and action."""
    carry, output = nets.advance(parts, state.params, latent.carry, latent.sample, prev_action)
    fresh = initial_latent(parts)
    carry, output = jax.tree.map(
        lambda new, old: jnp.where(timestep.is_first, new, old),
        (fresh.carry, fresh.output),
        (carry, output),
    )
    log_probs, _ = nets.posterior(parts, state.params, state.stats, timestep.observation, False)
    return Latent(carry, output, readouts.sample(key, log_probs))


def _seams(parts: Parts, rows: Trajectory) -> tuple[Array, Array]:
    """Where the core is emptied before a row, and where a row's latent begins anew: [..., T]."""
    is_first = rows.timestep.is_first
    if parts.config.boundaries == "reset":
        return is_first, is_first
    begun = jnp.zeros_like(is_first).at[..., 0].set(is_first[..., 0])
    if parts.config.boundaries == "ignored":
        return begun, begun
    # Two rows of the episode before are fed to the emptied core, and lead to its first row.
    early = jnp.zeros_like(is_first).at[..., :-2].set(is_first[..., 2:])
    return early | begun, begun


def observe_sequence(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    prev_action: Array,
    trajectory: Trajectory,
) -> Entries:
    """Filter rows [T] in parallel, continuing `latent`; row t samples with split(key, T)[t]."""
    timestep, (resets, fresh) = trajectory.timestep, _seams(parts, trajectory)
    log_probs, _ = nets.posterior(parts, state.params, state.stats, timestep.observation, False)
    samples = jax.vmap(readouts.sample)(jax.random.split(key, log_probs.shape[0]), log_probs)
    carry, output = nets.advance(parts, state.params, latent.carry, latent.sample, prev_action)
    xs = nets.core_input(parts, samples, trajectory.action)
    _, outputs, core = parts.core.unroll(state.params["core"], carry, xs, resets)
    start = Latent(carry, output, jnp.zeros_like(latent.sample))
    return Entries(core, outputs, samples, fresh, start)


def latent_at(parts: Parts, entries: Entries, t: Array) -> Latent:
    """The latent of row t (t may be traced): what `observe` gives there."""

    def row(x, i):
        return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

    before = jnp.maximum(t - 1, 0)
    inside = (parts.core.carry_at(entries.core, before), row(entries.outputs, before))
    start = (entries.start.carry, entries.start.output)
    fresh = initial_latent(parts)
    known = jax.tree.map(lambda s, i: jnp.where(t == 0, s, i), start, inside)
    carry, output = jax.tree.map(
        lambda f, k: jnp.where(row(entries.is_fresh, t), f, k),
        (fresh.carry, fresh.output),
        known,
    )
    return Latent(carry, output, row(entries.samples, t))


def imagine(parts: Parts, state: LearnerState, key: Key, latent: Latent, action: Array) -> Latent:
    """One imagined row: z from the prior."""
    heard = nets.heard(parts, key, latent.sample)
    carry, output = nets.advance(parts, state.params, latent.carry, heard, action)
    log_probs = nets.prior(parts, state.params, output)
    return Latent(carry, output, nets.imagined_sample(parts, key, log_probs))


def predict(parts: Parts, state: LearnerState, latent: Latent) -> Prediction:
    """Reward and discount that arrived with this latent; undefined for a first row."""
    code, seen = nets.code_and_seen(parts, latent.sample, latent.output)
    return readouts.predict(parts, state, seen, code)


def features(parts: Parts, state: LearnerState, latent: Latent) -> Array:
    """[groups · classes + F]: z_t, d_{t-1}; behind them the core's state, where it is held."""
    del state
    if parts.config.features_hold == "output":
        return jnp.concatenate([latent.sample, latent.output], axis=-1)
    rows = latent.output.shape[:-1]
    held = [x.reshape((*rows, -1)) for x in jax.tree.leaves(latent.carry)]
    return jnp.concatenate([latent.sample, latent.output, *held], axis=-1)


def decode(parts: Parts, state: LearnerState, latent: Latent) -> PyTree:
    """Mean of the observation as floats; bytes as numbers in [0, 1]."""
    return readouts.decode(parts, state, nets.code_and_seen(parts, latent.sample, latent.output)[0])


# -------------------------------------------------------------------------------------- learning


def loss(
    parts: Parts, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Entries, PyTree, Metrics]]:
    """Loss [] over windows [B, L+1]; entries [B] of the first L rows.

    Row (b, t) samples with `split(split(key, B)[b], L + 1)[t]`, L where the last row is not seen.
    Nothing predicts a reset: where the core is emptied the KL is masked, and so are rewards and
    ends on first rows, which mean nothing there unless the seam is merged (`types.EnvSpec`).
    """
    merged = parts.spec.seam == "merged"
    batch = masks.clean_rows(batch, merged)
    config, timestep, (resets, fresh) = parts.config, batch.timestep, _seams(parts, batch)
    windows, length = timestep.reward.shape
    seen, num_seen = timestep.observation, length
    if config.last_row == "arrival":
        seen, num_seen = jax.tree.map(lambda x: x[:, :-1], seen), length - 1
    posterior, encoder_stats = nets.posterior(parts, params, stats, seen, True)
    keys = jax.vmap(lambda k: jax.random.split(k, num_seen))(jax.random.split(key, windows))
    samples = jax.vmap(jax.vmap(readouts.sample))(keys, posterior)
    reconstruct = functools.partial(readouts.reconstruct, parts, params, stats)
    if config.reads == "apart":  # before the core: gradients are summed in the order of reading
        reconstruction_loss, decoder_stats = reconstruct(samples, seen)

    past = jax.tree.map(lambda x: x[:, : length - 1], (samples, batch.action, resets, fresh))
    inputs = nets.core_input(parts, *past[:2])
    outputs, core = nets.training_pass(parts, params, key, inputs, past[2])
    heard = outputs
    if config.reads == "both":
        before = nets.outputs_before(outputs, fresh)
        code, _ = nets.code_and_seen(parts, samples, before)
        reconstruction_loss, decoder_stats = reconstruct(code, seen)
        heard = code[:, 1:]

    empty = jnp.zeros_like(resets) if merged else timestep.is_first
    arrived = 1.0 - empty[:, 1:].astype(jnp.float32)

    def mean(x):
        return (x * arrived).sum() / jnp.maximum(arrived.sum(), 1.0)

    terms = {"reconstruction": reconstruction_loss}
    led_to = jax.tree.map(lambda x: x[:, 1:], timestep._replace(observation=()))
    # Before the prior: as above.
    terms |= readouts.arrivals(parts, params, heard, led_to, mean)
    kl = nets.kl(
        parts,
        posterior[:, 1:],
        nets.prior(parts, params, outputs[:, : num_seen - 1]),
        fresh[:, 1:num_seen],
    )
    total, metrics = readouts.total(parts, terms, kl, posterior)
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (windows,) + x.shape), initial_latent(parts))
    entries = Entries(core, outputs, past[0], past[3], start)
    stats = {"encoder": encoder_stats, "decoder": decoder_stats}
    return total, (entries, stats, metrics)
