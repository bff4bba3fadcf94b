"""The actor-critic whose gradient flows through the model: exact there, and it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mbrl_jax import optim
from mbrl_jax.behaviours import actor_critic, actors, dreamer, ppo
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DiscreteSpec,
    EnvSpec,
    Prediction,
    Starts,
    Step,
    Timestep,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((1,), "float32"), BoundedSpec(1))
CONFIG = actor_critic.Config(
    gradient="dynamics",
    horizon=3,
    actor_width=16,
    critic_width=16,
    layers=1,
    num_bins=63,
    gamma=0.9,
    entropy=0.0,
    output_gain=0.5,
    optimiser=optim.Config("adam", 1e-2, 100.0, warmup=0, eps=1e-8),
)
GOAL, STARTS, STEP = 0.6, 16, 2e-3


def _unused(*args):
    raise NotImplementedError


# A point on a line that half follows its action; what counts is to be near the goal.
MODEL = BoundModel(*(_unused for _ in BoundModel._fields))._replace(
    imagine=lambda key, x, action: 0.5 * x + 0.5 * action,
    predict=lambda x: Prediction(-jnp.square(x[0] - GOAL), jnp.ones(()), {}),
    features=lambda x: x,
)


def _starts(key):
    return Starts(jax.random.uniform(key, (STARTS, 1), minval=-1.0), jnp.ones(STARTS))


@pytest.mark.parametrize("real", ["bounded_normal", "tanh_normal"])
def test_the_gradient_is_that_of_the_returns(real):
    """By finite differences of what the actor gets for the same noise, the critic as it is."""
    config = dataclasses.replace(CONFIG, real_actions=real)
    behaviour = config.make(SPEC)
    parts = behaviour.update.args[0]
    state = jax.jit(behaviour.init)(jax.random.key(0), jnp.zeros(1))
    starts, key = _starts(jax.random.key(1)), jax.random.key(2)
    flat, unravel = ravel_pytree(state.params["actor"])

    def params(actor):
        return state.params | {"actor": unravel(actor)}

    @jax.jit
    def gained(actor):
        acting = state._replace(params=params(actor))
        _, dreamed = actors.imagine(parts, acting, key, MODEL, starts)
        # Where an action is clipped, returns have no slope while the gradient passes straight on.
        inside = jnp.abs(parts.choices.action(dreamed.actions)).max() < 1
        returns = actor_critic._returns_through(parts, state.params["critic"], dreamed)
        return -returns.mean(), inside

    @jax.jit
    def found(actor):
        through = functools.partial(actor_critic.loss_through, parts, state, key, MODEL, starts)
        return jax.grad(lambda actor: through(params(actor))[0])(actor)

    direction = np.asarray(jax.random.normal(jax.random.key(3), flat.shape))
    step = STEP * direction / np.linalg.norm(direction)
    (up, _), (down, _) = gained(flat + step), gained(flat - step)
    if real == "tanh_normal":
        assert gained(flat)[1]
        expected = float(up - down) / (2 * STEP)
        slope = float(found(flat) @ (step / STEP))
        assert slope == pytest.approx(expected, rel=0.02, abs=1e-5)
    else:
        # Straight through beyond the bounds: downhill all the same.
        downhill = -np.asarray(found(flat))
        assert gained(flat + 1e-2 * downhill / np.linalg.norm(downhill))[0] < gained(flat)[0]


def test_it_learns_what_to_do():
    behaviour = CONFIG.make(SPEC)

    @jax.jit
    def learn(key):
        def body(state, update_key):
            starts = _starts(update_key)
            return behaviour.update(state, update_key, MODEL, starts, None, 0)[0], None

        state = behaviour.init(key, jnp.zeros(1))
        state, _ = jax.lax.scan(body, state, jax.random.split(key, 400))
        act = functools.partial(behaviour.act, state, key, (), model=MODEL, explore=False)
        return jax.vmap(lambda x: act(latent=x)[1])(jnp.array([[-0.4], [0.2], [0.6]]))

    # One step from x the best action is 2 · goal - x, within its bounds.
    np.testing.assert_allclose(learn(jax.random.key(0))[:, 0], [1.0, 1.0, 0.6], atol=0.12)


@pytest.mark.parametrize("replay_scale", [0.0, 0.3])
def test_dreamers_gradient_is_that_of_the_returns_and_leaves_the_model_alone(replay_scale):
    """The actor's by finite differences; the model's is that of the replayed rows alone."""
    shared = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
    shared |= {"real_actions": "tanh_normal", "bins": "symlog"}
    config = dreamer.Config(**shared, replay_scale=replay_scale)
    behaviour = config.make(SPEC)
    parts, state = behaviour.apply.args[0], behaviour.init(jax.random.key(0), jnp.zeros(1))
    # Its critic begins at 0, where nothing flows.
    noise = lambda x: 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)  # noqa: E731
    state = state._replace(params=jax.tree.map(lambda x: x + noise(x), state.params))
    windows, length = 4, 5
    no, zero = jnp.zeros((windows, length), bool), jnp.zeros((windows, length))
    batch = Step(Timestep(zero[..., None], zero, no, no, no), zero[..., None])
    key = jax.random.key(2)
    places = jax.random.uniform(jax.random.key(1), (windows, length, 1), minval=-1.0)
    flat, unravel = ravel_pytree(state.params["actor"])

    def bound(push, scale):
        return MODEL._replace(
            imagine=lambda key, x, action: 0.5 * x + push * action,
            features=lambda x: scale * x,
            latent_at=lambda entries, t: entries[t],
        )

    def params(actor):
        return state.params | {"actor": unravel(actor)}

    @jax.jit
    def gained(actor):
        starts = Starts(places[:, :-1].reshape(-1, 1), jnp.ones(windows * (length - 1)))
        acting = state._replace(params=params(actor))
        _, dreamed = actors.imagine(parts, acting, key, bound(0.5, 1.0), starts)
        return -actor_critic._returns_through(parts, state.params["critic"], dreamed).mean()

    @jax.jit
    def found(actor):
        def loss(actor, push, scale, places):
            return dreamer.representation_loss(
                parts, params(actor), state.stats, key, bound(push, scale), places, batch
            )[0]

        return jax.grad(loss, (0, 1, 2, 3))(actor, 0.5, 1.0, places)

    direction = np.asarray(jax.random.normal(jax.random.key(3), flat.shape))
    step = STEP * direction / np.linalg.norm(direction)
    expected = float(gained(flat + step) - gained(flat - step)) / (2 * STEP)
    actor, push, scale, entries = found(flat)
    assert float(actor @ (step / STEP)) == pytest.approx(expected, rel=0.02, abs=1e-5)
    assert push == 0.0
    # Features of replayed rows are trained by the critic's loss on them, and by nothing else.
    assert bool(scale) == np.any(entries) == bool(replay_scale)


def test_discrete_actions_carry_no_gradient_and_neither_does_ppo():
    discrete = dataclasses.replace(SPEC, action=DiscreteSpec(2))
    for config in (CONFIG, dreamer.Config(gradient="dynamics")):
        with pytest.raises(ValueError, match="use behaviour.gradient=reinforce"):
            config.make(discrete)
    with pytest.raises(ValueError, match="ppo learns by the probability.*behaviour=actor_critic"):
        ppo.Config(gradient="dynamics").make(SPEC)
