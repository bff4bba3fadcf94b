"""Probabilistic ensemble of MLPs (PETS, MBPO) as a `WorldModel`.

Each of `E` members maps (observation, action) to a diagonal normal over (reward, change of the
observation). The model is Markov: its latent is the observation itself, together with what
arrived with it. Two things differ from the published epochs over a data set, because here one
gradient step follows another on batches drawn from a growing replay buffer:

*Bootstrap sets.* A published member trains on N of N rows drawn with replacement: in the limit
each row counts Poisson(1) times. Here these counts are drawn from a hash of the row itself, the
same whenever it comes up in a batch: fixed bootstrap sets for a buffer of any size, not stored.
`bootstrap_period` draws other ones after so many updates, as PETS does whenever it trains.

*Elites.* Published elites have the least squared error on a holdout set. Here every member has
its own: the 37 % of rows that its bootstrap set left out, on which it never trains. A running
mean of that out-of-bag error per member is kept in `stats`, and elites are its least entries.

References: Chua et al. 2018 (PETS), https://arxiv.org/abs/1805.12114;
Janner et al. 2019 (MBPO), https://arxiv.org/abs/1906.08253.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import masks
from mbrl_jax.envs import rules
from mbrl_jax.envs.spec import action_size, flat_size, from_flat
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Trajectory,
    Transition,
    WorldModel,
    bounded,
    cached_make,
    number,
)
from mbrl_jax.world_models import markov, moments, uncertainty
from mbrl_jax.world_models.markov import flat_transitions
from mbrl_jax.world_models.moments import Moments, deviation, standardise

ELITE, NOISE = 0, 1  # purposes of the key of `imagine`
BAGS = 0x0BA6  # key of the bootstrap sets: the sets depend on the rows alone
POISSON_CDF = (0.36788, 0.73576, 0.91970, 0.98101, 0.99634)  # P(count <= k), Poisson(1)
STATISTICS_RATE = 0.01  # running means average all batches at first, the last 100 later
ACTIVATIONS = {"swish": jax.nn.silu, "silu": jax.nn.silu, "relu": jax.nn.relu, "tanh": jnp.tanh}


@dataclasses.dataclass(frozen=True)
class Config:
    """Ensemble of probabilistic MLPs; defaults as published for MBPO."""

    members: int = bounded(7, low=1)
    elites: int = bounded(5, low=1)  # members that imagine
    layers: int = bounded(4, low=0)  # hidden layers
    width: int = bounded(200, low=1)
    activation: Literal["swish", "silu", "relu", "tanh"] = "swish"
    learning_rate: float = number(1e-3, low=0)
    # per layer
    weight_decay: float | tuple[float, ...] = bounded((2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), low=0)
    clip_norm: float = number(100.0, "bound on the gradient norm over all members", above=0)
    bootstrap: bool = True  # False: every member sees every row, and elites have no holdout
    # updates after which bootstrap sets are drawn anew; 0: never. Then no row is held out for good
    bootstrap_period: int = bounded(0, low=0)
    max_log_variance: float = bounded(0.5, low=-math.inf)  # where the trainable bounds start
    min_log_variance: float = bounded(-10.0, low=-math.inf)
    bound_penalty: float = number(0.01, low=0)
    scale_targets: bool = False  # True: predict targets standardised by running statistics
    termination: bool = False  # True: learn whether the episode goes on; False: it always does
    learn_reward: bool = True  # False: it is always 0, and a combinator says what it is
    deterministic: bool = False  # True: members are means alone, trained on half of squared errors
    # what the nets read instead of the observation: a function of it, named as `rules.find` reads
    inputs: str | None = None

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record; see the module."""
        return make(self, spec)


class Stats(NamedTuple):
    """What is learned without gradients."""

    observation: Moments  # [F] of what the nets read: the observation [D], or `inputs` of it
    target: Moments  # [O] reward, if it is learned, and change of the observation: O = 1 + D, or D
    holdout_error: Array  # [E] running mean of the out-of-bag squared error
    count: Array  # type: ignore[assignment]  # [] float32: batches seen


class Output(NamedTuple):
    """What every member says about every row; normal over (reward, change), O numbers."""

    mean: Array  # [E, B, O]
    log_variance: Array  # [E, B, O]; of deterministic members -inf
    go_on: Array | None  # [E, B] logit of the discount


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Binds the functions of this file to a config and an environment."""
    _validate(config)
    functions = (init, forward, loss, apply)
    bound: dict[str, Any] = {f.__name__: functools.partial(f, config, spec) for f in functions}
    # Measures of `uncertainty`, and "disagreement": the std of the members' means, averaged over
    # what the network gives. Of a row that was not imagined all are 0.
    certain = dict.fromkeys((*uncertainty.NAMES, "disagreement"), 0.0)
    endless = "" if config.termination else "termination=true of the ensemble learns them"
    see = functools.partial(features, config, spec)
    return markov.make(spec, **bound, features=see, extras=certain, endless=endless)


def init(config: Config, spec: EnvSpec, key: Key) -> LearnerState:
    """Fresh members; weights truncated normal of deviation 1 / (2 √fan_in), biases 0."""
    size = flat_size(spec.observation)
    outputs = config.learn_reward + size
    seen = jax.eval_shape(reader(config, spec), jnp.zeros((size,))).shape[0]
    widths = [
        seen + action_size(spec.action),
        *[config.width] * config.layers,
        outputs * (1 if config.deterministic else 2) + config.termination,
    ]
    layers = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        shape = (config.members, fan_in, fan_out)
        kernel = jax.random.truncated_normal(jax.random.fold_in(key, index), -2.0, 2.0, shape)
        bias = jnp.zeros((config.members, 1, fan_out))
        layers.append({"kernel": kernel / (2.0 * fan_in**0.5), "bias": bias})
    params = {
        "layers": layers,
        "max_log_variance": jnp.full((outputs,), config.max_log_variance),
        "min_log_variance": jnp.full((outputs,), config.min_log_variance),
    }
    observation, target = moments.fresh(seen), moments.fresh(outputs)
    stats = Stats(observation, target, jnp.zeros((config.members,)), count=jnp.zeros(()))
    return LearnerState(params, stats, _optimiser(config).init(params))


# --------------------------------------------------------------------- the model, single stream


def forward(
    config: Config,
    spec: EnvSpec,
    state: LearnerState,
    key: Key,
    observation: Array,
    action: Array,
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """One imagined step: a random elite, and a sample of its normal (TS1 of PETS)."""
    inputs = network_input(state.stats, reader(config, spec)(observation), action)
    output = jax.tree.map(lambda x: x[:, 0], network(config, state.params, inputs[None]))
    elites = jax.lax.top_k(-state.stats.holdout_error, config.elites)[1]
    member = elites[jax.random.randint(jax.random.fold_in(key, ELITE), (), 0, config.elites)]
    mean, log_variance = output.mean[member], output.log_variance[member]
    noise = jax.random.normal(jax.random.fold_in(key, NOISE), mean.shape)
    shift, scale = target_scaling(config, state.stats)
    target = shift + scale * (mean + jnp.exp(0.5 * log_variance) * noise)
    # XLA drops those of the measures that nobody reads.
    means, stds = shift + scale * output.mean, scale * jnp.exp(0.5 * output.log_variance)
    measures = uncertainty.measures(means, stds, member, target)
    measures["disagreement"] = jnp.mean(jnp.std(output.mean, axis=0))
    go_on = jax.nn.sigmoid(output.go_on[member]) if config.termination else jnp.ones(())
    reward, change = parted(config, target)
    return observation + change, reward, go_on, measures


def reader(config: Config, spec: EnvSpec) -> Callable[[Array], Array]:
    """What the nets read of an observation: (`[D]`) -> `[F]`."""
    if config.inputs is None:
        return lambda observation: observation
    function = rules.find(config.inputs)
    return lambda observation: jnp.ravel(function(from_flat(spec.observation, observation)))


def parted(config: Config, target: Array) -> tuple[Array, Array]:
    """(reward `[…]`, change `[…, D]`) of targets `[…, O]`; a reward that nobody learns is 0."""
    if config.learn_reward:
        return target[..., 0], target[..., 1:]
    return jnp.zeros(target.shape[:-1]), target


def features(config: Config, spec: EnvSpec, state: LearnerState, observation: Array) -> Array:
    """What the nets read of it, standardised by the current running statistics `[F]`.

    Behaviours take features of replayed rows anew at every update, so acting, imagination and
    replay always share the same statistics.
    """
    return standardise(state.stats.observation, reader(config, spec)(observation))


# ------------------------------------------------------------------------------------- training


def loss(
    config: Config, spec: EnvSpec, params: PyTree, stats: Stats, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Stats, Metrics]]:
    """Negative log-likelihood of the transitions in `[B, L + 1]` rows, as published:

      Σ_members mean_{rows, outputs} [(μ - y)² e^{-l} + l] + 0.01 (Σ max - Σ min) + Σ wd ½ ‖W‖²

    (no ½ on the first term, mean over outputs; biases are not decayed). Of deterministic members it
    is ½ (μ - y)² instead of the bracket, without bounds, as in PETS' code. Rows before a reset do
    not count. Returns the loss `[]` and (stats with this batch, metrics).
    """
    del key
    rows = flat_transitions(spec, batch)
    target = rows.next_observation - rows.observation
    if config.learn_reward:
        target = jnp.concatenate([rows.reward[:, None], target], axis=-1)
    seen, count = jax.vmap(reader(config, spec))(rows.observation), stats.count
    stats = update_moments(stats, seen, target, rows.valid)
    shift, scale = target_scaling(config, stats)
    target = (target - shift) / scale
    output = network(config, params, network_input(stats, seen, rows.action))
    if config.deterministic:
        each = 0.5 * jnp.square(output.mean - target)
    else:
        each = gaussian_nll(output.mean, output.log_variance, target)
    per_row = jnp.mean(each, axis=-1)  # [E, R]
    if config.termination:
        per_row += optax.sigmoid_binary_cross_entropy(output.go_on, rows.discount)
    counts = bag_counts(config, rows, count)  # [E, R]
    nll = jnp.sum(masks.weighted_mean(per_row, counts * rows.valid))
    held_out = ((counts == 0) if config.bootstrap else (counts > 0)) * rows.valid
    error = jax.lax.stop_gradient(jnp.mean(jnp.square(output.mean - target), axis=-1))
    metrics = {
        "model/nll": (nll / config.members, jnp.ones(())),
        "model/holdout_mse": (jnp.sum(masks.weigh(error, held_out)), jnp.sum(held_out)),
    }
    if not config.deterministic:
        metrics["model/log_variance"] = (jnp.mean(output.log_variance), jnp.ones(()))
    stats = update_holdout(stats, error, held_out)
    return nll + regulariser(config, params), (stats, metrics)


def apply(
    config: Config, spec: EnvSpec, state: LearnerState, grads: PyTree, stats: Stats
) -> tuple[LearnerState, Array]:
    """One step of Adam, after clipping; with the norm `[]` of the gradients."""
    del spec
    updates, opt = _optimiser(config).update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return LearnerState(params, stats, opt), optax.tree.norm(grads)


def regulariser(config: Config, params: PyTree) -> Array:
    """Weight decay of the kernels and the pull on the log-variance bounds, `[]`."""
    decay = config.weight_decay
    decays = decay if isinstance(decay, tuple) else (decay,) * (config.layers + 1)
    squares = [jnp.sum(jnp.square(layer["kernel"])) for layer in params["layers"]]
    weights: Any = sum(0.5 * wd * square for wd, square in zip(decays, squares, strict=True))
    if config.deterministic:
        return weights
    bounds = jnp.sum(params["max_log_variance"]) - jnp.sum(params["min_log_variance"])
    return weights + config.bound_penalty * bounds


def bag_counts(config: Config, rows: Transition, updates: Array) -> Array:
    """How often each of `[R]` rows stands in each member's bootstrap set, `[E, R]`.

    `updates` `[]` that were made before decide which set it is, where sets have a period.
    """
    if not config.bootstrap:
        return jnp.ones((config.members, rows.reward.shape[0]))
    values = [rows.observation, rows.action, rows.reward[:, None], rows.next_observation]
    words = jax.lax.bitcast_convert_type(jnp.concatenate(values, axis=-1), jnp.uint32)  # [R, W]
    odd = (2 * jnp.arange(words.shape[-1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B1)
    hashes = jnp.sum((words ^ (words >> 15)) * odd, axis=-1, dtype=jnp.uint32)
    bags = jax.random.key(BAGS)
    if config.bootstrap_period:
        turn = jnp.floor(updates / config.bootstrap_period).astype(jnp.uint32)
        bags = jax.random.fold_in(bags, turn)
    keys = jax.vmap(functools.partial(jax.random.fold_in, bags))(hashes)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (config.members,)))(keys)
    counts = jnp.sum(uniform[..., None] > jnp.asarray(POISSON_CDF), axis=-1)
    return counts.T.astype(jnp.float32)


# ------------------------------------------------------------------------ networks and statistics


def network(config: Config, params: PyTree, inputs: Array) -> Output:
    """All members on all rows `[B, F + A]`, or on rows of their own `[E, B, F + A]`."""
    hidden, size = inputs, params["max_log_variance"].shape[-1]
    for layer in params["layers"][:-1]:
        hidden = ACTIVATIONS[config.activation](hidden @ layer["kernel"] + layer["bias"])
    out = hidden @ params["layers"][-1]["kernel"] + params["layers"][-1]["bias"]
    log_variance = jnp.full_like(out[..., :size], -jnp.inf)
    if not config.deterministic:
        bounds = params["min_log_variance"], params["max_log_variance"]
        log_variance = bound_log_variance(out[..., size : 2 * size], *bounds)
    return Output(out[..., :size], log_variance, out[..., -1] if config.termination else None)


def network_input(stats: Stats, seen: Array, action: Array) -> Array:
    """Standardised inputs and flat action `[…, F + A]`; actions are in [-1, 1] already."""
    return jnp.concatenate([standardise(stats.observation, seen), action], axis=-1)


def bound_log_variance(raw: Array, low: Array, high: Array) -> Array:
    """Softly keeps `raw` between two bounds (PETS, appendix A.1), elementwise."""
    below = high - jax.nn.softplus(high - raw)
    return low + jax.nn.softplus(below - low)


def gaussian_nll(mean: Array, log_variance: Array, target: Array) -> Array:
    """`(μ - y)² e^{-l} + l`, elementwise: twice the negative log-density less a constant."""
    return jnp.square(mean - target) * jnp.exp(-log_variance) + log_variance


def target_scaling(config: Config, stats: Stats) -> tuple[Array, Array]:
    """Shift and scale between what the network predicts and (reward, change) `[1 + D]`."""
    if not config.scale_targets:
        return jnp.zeros(()), jnp.ones(())
    return stats.target.mean, deviation(stats.target)


def update_moments(stats: Stats, seen: Array, target: Array, valid: Array) -> Stats:
    """Moments of the mixture of what was seen and the valid ones of these rows `[R, …]`."""
    rate = _rate(stats) * (jnp.sum(valid) > 0)
    return stats._replace(
        observation=moments.mix(stats.observation, rate, seen, valid),
        target=moments.mix(stats.target, rate, target, valid),
    )


def update_holdout(stats: Stats, error: Array, held_out: Array) -> Stats:
    """Moves each member's running error towards that of its held-out rows (both `[E, R]`)."""
    change = masks.weighted_mean(error, held_out) - stats.holdout_error
    change = jnp.where(jnp.sum(held_out, axis=-1) > 0, change, 0.0)
    return stats._replace(
        holdout_error=stats.holdout_error + _rate(stats) * change, count=stats.count + 1.0
    )


def _rate(stats: Stats) -> Array:
    return jnp.maximum(1.0 / (stats.count + 1.0), STATISTICS_RATE)


def _optimiser(config: Config) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, optax.adam(config.learning_rate))


def _validate(config: Config) -> None:
    if config.elites > config.members:
        raise ValueError(f"elites ({config.elites}) must not exceed members ({config.members}).")
    if config.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}.")
    decay = config.weight_decay
    if isinstance(decay, tuple) and len(decay) != config.layers + 1:
        raise ValueError(f"weight_decay holds {len(decay)} numbers, not {config.layers + 1}.")
