"""Exact models of the probes and a learner in them: known values, known best actions."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import distributions
from mbrl_jax.envs import probe
from mbrl_jax.networks.heads import Mlp
from mbrl_jax.types import LearnerState, Prediction, Starts, WorldModel, bind

GAMMA = 0.9
UPDATES = 400
STARTS = 32
PROBES = ("constant", "observation", "delay", "action", "match")
ENVIRONMENTS = [probe.Config(name).make() for name in PROBES]
SPEC = ENVIRONMENTS[0].spec
# Where: index into the observations -1, 0 and 1 (the ones that the probe shows).
VALUES = [
    ("constant", 1, 1.0),
    ("observation", 0, -1.0),
    ("observation", 2, 1.0),
    ("delay", 1, GAMMA),
    ("delay", 2, 1.0),
    ("action", 1, 1.0),
    ("match", 0, 1.0),
    ("match", 2, 1.0),
]
BEST = [("action", 1, 1), ("match", 0, 0), ("match", 2, 1)]


def _imagine(state, key, latent, action):
    """A latent is (environment state, timestep); `state.params` says which probe it is."""
    steps = [environment.step for environment in ENVIRONMENTS]
    return jax.lax.switch(state.params, steps, latent[0], key, action)


def _predict(state, latent):
    del state
    timestep = latent[1]
    return Prediction(timestep.reward, 1.0 - timestep.is_terminal.astype(jnp.float32), {})


def _unused(*args):
    raise NotImplementedError


EXACT = WorldModel(*(_unused for _ in WorldModel._fields))._replace(
    imagine=_imagine, predict=_predict, features=lambda state, latent: latent[1].observation
)


def _train(config, updates, index):
    """(values, probability of action 1, greedy actions) at observations -1, 0 and 1."""
    model = bind(EXACT, LearnerState(index, (), ()))
    behaviour = config.make(SPEC)
    key = jax.random.key(0)
    resets = [environment.reset for environment in ENVIRONMENTS]

    def body(state, update_key):
        keys = jax.random.split(update_key, STARTS)
        latents = jax.vmap(lambda k: jax.lax.switch(index, resets, k))(keys)
        starts = Starts(latents, jnp.ones(STARTS))
        state, _ = behaviour.update(state, update_key, model, starts, None, 0)
        return state, None

    state = behaviour.init(key, jnp.zeros(1))
    state, _ = jax.lax.scan(body, state, jax.random.split(key, updates))
    seen = jnp.array([[-1.0], [0.0], [1.0]])
    values = distributions.two_hot_mean(critic(config).apply(variables(state, "critic"), seen))
    logits = actor(config).apply(variables(state, "actor"), seen)

    def greedy(observation):
        env, timestep = ENVIRONMENTS[0].reset(key)
        latent = env, timestep._replace(observation=observation)
        return behaviour.act(state, key, (), latent, model, explore=False)[1]

    return values, jax.nn.softmax(logits)[:, 1], jax.vmap(greedy)(seen)


def critic(config):
    """The critic's net."""
    return Mlp(config.num_bins, config.critic_width, config.layers)


def actor(config):
    """The actor's net."""
    return Mlp(SPEC.action.num_actions, config.actor_width, config.layers)


def variables(state, name):
    """Of one of the two nets."""
    return {"params": state.params[name]}


def learn(config, updates=UPDATES):
    """By probe: what `_train` gives; all of them in one program."""
    train = jax.jit(jax.vmap(lambda index: _train(config, updates, index)))
    outcomes = [np.asarray(x) for x in train(jnp.arange(len(PROBES)))]
    return {name: [x[i] for x in outcomes] for i, name in enumerate(PROBES)}


def first_update(config):
    """(state before, state after, metrics) of one update on the probe "match"."""
    behaviour = config.make(SPEC)
    model = bind(EXACT, LearnerState(PROBES.index("match"), (), ()))
    keys = jax.random.split(jax.random.key(1), STARTS)

    @jax.jit
    def run(key):
        state = behaviour.init(key, jnp.zeros(1))
        starts = Starts(jax.vmap(ENVIRONMENTS[-1].reset)(keys), jnp.ones(STARTS))
        return state, *behaviour.update(state, key, model, starts, None, 0)

    return run(jax.random.key(0))
