"""Soft actor-critic for bounded actions, on features of any world model.

Model-free in itself: it learns from transitions, real or imagined, that a replay such as
`mbrl_jax.replay.dyna` samples. Losses as in MBPO's code (½ on each critic, log α in the
temperature loss); gradient steps follow one another in a scan, and each takes one gradient of
the sum of the three losses, all at the parameters before the step.

With more critics it is SAC-N, and with `diversity` EDAC: the minimum over critics is low where
they differ, and so off the data, if their gradients by the action do not all point the same way.
(Of an action of one number that direction is a sign, and the term has no gradient: it is refused.)

References: Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905;
Janner et al. 2019 (MBPO), https://arxiv.org/abs/1906.08253;
An et al. 2021 (EDAC), https://arxiv.org/abs/2110.01548.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax

from mbrl_jax import masks
from mbrl_jax.behaviours import tanh_normal
from mbrl_jax.envs.spec import action_size, zero_action
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
    Timestep,
    Transition,
    bounded,
    cached_make,
    number,
)

ACTOR, CRITIC, OBSERVE, NEXT_OBSERVE, NOISE = range(5)  # purposes of keys
MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Soft actor-critic; the number of gradient steps is the leading axis of the batch."""

    layers: int = bounded(2, low=0)  # hidden layers of actor and critics
    width: int = bounded(256, low=1)
    gamma: float = number(0.99, low=0, high=1)
    actor_learning_rate: float = number(3e-4, low=0)
    critic_learning_rate: float = number(3e-4, low=0)
    temperature_learning_rate: float = number(3e-4, low=0)
    target_decay: float = number(
        0.005, "share of the critic that enters its target copy a step", low=0, high=1
    )
    # None: minus the size of the action
    target_entropy: float | None = bounded(None, low=-math.inf)
    init_temperature: float = number(1.0, above=0)
    learn_temperature: bool = True  # False: it stays at init_temperature
    critics: int = bounded(2, low=1)  # N, of which the minimum counts; SAC-N and EDAC: 10 to 500
    diversity: float = number(
        0.0, "η of EDAC, weight of what critics' action gradients share", low=0
    )

    def validate(self) -> None:
        """Raise ValueError for too few critics."""
        if self.diversifies and self.critics < 2:
            raise ValueError(f"critics={self.critics} is too few: diversity needs two")

    @property
    def diversifies(self) -> bool:
        """Whether the term is there at all; a traced number may be anything."""
        return not (isinstance(self.diversity, int | float) and self.diversity == 0)

    def make(self, spec: EnvSpec) -> Behaviour:
        """The record; see the module."""
        return make(self, spec)


class Rows(NamedTuple):
    """What gradient steps consume, with leading `[U]`; then, with leading `[B]`, one of them."""

    features: Array  # [F]
    action: Array  # [A]
    reward: Array  # []
    next_features: Array  # [F]
    discount: Array  # [] gamma not included
    valid: Array  # [] 0 or 1
    noise: Array  # [2, A] standard normal, for the next action and the actor's own


@cached_make
def make(config: Config, spec: EnvSpec) -> Behaviour:
    """Binds the functions of this file to a config and an environment."""
    if not isinstance(spec.action, BoundedSpec):
        raise ValueError(  # noqa: TRY004
            f"Soft actor-critic needs bounded real actions, not {spec.action}: use "
            "behaviour=actor_critic"
        )
    config.validate()
    is_set = isinstance(config.diversity, int | float) and config.diversity != 0
    if is_set and spec.action.size < 2:
        raise ValueError(
            "diversity turns the critics' gradients by the action, which of an action of one "
            "number have no direction but a sign: leave diversity=0 here"
        )
    return Behaviour(
        init=functools.partial(init, config, spec),
        initial_carry=tuple,
        act=act,
        update=functools.partial(update, config, spec),
        learns_from="transitions",
        reobserves=True,
    )


def init(config: Config, spec: EnvSpec, key: Key, features: Array) -> LearnerState:
    """Fresh networks for features like the example `[F]`.

    The actor's last layer is 0, so the untrained policy is tanh of N(0, 1) everywhere.
    """
    size, width = action_size(spec.action), features.shape[-1]
    hidden = [config.width] * config.layers
    actor = init_mlp(jax.random.fold_in(key, ACTOR), (width, *hidden, 2 * size))
    actor[-1] = jax.tree.map(jnp.zeros_like, actor[-1])
    widths, stack = (width + size, *hidden, 1), (config.critics,)
    critic = init_mlp(jax.random.fold_in(key, CRITIC), widths, stack)
    params = {
        "actor": actor,
        "critic": critic,
        "log_temperature": jnp.log(jnp.asarray(config.init_temperature, jnp.float32)),
    }
    target_critic = jax.tree.map(jnp.copy, critic)
    opt = {name: _optimisers(config)[name].init(value) for name, value in params.items()}
    return LearnerState(params, target_critic, opt)


def act(
    state: LearnerState, key: Key, carry: tuple, latent: PyTree, model: BoundModel, *, explore: bool
) -> tuple[tuple, Array]:
    """An action `[A]`: a sample, or tanh of the mean when not exploring. The key is consumed."""
    mean, log_std = actor(state.params["actor"], model.features(latent))
    if explore:
        return carry, tanh_normal.sample_and_log_prob(key, mean, log_std)[0]
    return carry, tanh_normal.mode(mean)


def update(
    config: Config,
    spec: EnvSpec,
    state: LearnerState,
    key: Key,
    model: BoundModel,
    starts: Starts,
    batch: Transition,
    iteration: Array,
) -> tuple[LearnerState, Metrics]:
    """`U` gradient steps on a batch with leading `[U, B]`; rows that are not valid count 0."""
    del starts, iteration
    chex.assert_rank(batch.reward, 2)
    chex.assert_tree_shape_prefix(batch, batch.reward.shape)
    batch = masks.clean(batch, batch.valid)
    embed = functools.partial(observation_features, model, spec)
    noise = jax.random.normal(
        jax.random.fold_in(key, NOISE), (*batch.reward.shape, 2, action_size(spec.action))
    )
    rows = Rows(
        features=embed(jax.random.fold_in(key, OBSERVE), batch.observation),
        action=batch.action,
        reward=batch.reward,
        next_features=embed(jax.random.fold_in(key, NEXT_OBSERVE), batch.next_observation),
        discount=batch.discount,
        valid=batch.valid,
        noise=noise,
    )
    step = functools.partial(gradient_step, config, spec)
    state, metrics = jax.lax.scan(step, state, rows)
    count = jnp.asarray(batch.reward.shape[0], jnp.float32)
    return state, {name: (jnp.sum(value), count) for name, value in metrics.items()}


def observation_features(model: BoundModel, spec: EnvSpec, key: Key, observation: PyTree) -> Array:
    """Features `[U, B, F]` of observations `[U, B, …]`, each seen as the first of an episode."""
    lead = jax.tree.leaves(observation)[0].shape[:2]
    action = zero_action(spec.action)

    def single(key, observation):
        row: dict[str, Any] = {"reward": 0.0, "is_first": True}
        row |= {"is_last": False, "is_terminal": False}
        timestep = Timestep(observation, **row)
        latent = model.observe(key, model.initial_latent(), timestep, action)
        return model.features(latent)

    return jax.vmap(jax.vmap(single))(jax.random.split(key, lead), observation)


def gradient_step(
    config: Config, spec: EnvSpec, state: LearnerState, rows: Rows
) -> tuple[LearnerState, dict[str, Array]]:
    """One step of all three losses on `[B]` rows, then of the target critic."""
    gradient, metrics = jax.grad(functools.partial(loss, config, spec), has_aux=True)(
        state.params, state.stats, rows
    )
    params, opt = {}, {}
    for name, optimiser in _optimisers(config).items():
        change, opt[name] = optimiser.update(gradient[name], state.opt[name])
        params[name] = optax.apply_updates(state.params[name], change)
    target_critic = optax.incremental_update(params["critic"], state.stats, config.target_decay)
    return LearnerState(params, target_critic, opt), metrics


def loss(
    config: Config, spec: EnvSpec, params: PyTree, target_params: PyTree, rows: Rows
) -> tuple[Array, dict[str, Array]]:
    """Sum of the three losses `[]`; gradients of one never reach the parameters of another."""
    frozen, valid = jax.lax.stop_gradient(params), rows.valid > 0
    temperature = jnp.exp(frozen["log_temperature"])
    next_action, next_log_prob = _sample(frozen["actor"], rows.next_features, rows.noise[:, 0])
    next_value = jnp.min(critic(target_params, rows.next_features, next_action), axis=0)
    target = soft_target(
        rows.reward, config.gamma * rows.discount, next_value, next_log_prob, temperature
    )
    values = critic(params["critic"], rows.features, rows.action)  # [N, B]
    action, log_prob = _sample(params["actor"], rows.features, rows.noise[:, 1])
    value = jnp.min(critic(frozen["critic"], rows.features, action), axis=0)
    entropy = -masks.masked_mean(jax.lax.stop_gradient(log_prob), valid)
    wanted = (
        -float(action_size(spec.action)) if config.target_entropy is None else config.target_entropy
    )
    losses = {
        "critic_loss": jnp.sum(jax.vmap(critic_loss, (0, None, None))(values, target, rows.valid)),
        "actor_loss": masks.masked_mean(temperature * log_prob - value, valid),
        "temperature_loss": temperature_loss(params["log_temperature"], entropy, wanted),
    }
    if not config.learn_temperature:
        losses["temperature_loss"] = jnp.zeros(())
    metrics = {
        "critic_loss": losses["critic_loss"],
        "value": masks.masked_mean(value, valid),
        "entropy": entropy,
        "temperature": temperature,
        "valid_rows": jnp.mean(rows.valid),
    }
    if config.diversifies:
        metrics["alignment"] = alignment(params["critic"], rows)
        # ½ as on the critics, so that η means what it does in the published sum of squares.
        losses["diversity_loss"] = 0.5 * config.diversity * metrics["alignment"]
    return cast(Array, sum(losses.values())), {
        f"behaviour/{name}": x for name, x in metrics.items()
    }


def soft_target(
    reward: Array, discount: Array, next_value: Array, next_log_prob: Array, temperature: Array
) -> Array:
    """`y = r + γ (min Q'(s', a') - α log π(a'|s'))`; gamma is part of `discount`; elementwise."""
    return reward + discount * (next_value - temperature * next_log_prob)


def critic_loss(value: Array, target: Array, valid: Array) -> Array:
    """`½ mean (Q - y)²` over the valid rows of `[B]`."""
    return 0.5 * masks.masked_mean(jnp.square(value - target), valid > 0)


def alignment(critic_params: PyTree, rows: Rows) -> Array:
    """What the critics' gradients by the action share, `[]` (EDAC, equation 5 and algorithm 1):

    mean_b Σ_{i≠j} <g_i, g_j> / (N - 1),   g_i = ∇_a Q_i(s, a) / ‖∇_a Q_i(s, a)‖
    """
    total = lambda member, action: jnp.sum(critic(member, rows.features, action))  # noqa: E731
    gradient = jax.vmap(jax.grad(total, 1), (0, None))(critic_params, rows.action)  # [N, B, A]
    return masks.masked_mean(shared_direction(gradient), rows.valid > 0) / (gradient.shape[0] - 1)


def shared_direction(gradient: Array) -> Array:
    """`Σ_{i≠j} <g_i, g_j>` of gradients `[N, B, A]` scaled to length 1, `[B]`.

    One that is exactly 0 has no direction and counts 0.
    """
    square = jnp.sum(jnp.square(gradient), axis=-1, keepdims=True)
    some = square > 0
    unit = jnp.where(some, gradient / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
    return jnp.sum(jnp.square(unit.sum(0)), axis=-1) - jnp.sum(jnp.square(unit), axis=(0, 2))


def temperature_loss(log_temperature: Array, entropy: Array, target_entropy: float) -> Array:
    """`-log α (E log π + H̄)`: α grows while the entropy lies below `H̄`."""
    return log_temperature * (entropy - target_entropy)


def actor(params: PyTree, features: Array) -> tuple[Array, Array]:
    """Mean and log of the deviation before tanh, `[…, A]` each."""
    mean, log_std = jnp.split(mlp(params, features), 2, axis=-1)
    return mean, jnp.clip(log_std, MIN_LOG_STD, MAX_LOG_STD)


def critic(params: PyTree, features: Array, action: Array) -> Array:
    """All critics as one batched product per layer: `[B, F]`, `[B, A]` to values `[N, B]`."""
    return mlp(params, jnp.concatenate([features, action], axis=-1))[..., 0]


def init_mlp(key: Key, widths: tuple[int, ...], stack: tuple[int, ...] = ()) -> list:
    """Layers of an MLP, or of a stack of them: kernels `[*stack, in, out]`, biases 0."""
    layers = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        limit = math.sqrt(6.0 / (fan_in + fan_out))  # Glorot and Bengio 2010
        shape = (*stack, fan_in, fan_out)
        kernel = jax.random.uniform(
            jax.random.fold_in(key, index), shape, minval=-limit, maxval=limit
        )
        layers.append(
            {"kernel": kernel, "bias": jnp.zeros((*stack, 1, fan_out) if stack else fan_out)}
        )
    return layers


def mlp(params: list, x: Array) -> Array:
    """ReLU network; rows `[B, in]` or one `[in]`; a stack of networks sees the same rows."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def _sample(params: PyTree, features: Array, noise: Array) -> tuple[Array, Array]:
    """Actions `[B, A]` and log-densities `[B]` made from noise `[B, A]`."""
    return jax.vmap(tanh_normal.squash)(*actor(params, features), noise)


def _optimisers(config: Config) -> dict[str, optax.GradientTransformation]:
    """One Adam per part, by the name of its parameters."""
    return {
        "actor": optax.adam(config.actor_learning_rate),
        "critic": optax.adam(config.critic_learning_rate),
        "log_temperature": optax.adam(config.temperature_learning_rate),
    }
