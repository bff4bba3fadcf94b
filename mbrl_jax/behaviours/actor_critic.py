"""Actor-critic in imagination (Drama section 2.3, after DreamerV3, arXiv 2301.04104).

From every start the policy acts H steps in the world model; λ-returns train a two-hot critic and an
actor of discrete, multi-discrete or real-valued actions (`choices`): with REINFORCE, or with their
own gradient, which flows back through the model (`gradient=dynamics`, DreamerV2, arXiv 2010.02193,
equation 6). A slow copy of the critic regularises it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import distributions, legal, optim, returns
from mbrl_jax.behaviours import choices
from mbrl_jax.behaviours.actors import (
    Imagined,
    Parts,
    Stats,
    act,
    imagine,
    mask_of,
    policy,
    take_in,
)
from mbrl_jax.envs.spec import is_real
from mbrl_jax.networks import running
from mbrl_jax.networks.heads import Hidden, Mlp
from mbrl_jax.networks.initializers import orthogonal
from mbrl_jax.types import (
    Array,
    Behaviour,
    BoundModel,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Prediction,
    PyTree,
    Starts,
    bounded,
    cached_make,
    number,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes and numbers by default (specification section 5)."""

    horizon: int = bounded(16, low=1)
    actor_width: int = bounded(256, low=1)
    critic_width: int = bounded(512, low=1)
    layers: int = bounded(3, low=0)
    hidden: Hidden = "rms_silu"  # what they are, of actor and critic
    num_bins: int = bounded(255, low=2)
    # distribution of real-valued actions: DreamerV3's, or a normal behind tanh
    real_actions: choices.Real = "bounded_normal"
    # how the actor learns of returns: by the probability of what it drew, or through the model
    gradient: Literal["reinforce", "dynamics"] = "reinforce"
    # of actor and critic; 0 starts from the uniform policy exactly, None as `hidden` layers start
    output_gain: float | None = bounded(0.001, low=0)
    gamma: float = number(0.985, low=0, high=1)
    lambda_: float = number(0.95, low=0, high=1)
    entropy: float = number(3e-4, low=0)
    # share of the critic that enters its slow copy
    target_decay: float = number(0.02, low=0, high=1)
    # share of the batch that enters the return range
    range_decay: float = number(0.01, low=0, high=1)
    low_fraction: float = bounded(0.05, low=0, high=1)
    high_fraction: float = bounded(0.95, low=0, high=1)
    rewards: Literal["aligned", "shifted"] = switch(
        "aligned",
        published="shifted",
        better="aligned",
        price="-0.01 ± 0.02",
        why="a return begins with what the action brought, or with what had arrived before it; "
        "shifted, credit comes a step late",
    )
    mixed_value: Literal["next", "same"] = switch(
        "next",
        published="same",
        better="next",
        price="-0.04 ± 0.01",
        why="value that the λ-return mixes in: of the next state (textbook) or of the same one",
    )
    ends: Literal["probability", "threshold"] = switch(
        "probability",
        published="threshold",
        better="probability",
        price="+0.01 ± 0.03",
        why="imagined discounts: the probability of going on, or 0 or 1 by its half",
    )
    weigh_reached: bool = switch(
        True,
        published=False,
        better=True,
        price="-0.05 ± 0.06",
        why="steps weigh the probability that imagination got there; without, steps behind a "
        "predicted end are trained on too",
    )
    normalise_input: bool = switch(
        False,
        published=True,
        better=False,
        price="+0.02 ± 0.03",
        why="the actor sees features less their running mean, over their deviation; saved here, "
        "forgotten in the published evaluation",
    )
    input_rows: Literal["once", "passes"] = switch(
        "once",
        published="passes",
        better="once",
        price="-0.05 ± 0.02",
        why="what the actor's normaliser counts: each imagined row once, or the rows of every pass "
        "through the actor, at each imagined step and again in each optimiser step, before they "
        "are normalised",
    )
    optimiser: optim.Config = optim.Config(clip_norm=100.0)

    @property
    def counts_passes(self) -> bool:
        """Whether each pass through the actor moves what normalises its input."""
        return self.normalise_input and self.input_rows == "passes"

    def make(self, spec: EnvSpec) -> Behaviour:
        """Build the record for one environment."""
        return make(self, spec)


@cached_make
def make(config: Config, spec: EnvSpec) -> Behaviour:
    """Bind the functions of this module; raises ValueError for a gradient that cannot flow."""
    require_gradient(config, spec)
    return bind_parts(make_parts(config, spec), update)


def require_gradient(config: Config, spec: EnvSpec) -> None:
    """Raise ValueError for a gradient through the model that actions do not let through."""
    if config.gradient == "dynamics" and not is_real(spec.action):
        raise ValueError(
            f"gradient=dynamics flows through real-valued actions, and here are {spec.action}: use "
            "behaviour.gradient=reinforce"
        )


def make_parts(config: Config, spec: EnvSpec, steps_of_update: int = 1) -> Parts:
    """Nets and optimiser for an update of so many optimiser steps."""
    made = choices.choices_of(spec.action, config.real_actions)
    gain = config.output_gain
    mlp = functools.partial(
        Mlp,
        layers=config.layers,
        hidden=config.hidden,
        hidden_init=orthogonal(2**0.5) if config.hidden == "rms_silu" else None,
        output_init=None if gain is None else orthogonal(gain),
    )
    return Parts(
        config,
        actor=mlp(made.size, config.actor_width),
        critic=mlp(config.num_bins, config.critic_width),
        optimiser=config.optimiser.make(steps_of_update),
        choices=made,
        allowed=legal.reader(spec),
    )


def bind_parts(parts: Parts, update: Callable) -> Behaviour:
    """The record: all but how it learns is the same for every learner of an actor and a critic."""
    functions: dict[str, Callable] = {"init": init, "act": act, "update": update}
    bound: dict[str, Any] = {name: functools.partial(f, parts) for name, f in functions.items()}
    return Behaviour(initial_carry=tuple, **bound)


def init(parts: Parts, key: Key, features: Array) -> LearnerState:
    """Fresh actor, critic and slow critic for features [F]."""
    actor_key, critic_key = jax.random.split(key)
    params = {
        "actor": parts.actor.init(actor_key, features)["params"],
        "critic": parts.critic.init(critic_key, features)["params"],
    }
    seen = running.fresh(features.shape) if parts.config.normalise_input else ()
    stats = Stats(params["critic"], jnp.zeros(()), jnp.zeros(()), seen)
    return LearnerState(params, stats, parts.optimiser.init(params))


class Targets(NamedTuple):
    """What actor and critic are trained towards; nothing here has a gradient."""

    advantage: Array  # [M, H] divided by max(1, range of returns)
    live: Array  # [M, H] λ-returns with the values of the critic
    slow: Array  # [M, H] with those of its slow copy, or those values: `Parts.slow_targets`
    weight: Array  # [M, H] probability that the step was reached


def make_targets(
    parts: Parts, stats: Stats, imagined: Imagined, logits: Array
) -> tuple[Targets, Stats]:
    """Targets of imagined rollouts, and the statistics with the new range of returns.

    Advantages are divided by max(1, range of returns); returns come from the live critic for the
    actor and the first critic term, and from the slow critic for the second (specification
    section 5), unless that one pulls to the slow critic's own values.

    Args:
      parts: static pieces.
      stats: of the learner.
      imagined: rollouts of M starts.
      logits: [M, H+1, num_bins] of the live critic.
    """
    config = parts.config
    lambda_returns = functools.partial(_lambda_returns, config, imagined.prediction)
    slow_logits = parts.critic.apply({"params": stats.target_critic}, imagined.features)
    # Live and slow critic go through values and returns together.
    both = distributions.two_hot_mean(jnp.stack([logits, slow_logits]), parts.bins)
    both = jax.lax.stop_gradient(both)
    values = both[0]
    if parts.slow_targets == "returns":
        live, slow = jax.vmap(lambda_returns)(both)
    else:
        live, slow = lambda_returns(values), both[1][:, :-1]

    rate = config.range_decay
    low = optim.moving_average(stats.low, parts.quantile(live, config.low_fraction), rate)
    high = optim.moving_average(stats.high, parts.quantile(live, config.high_fraction), rate)
    advantage = (live - values[:, :-1]) / jnp.maximum(1.0, high - low)
    reached = imagined.prediction.discount[:, 1:]
    weight = jnp.ones_like(live)
    if config.weigh_reached:
        weight = jax.lax.stop_gradient(jax.vmap(returns.survival)(reached, imagined.weight))
    if parts.discounted_weights:
        weight = weight * config.gamma ** jnp.arange(weight.shape[1])
    return Targets(advantage, live, slow, weight), stats._replace(low=low, high=high)


def _lambda_returns(config: Any, prediction: Prediction, values: Array) -> Array:
    """λ-returns [M, H] of predictions and values [M, H+1]."""
    rows = slice(-1) if config.rewards == "shifted" else slice(1, None)
    reward, discount = (x[:, rows] for x in prediction[:2])
    if config.ends == "threshold":
        discount = (discount >= 0.5).astype(discount.dtype)
    mixed = values[:, 1:] if config.mixed_value == "next" else values[:, :-1]
    return jax.vmap(returns.lambda_return, (0, 0, 0, 0, None))(
        reward, config.gamma * discount, mixed, values[:, -1], config.lambda_
    )


def _returns_through(parts: Parts, critic: PyTree, dreamed: Imagined) -> Array:
    """λ-returns [M, H] of rollouts, with the gradient of the actions that led to them."""
    frozen = {"params": jax.lax.stop_gradient(critic)}
    logits = parts.critic.apply(frozen, dreamed.features)
    values = distributions.two_hot_mean(logits, parts.bins)
    return _lambda_returns(parts.config, dreamed.prediction, values)


def loss(
    parts: Parts, params: PyTree, stats: Stats, imagined: Imagined
) -> tuple[Array, tuple[Stats, Metrics]]:
    """Actor and critic loss [] over imagined rollouts; each step weighs its `Targets.weight`."""
    total, (_, stats, metrics) = loss_and_targets(parts, params, stats, imagined)
    return total, (stats, metrics)


def loss_and_targets(
    parts: Parts,
    params: PyTree,
    stats: Stats,
    imagined: Imagined,
    dreamed: Imagined | None = None,
) -> tuple[Array, tuple[Targets, Stats, Metrics]]:
    """The same, with what it was trained towards.

    Args:
      parts: static pieces.
      params: of actor and critic.
      stats: of the learner.
      imagined: rollouts of M starts, without a gradient.
      dreamed: the same rollouts with the gradient of the actor's choices, which takes the place of
        REINFORCE; None: REINFORCE.
    """
    features = jax.lax.stop_gradient(imagined.features)
    if parts.config.counts_passes:
        stats = take_in(parts, stats, features)
    logits = parts.critic.apply({"params": params["critic"]}, features)
    targets, stats = make_targets(parts, stats, imagined, logits)
    mask = mask_before(parts, imagined)
    distribution = policy(parts, params["actor"], stats, features[:, :-1], mask)
    entropy = parts.choices.entropy(distribution, imagined.actions)
    chosen = parts.choices.log_prob(distribution, imagined.actions)
    weight = targets.weight
    gain = chosen * targets.advantage
    if dreamed is not None:
        gain = _returns_through(parts, params["critic"], dreamed)
        gain = gain / jnp.maximum(1.0, stats.high - stats.low)
    actor_loss = -(weight * (gain + parts.config.entropy * entropy)).mean()
    critic_loss = (
        weight
        * (
            distributions.two_hot_loss(logits[:, :-1], targets.live, parts.bins)
            + distributions.two_hot_loss(logits[:, :-1], targets.slow, parts.bins)
        )
    ).mean()
    total = actor_loss + critic_loss
    values = {
        "loss": total,
        "actor_loss": actor_loss,
        "critic_loss": critic_loss,
        "entropy": entropy.mean(),
        "imagined_return": targets.live.mean(),
        "return_range": stats.high - stats.low,
    }
    metrics = {f"behaviour/{name}": (value, jnp.ones(())) for name, value in values.items()}
    return total, (targets, stats, metrics)


def loss_through(
    parts: Parts, state: LearnerState, key: Key, model: BoundModel, starts: Starts, params: PyTree
) -> tuple[Array, tuple[Targets, Stats, Metrics]]:
    """The loss of rollouts that are imagined with `params`, whose gradient flows through them.

    Into the model's own parameters and the starts it does not go on.
    """

    def loss_of(params):
        acted, dreamed = imagine(parts, state._replace(params=params), key, model, starts)
        stats, imagined = jax.lax.stop_gradient((acted.stats, dreamed))
        return loss_and_targets(parts, params, stats, imagined, dreamed)

    # What the model's functions hold is made an argument: nothing else could stop at it.
    pure, held = jax.closure_convert(loss_of, params)
    return pure(params, *jax.lax.stop_gradient(held))


def mask_before(parts: Parts, imagined: Imagined) -> Array | None:
    """What was allowed [M, H, A] where the actions of imagined rollouts were chosen; or None."""
    mask = mask_of(parts, imagined.prediction)
    return None if mask is None else mask[:, :-1]


def apply_gradients(
    parts: Parts, state: LearnerState, stats: Stats, grads: PyTree
) -> tuple[LearnerState, Array]:
    """One optimiser step, then the slow critic follows; with the norm [] of the gradients."""
    params, opt, norm = optim.apply_gradients(parts.optimiser, grads, state.opt, state.params)
    slow = optim.moving_average(stats.target_critic, params["critic"], parts.config.target_decay)
    return LearnerState(params, stats._replace(target_critic=slow), opt), norm


def update(
    parts: Parts,
    state: LearnerState,
    key: Key,
    model: BoundModel,
    starts: Starts,
    batch: PyTree,
    iteration: Array,
) -> tuple[LearnerState, Metrics]:
    """Imagine from M starts and take one optimiser step."""
    del batch, iteration  # imagined data only, no schedule
    if parts.config.gradient == "dynamics":
        through = functools.partial(loss_through, parts, state, key, model, starts)
        grads, (_, stats, metrics) = jax.grad(through, has_aux=True)(state.params)
    else:
        state, imagined = imagine(parts, state, key, model, starts)
        gradient = jax.value_and_grad(functools.partial(loss, parts), has_aux=True)
        (_, (stats, metrics)), grads = gradient(state.params, state.stats, imagined)
    state, norm = apply_gradients(parts, state, stats, grads)
    metrics["behaviour/gradient_norm"] = (norm, jnp.ones(()))
    return state, metrics
