"""The JAX side of `published`: whole updates, and their parts as programs of their own."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax import distributions, optim, returns
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.imagination import imagine_rollout
from mbrl_jax.keys import named
from mbrl_jax.networks.heads import Mlp
from mbrl_jax.networks.norms import apply_with_stats
from mbrl_jax.types import (
    Array,
    ArraySpec,
    Behaviour,
    DiscreteSpec,
    EnvSpec,
    Key,
    LearnerState,
    PyTree,
    Starts,
    Step,
    Timestep,
    Trajectory,
    WorldModel,
    bind,
)
from mbrl_jax.world_models import drama

Parts = dict[str, tuple[Callable, tuple]]  # name -> (function, arguments)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is trained; published by default."""

    model: drama.Config = drama.Config()
    behaviour: actor_critic.Config = actor_critic.Config()
    windows: int = 16
    rows: int = 128  # of a window; the last serves as target only
    starts: int = 1024
    context: int = 8  # frames that the published code encodes for each start
    num_actions: int = 18

    @property
    def latent(self) -> int:
        """Z."""
        return self.model.groups * self.model.classes

    @property
    def spec(self) -> EnvSpec:
        """Atari's frames."""
        return EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(self.num_actions))


class Problem(NamedTuple):
    """Fresh learners and the data that both sides work on."""

    sizes: Sizes
    model: WorldModel
    behaviour: Behaviour
    model_state: LearnerState
    behaviour_state: LearnerState
    batch: Trajectory  # [B, L+1]
    starts: Starts  # [M]
    key: Array


def make_problem(sizes: Sizes) -> Problem:
    """Random windows without episode ends; starts behind random rows of the core."""
    keys = jax.random.split(jax.random.key(0), 8)
    model, behaviour = sizes.model.make(sizes.spec), sizes.behaviour.make(sizes.spec)
    shape = (sizes.windows, sizes.rows)
    never = jnp.zeros(shape, bool)
    timestep = Timestep(
        jax.random.randint(keys[0], (*shape, 64, 64, 3), 0, 256).astype(jnp.uint8),
        jax.random.normal(keys[1], shape),
        is_first=never,
        is_last=never,
        is_terminal=jax.random.uniform(keys[2], shape) < 0.01,
    )
    action = jax.random.randint(keys[3], shape, 0, sizes.num_actions)
    model_state = jax.jit(model.init)(keys[5])
    starts = jax.random.split(keys[4], sizes.starts)
    latent = jax.jit(jax.vmap(functools.partial(_start, sizes, model_state.params["core"])))(starts)
    feature_size = sizes.latent + sizes.model.core.width
    return Problem(
        sizes,
        model,
        behaviour,
        model_state,
        behaviour_state=jax.jit(behaviour.init)(keys[6], jnp.zeros(feature_size)),
        batch=Step(timestep, action),
        starts=Starts(latent, jnp.ones(sizes.starts)),
        key=keys[7],
    )


def _start(sizes: Sizes, params: PyTree, key: Key) -> drama.Latent:
    """A latent whose core has seen as many random rows as a context has."""
    inputs = sizes.latent + sizes.num_actions
    rows = jax.random.normal(named(key, "rows"), (sizes.context, inputs))
    core, never = sizes.model.core.make(inputs), jnp.zeros(sizes.context, bool)
    carry, outputs, _ = core.unroll(params, None, rows, never)
    return drama.Latent(carry, outputs[-1], jax.random.normal(named(key, "z"), (sizes.latent,)))


def updates(problem: Problem) -> Parts:
    """The two whole updates, as the agent calls them."""
    p = problem

    def behaviour_update(state, model_state, key, starts):
        model = bind(p.model, model_state)
        return p.behaviour.update(state, key, model, starts, None, jnp.zeros((), jnp.int32))

    arguments = (p.behaviour_state, p.model_state, p.key, p.starts)
    return {
        "world model": (p.model.update, (p.model_state, p.key, p.batch)),
        "behaviour": (behaviour_update, arguments),
    }


def _with_gradient(loss: Callable, *differentiated: int) -> Callable:
    return jax.value_and_grad(loss, argnums=differentiated or 0, has_aux=True)


def world_model_parts(problem: Problem) -> Parts:
    """Encoder, core, heads with losses, decoder (each forward and backward), optimiser."""
    config, state = problem.sizes.model, problem.model_state
    spec = problem.sizes.spec
    encoder, decoder = config.encoder.make(spec.observation), config.decoder.make(spec.observation)
    core = config.core.make(problem.sizes.latent + problem.sizes.num_actions)
    frames = problem.batch.timestep.observation
    shape = (problem.sizes.windows, problem.sizes.rows)
    optimiser = config.optimiser.make()

    def encoder_loss(params, stats, frames):
        images = frames.astype(jnp.float32) / 255.0
        encoded, stats = apply_with_stats(encoder, params, stats, images, True)
        return jnp.square(encoded).mean(), stats

    def decoder_loss(params, samples, stats, frames):
        raw, stats = apply_with_stats(decoder, params, stats, samples, True)
        error = jnp.square(jax.nn.sigmoid(raw) - frames.astype(jnp.float32) / 255.0)
        return error.sum((-3, -2, -1)).mean(), stats

    def core_loss(params, xs, is_first):
        unroll = functools.partial(core.unroll, params, None)
        _, outputs, entries = jax.vmap(unroll)(xs, is_first)
        return jnp.square(outputs).mean(), entries

    def random(*size):
        return jax.random.normal(problem.key, shape + size)

    encoded = jax.eval_shape(
        lambda: apply_with_stats(
            encoder, state.params["encoder"], state.stats["encoder"], frames.astype(float), False
        )[0]
    )
    xs = random(problem.sizes.latent + problem.sizes.num_actions)[:, :-1]
    is_first = problem.batch.timestep.is_first[:, :-1]
    heads = {name: state.params[name] for name in ("posterior", "prior", "reward", "termination")}
    head_arguments = (heads, random(encoded.shape[-1]), random(core.width)[:, :-1])
    return {
        "encoder": (
            _with_gradient(encoder_loss),
            (state.params["encoder"], state.stats["encoder"], frames),
        ),
        "core": (_with_gradient(core_loss, 0, 1), (state.params["core"], xs, is_first)),
        "heads and losses": (
            _with_gradient(_heads_loss(config), 0, 1, 2),
            (*head_arguments, problem.key, problem.batch),
        ),
        "decoder": (
            _with_gradient(decoder_loss, 0, 1),
            (state.params["decoder"], random(problem.sizes.latent), state.stats["decoder"], frames),
        ),
        "optimiser": (
            lambda grads, opt, params: optim.apply_gradients(optimiser, grads, opt, params),
            (state.params, state.opt, state.params),
        ),
    }


def _heads_loss(config: drama.Config) -> Callable:
    """Posterior and its samples, prior, reward and termination, with their losses."""
    dense = nn.Dense(config.groups * config.classes)
    prior = Mlp(config.groups * config.classes, config.head_width, config.prior_layers)
    reward = Mlp(config.num_bins, config.head_width, config.head_layers)
    termination = Mlp(1, config.head_width, config.head_layers)

    def log_probs(logits):
        logits = logits.reshape(*logits.shape[:-1], config.groups, config.classes)
        return distributions.unimix_log_probs(logits, config.unimix)

    def loss(params, encoded, outputs, key, batch):
        posterior = log_probs(dense.apply({"params": params["posterior"]["Dense_0"]}, encoded))
        samples = distributions.sample_one_hot(key, posterior)
        weight = 1.0 - batch.timestep.is_first[:, 1:].astype(jnp.float32)
        dynamics, representation, _ = distributions.kl_losses(
            posterior[:, 1:],
            log_probs(prior.apply({"params": params["prior"]}, outputs)),
            weight,
            config.free_nats,
        )
        rewards = reward.apply({"params": params["reward"]}, outputs)
        logit = termination.apply({"params": params["termination"]}, outputs)[..., 0]
        terminal = batch.timestep.is_terminal[:, 1:].astype(jnp.float32)
        terms = (
            distributions.two_hot_loss(rewards, batch.timestep.reward[:, 1:]).mean(),
            distributions.bernoulli_nll(logit, terminal).mean(),
            config.dynamics_scale * dynamics,
            config.representation_scale * representation,
            1e-3 * jnp.square(samples).mean(),  # a gradient for the samples, as the decoder's
        )
        return sum(terms), samples

    return loss


def behaviour_parts(problem: Problem) -> Parts:
    """Imagination, the actor's and the critics' learning, the optimiser."""
    config, state, sizes = problem.sizes.behaviour, problem.behaviour_state, problem.sizes
    actor = Mlp(sizes.num_actions, config.actor_width, config.layers)
    critic = Mlp(config.num_bins, config.critic_width, config.layers)
    optimiser = config.optimiser.make()

    def imagination(state, model_state, key, starts):
        model = bind(problem.model, model_state)

        def policy(key, carry, latent):
            return problem.behaviour.act(state, key, carry, latent, model, explore=True)

        def rollout(key, latent):
            extract = lambda latent: (model.features(latent), model.predict(latent))
            return imagine_rollout(model, policy, key, latent, config.horizon, extract)

        return jax.vmap(rollout)(jax.random.split(key, sizes.starts), starts.latent)

    def actor_loss(params, features, actions, advantage):
        log_probs = jax.nn.log_softmax(actor.apply({"params": params}, features[:, :-1]))
        entropy = distributions.categorical_entropy(log_probs)
        chosen = jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]
        return -(chosen * advantage + config.entropy * entropy).mean(), entropy

    def critic_loss(params, slow, features, reward, discount):
        logits = critic.apply({"params": params}, features)

        def targets(logits):
            values = distributions.two_hot_mean(logits)
            rows = (reward, config.gamma * discount, values[:, 1:], values[:, -1])
            found = jax.vmap(returns.lambda_return, (0, 0, 0, 0, None))(*rows, config.lambda_)
            return jax.lax.stop_gradient(found)

        live, slow_targets = targets(logits), targets(critic.apply({"params": slow}, features))
        loss = distributions.two_hot_loss(logits[:, :-1], live)
        loss += distributions.two_hot_loss(logits[:, :-1], slow_targets)
        return loss.mean(), returns.order_statistic(live, config.low_fraction)

    def optimise(grads, opt, params, slow):
        params, opt, norm = optim.apply_gradients(optimiser, grads, opt, params)
        return params, opt, norm, optim.moving_average(slow, params["critic"], config.target_decay)

    shape = (sizes.starts, config.horizon)
    features = jnp.zeros((sizes.starts, config.horizon + 1, sizes.latent + sizes.model.core.width))
    actions, numbers = jnp.zeros(shape, jnp.int32), jax.random.uniform(problem.key, shape)
    params, slow = state.params, state.stats.target_critic
    return {
        "imagination": (imagination, (state, problem.model_state, problem.key, problem.starts)),
        "actor": (_with_gradient(actor_loss), (params["actor"], features, actions, numbers)),
        "critic": (
            _with_gradient(critic_loss),
            (params["critic"], slow, features, numbers, numbers),
        ),
        "optimiser": (optimise, (params, state.opt, params, slow)),
    }
