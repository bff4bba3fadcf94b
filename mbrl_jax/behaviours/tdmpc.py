"""TD-MPC2's behaviour (arXiv 2310.16828): plan with MPPI, and with critics at the plan's end.

Critics, an ensemble of two-hot Q(z, a), train through the open-loop latents of the world model and
shape them (`representation_loss`, with agent=joint). Their targets

  y = r + γ d · min of 2 random target critics at (h(o'), π(h(o')))

start from the encoding of the row that really followed. The policy proposes plans and ends them; it
trains apart, on the rolled latents without their gradient (`update`):

  max  mean of 2 random Q(z, π(z)) / S + η · entropy,   S: running P95 - P5 of Q, at least 1

Differences from the published code: the policy sees the L rolled rows of a window and not the one
behind them, its Q range S comes from all of these rows and not the encoded ones alone, and dropout
acts in the critics' loss alone. Predicted ends weigh by their probability, where the code rounds.

Reference: Hansen, Su & Wang 2024, https://arxiv.org/abs/2310.16828
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mbrl_jax import distributions, masks, optim
from mbrl_jax.acting import observe_from_nothing
from mbrl_jax.behaviours import critics, tanh_normal
from mbrl_jax.behaviours.critics import Critics
from mbrl_jax.behaviours.planning import mppi, plans
from mbrl_jax.behaviours.planning.plans import Planner
from mbrl_jax.envs.spec import action_size
from mbrl_jax.keys import named
from mbrl_jax.networks.norms import NormedMlp
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import (
    Array,
    Behaviour,
    BoundedSpec,
    BoundModel,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Starts,
    Trajectory,
    bounded,
    cached_make,
    number,
    part,
    switch,
)

LOG_STD_RANGE = -10.0, 2.0


def discount_for(
    episode_length: int, denominator: float = 5.0, low: float = 0.95, high: float = 0.995
) -> float:
    """γ for episodes of so many environment steps: (L/5 - 1) / (L/5), within its bounds."""
    share = episode_length / denominator
    return min(max((share - 1.0) / share, low), high)


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes and numbers by default."""

    plan: bool = True  # False: the policy acts alone
    planner: Any = part("mbrl_jax.behaviours.planning", mppi.Config())
    num_critics: int = bounded(5, low=2)
    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=0)
    num_bins: int = bounded(101, low=2)
    bin_limit: float = number(10.0, "symlog of the largest value that bins reach", above=0)
    dropout: float = bounded(0.01, low=0, below=1)  # behind the first linear layer of a critic
    gamma: float = number(0.99, "`discount_for` gives the published one", low=0, high=1)
    rho: float = number(
        0.5, "weight of a row for each row since its latent was encoded", low=0, high=1
    )
    value_scale: float = number(0.1, low=0)
    entropy: float = number(1e-4, low=0)
    target_decay: float = number(
        0.01, "share of the critics that enters their targets", low=0, high=1
    )
    range_decay: float = number(
        0.01, "share of the batch that enters the range of Q", low=0, high=1
    )
    entropy_of: Literal["action", "normal"] = switch(
        "action",
        published="normal",
        better="action",
        why="entropy of the action, or of the normal before tanh, which grows with the deviation "
        "for ever (in the published code the correction for tanh cancels)",
    )
    greedy: Literal["mean", "elite"] = switch(
        "mean",
        published="elite",
        better="mean",
        why="what a planner that is judged does: its own choice, which is the mean of MPPI's "
        "elites, or an elite that is drawn",
    )
    optimiser: optim.Config = optim.Config("adam", 3e-4, clip_norm=20.0, warmup=0, eps=1e-8)
    policy_optimiser: optim.Config = optim.Config("adam", 3e-4, clip_norm=20.0, warmup=0, eps=1e-5)

    def make(self, spec: EnvSpec) -> Behaviour:
        """The record; see the module."""
        return make(self, spec)


class Stats(NamedTuple):
    """What learning changes without a gradient."""

    target_critics: PyTree
    q_range: Array  # [] at least 1


class Parts(NamedTuple):
    """Static pieces."""

    config: Config
    spec: EnvSpec
    planner: Planner
    critics: Critics
    policy: nn.Module
    optimisers: dict[str, optax.GradientTransformation]  # by the names of the parameters


@cached_make
def make(config: Config, spec: EnvSpec) -> Behaviour:
    """Bind the functions of this module; raises ValueError where actions are not bounded."""
    parts = make_parts(config, spec)
    functions = (init, act, update, representation_loss, apply)
    bound: dict[str, Any] = {f.__name__: functools.partial(f, parts) for f in functions}
    dream = functools.partial(act_alone, parts)
    carry = parts.planner.initial
    return Behaviour(**bound, initial_carry=carry, dream=dream, learns_from="entries")


def make_parts(config: Config, spec: EnvSpec) -> Parts:
    """Nets and optimisers; raises ValueError as `make` does."""
    if not isinstance(spec.action, BoundedSpec):
        raise ValueError(  # noqa: TRY004
            f"behaviour=tdmpc needs bounded real actions, not {spec.action}: use "
            "behaviour=planning or behaviour=actor_critic"
        )
    mlp = functools.partial(NormedMlp, width=config.width, layers=config.layers)
    critic = mlp(config.num_bins, zero_output=True, dropout=config.dropout)
    rules = {"critics": config.optimiser, "policy": config.policy_optimiser}
    return Parts(
        config,
        spec,
        config.planner.make(spec.action.size),
        Critics(critic, config.num_critics, config.bin_limit),
        mlp(2 * spec.action.size),
        {name: rule.make() for name, rule in rules.items()},
    )


def init(parts: Parts, key: Key, features: Array) -> LearnerState:
    """Fresh critics and policy for features [F]; at first every Q is 0."""
    both = jnp.concatenate([features, jnp.zeros((action_size(parts.spec.action),))])
    params = {
        "critics": critics.init(parts.critics, named(key, "critics"), both),
        "policy": parts.policy.init(named(key, "policy"), features)["params"],
    }
    opt = {name: rule.init(params[name]) for name, rule in parts.optimisers.items()}
    stats = Stats(jax.tree.map(jnp.copy, params["critics"]), jnp.ones(()))
    return LearnerState(params, stats, opt)


# ------------------------------------------------------------------------------------------ nets


def policy(parts: Parts, params: PyTree, features: Array) -> tuple[Array, Array]:
    """Mean and log of the deviation before tanh, [..., A] each, for features [..., F]."""
    return tanh_normal.read(parts.policy.apply({"params": params}, features), *LOG_STD_RANGE)


def sample_policy(parts: Parts, params: PyTree, key: Key, features: Array) -> tuple[Array, Array]:
    """Actions [..., A] of features [..., F], and the entropy [...] that each is a sample of.

    The entropy is multiplied by A, as published.
    """
    mean, log_std = policy(parts, params, features)
    noise = jax.random.normal(key, mean.shape)
    action, log_prob = jnp.vectorize(tanh_normal.squash, signature="(a),(a),(a)->(a),()")(
        mean, log_std, noise
    )
    if parts.config.entropy_of == "normal":
        log_prob = (jax.scipy.stats.norm.logpdf(noise) - log_std).sum(axis=-1)
    return action, -action_size(parts.spec.action) * log_prob


# ---------------------------------------------------------------------------------------- acting


def act(
    parts: Parts,
    state: LearnerState,
    key: Key,
    carry: Array,
    latent: PyTree,
    model: BoundModel,
    *,
    explore: bool,
) -> tuple[Array, Array]:
    """Plan from the carried mean and take the first action [A] of the plan."""
    config = parts.config
    if not config.plan:
        return act_alone(parts, state, key, carry, latent, model, explore=explore)

    policy = functools.partial(act_alone, parts, state, model=model, explore=True)
    proposals = plans.proposed(parts.planner, policy, model, latent, named(key, "proposals"))
    bootstrap = functools.partial(end_value, parts, state)
    score = plans.scorer(parts.spec.action, model, latent, config.gamma, bootstrap)
    found = parts.planner.plan(named(key, "plan"), carry, score, proposals)
    choose = parts.planner.explore if explore else parts.planner.action
    if not explore and config.greedy == "elite":
        choose = functools.partial(plans.drawn_action, noise=0.0)
    return parts.planner.shifted(named(key, "shift"), found), choose(named(key, "action"), found)


def act_alone(
    parts: Parts,
    state: LearnerState,
    key: Key,
    carry: PyTree,
    latent: PyTree,
    model: BoundModel,
    *,
    explore: bool,
) -> tuple[PyTree, Array]:
    """The policy's own action [A]: a sample, or tanh of the mean when not exploring."""
    mean, log_std = policy(parts, state.params["policy"], model.features(latent))
    if not explore:
        return carry, tanh_normal.mode(mean)
    return carry, tanh_normal.sample_and_log_prob(key, mean, log_std)[0]


def end_value(parts: Parts, state: LearnerState, key: Key, features: Array) -> Array:
    """What two critics expect [N] behind the ends of plans, features [N, F]."""
    action, _ = sample_policy(parts, state.params["policy"], named(key, "policy"), features)
    params, draw = state.params["critics"], named(key, "critics")
    return critics.two_values(parts.critics, params, draw, features, action).mean(axis=0)


# -------------------------------------------------------------------------------------- learning


def representation_loss(
    parts: Parts,
    params: PyTree,
    stats: Stats,
    key: Key,
    model: BoundModel,
    entries: PyTree,
    batch: Trajectory,
) -> tuple[Array, tuple[Stats, Metrics]]:
    """The critics' loss [] on the rows [B, L] of `entries`, whose gradient reaches the model."""
    config, rows = parts.config, jax.vmap(transitions)(batch)
    windows, length = rows.reward.shape
    latents = latents_of(model, entries, jnp.arange(length))
    prediction = jax.vmap(jax.vmap(model.predict))(latents)
    features = jax.vmap(jax.vmap(model.features))(latents)

    observe = functools.partial(observe_from_nothing, parts.spec, model)
    seen = jax.vmap(observe)(jax.random.split(named(key, "observe"), windows), batch)
    following = latents_of(model, seen, jnp.arange(1, length + 1))
    following = jax.lax.stop_gradient(jax.vmap(jax.vmap(model.features))(following))
    action, _ = sample_policy(parts, params["policy"], named(key, "policy"), following)
    value = critics.two_values(
        parts.critics, stats.target_critics, named(key, "targets"), following, action
    )
    target = rows.reward + config.gamma * rows.discount * value.min(axis=0)
    target = jax.lax.stop_gradient(target)

    logits = critics.logits(
        parts.critics, params["critics"], features, rows.action, named(key, "dropout")
    )
    per_row = distributions.two_hot_loss(logits, target, limit=config.bin_limit).mean(axis=0)
    weight = row_weight(parts, prediction.extras, rows.valid) / length
    loss = jnp.where(rows.valid > 0, weight * per_row, 0.0).sum(axis=1).mean()
    values = {"critic_loss": loss, "target": target.mean()}
    metrics = {f"behaviour/{name}": (value, jnp.ones(())) for name, value in values.items()}
    return config.value_scale * loss, (stats, metrics)


def latents_of(model: BoundModel, entries: PyTree, rows: Array) -> PyTree:
    """Latents [B, T] of `rows` [T] of entries [B]."""
    return jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None))(entries, rows)


def row_weight(parts: Parts, extras: dict[str, Array], like: Array) -> Array:
    """ρ for each row since a latent was encoded; 1 where the world model does not say."""
    return jax.lax.stop_gradient(parts.config.rho ** extras.get("age", jnp.zeros_like(like)))


def apply(
    parts: Parts, state: LearnerState, grads: PyTree, stats: Stats
) -> tuple[LearnerState, Array]:
    """One step of the critics, then of their targets; the policy has its own `update`."""
    params, opt, norm = optim.apply_gradients(
        parts.optimisers["critics"], grads["critics"], state.opt["critics"], state.params["critics"]
    )
    target = optim.moving_average(stats.target_critics, params, parts.config.target_decay)
    params, opt = state.params | {"critics": params}, state.opt | {"critics": opt}
    return LearnerState(params, stats._replace(target_critics=target), opt), norm


def update(
    parts: Parts,
    state: LearnerState,
    key: Key,
    model: BoundModel,
    starts: Starts,
    batch: Trajectory,
    iteration: Array,
) -> tuple[LearnerState, Metrics]:
    """One step of the policy on M latents."""
    del batch, iteration
    config, stats = parts.config, state.stats
    features = jax.lax.stop_gradient(jax.vmap(model.features)(starts.latent))
    features = masks.clean(features, starts.weight)
    extras = jax.vmap(model.predict)(starts.latent).extras
    weight = starts.weight * row_weight(parts, extras, starts.weight)

    def loss(params):
        action, entropy = sample_policy(parts, params, named(key, "policy"), features)
        draw = named(key, "critics")
        q = critics.two_values(parts.critics, state.params["critics"], draw, features, action)
        q = q.mean(axis=0)
        low, high = jax.lax.stop_gradient(jnp.percentile(q, jnp.array([5.0, 95.0])))
        spread = jnp.maximum(high - low, 1.0)
        wide = optim.moving_average(stats.q_range, spread, config.range_decay)
        total = -(weight * (q / wide + config.entropy * entropy)).mean()
        values = {"policy_loss": total, "value": q.mean(), "entropy": entropy.mean()}
        return total, (wide, values | {"q_range": wide})

    grads, (wide, values) = jax.grad(loss, has_aux=True)(state.params["policy"])
    params, opt, norm = optim.apply_gradients(
        parts.optimisers["policy"], grads, state.opt["policy"], state.params["policy"]
    )
    values["policy_gradient_norm"] = norm
    metrics = {f"behaviour/{name}": (value, jnp.ones(())) for name, value in values.items()}
    return LearnerState(
        state.params | {"policy": params},
        stats._replace(q_range=wide),
        state.opt | {"policy": opt},
    ), metrics
