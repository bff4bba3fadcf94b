"""What masks hide may be NaN or infinite: values and gradients are those of zeros there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import masks, optim, testing
from mbrl_jax.behaviours import actor_critic, ppo, sac
from mbrl_jax.behaviours.planning import plans
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DiscreteSpec,
    EnvSpec,
    Prediction,
    Starts,
    Transition,
)
from mbrl_jax.world_models import ensemble, rssm, tdmpc

pytestmark = pytest.mark.usefixtures("quick_compile")

BAD = (np.nan, np.inf, -np.inf)
ADAM = optim.Config("adam", 1e-3, warmup=0, eps=1e-8)


def assert_equal(actual, expected):
    """Leaves are finite, and equal bit for bit."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, e)


# ------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("bad", BAD)
def test_means_do_not_see_what_is_hidden(bad):
    x, mask = jnp.array([1.0, bad, 4.0]), jnp.array([True, False, True])
    weight = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    assert masks.masked_mean(x, mask) == 2.5
    assert masks.masked_mean(x, jnp.zeros(3, bool)) == 0.0
    np.testing.assert_array_equal(masks.weighted_mean(x[None], weight), [3.0, 0.0])
    np.testing.assert_array_equal(masks.weigh(x, weight[0]), [1.0, 0.0, 8.0])

    def loss(scale):
        return masks.masked_mean(scale * masks.clean(x, mask), mask)

    assert jax.grad(loss)(2.0) == 2.5


def test_clean_changes_what_is_hidden_and_not_finite_alone():
    x = np.array([[np.nan, 1.0], [np.inf, 2.0], [3.0, -0.0]], np.float32)
    shown = np.array([True, False, False])
    kept, counts = masks.clean((x, np.arange(3)), jnp.asarray(shown))
    np.testing.assert_array_equal(kept, [[np.nan, 1.0], [0.0, 2.0], [3.0, -0.0]])
    assert np.signbit(kept[2, 1])
    np.testing.assert_array_equal(counts, np.arange(3))


# ----------------------------------------------------------------------------------- world models

LENGTH = 6


def windows(spec, resets=((3,), (1, 5))):
    """Trajectories [B, L + 1]."""
    keys = jax.random.split(jax.random.key(1), len(resets))
    made = [
        testing.random_trajectory(spec, k, LENGTH + 1, r) for k, r in zip(keys, resets, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *made)


def filled(batch, value):
    """`value` where the time convention gives rows no meaning."""
    timestep = batch.timestep
    reward = jnp.where(timestep.is_first, value, timestep.reward)
    action = batch.action
    if jnp.issubdtype(action.dtype, jnp.floating):
        action = jnp.where(timestep.is_last[..., None], value, action)
    return batch._replace(timestep=timestep._replace(reward=reward), action=action)


def small(name, tiny_drama):
    encoder, decoder = encoders.Dense(width=8), decoders.Dense(width=8)
    return {
        "drama": lambda: tiny_drama,
        "ensemble": lambda: ensemble.Config(
            members=2, elites=1, layers=1, width=4, weight_decay=0.0
        ),
        "rssm": lambda: rssm.Config(
            *(8, 8, 3, 4),
            blocks=2,
            encoder=encoder,
            decoder=decoder,
            head_width=8,
            num_bins=9,
            optimiser=ADAM,
        ),
        "tdmpc": lambda: tdmpc.Config(
            latent=8, width=8, layers=0, encoder_width=8, num_bins=9, termination=True
        ),
    }[name]()


@pytest.mark.parametrize("name", ["drama", "ensemble", "rssm", "tdmpc"])
def test_rewards_of_first_rows_and_actions_of_last_ones_mean_nothing(name, tiny_drama):
    spec = EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(2))
    model, key = small(name, tiny_drama).make(spec), jax.random.key(0)
    state = jax.jit(model.init)(key)

    @jax.jit
    def learn(batch):
        loss = functools.partial(model.loss, stats=state.stats, key=key, batch=batch)
        (value, (_, stats, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return value, grads, stats, metrics

    batch = windows(spec)
    wanted = learn(filled(batch, 0.0))
    for bad in BAD[:2]:
        assert_equal(learn(filled(batch, bad)), wanted)


def test_a_merged_seam_shows_rewards_of_first_rows(tiny_drama):
    spec = EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2), seam="merged")
    model, key = tiny_drama.make(spec), jax.random.key(0)
    state = jax.jit(model.init)(key)
    loss = jax.jit(lambda batch: model.loss(state.params, state.stats, key, batch)[0])
    assert np.isnan(loss(filled(windows(spec), np.nan)))


def test_pairs_that_are_no_transition_are_clean():
    spec = EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(2))
    rows = jax.tree.map(lambda x: x[0], windows(spec))
    got, wanted = (jax.jit(transitions)(filled(rows, value)) for value in (np.nan, 0.0))
    assert_equal(got, wanted)


# -------------------------------------------------------------------------------------- behaviours


HORIZON = 4


def countdown(dead):
    """A model of latents (steps so far, a number): episodes end at HORIZON, and then all is `dead`.

    Dead latents stay as they are, and are all that is known there.
    """

    def imagine(key, latent, action):
        lives = latent[0] > 0
        following = jnp.where(lives, latent.at[0].add(1.0), latent)
        return jnp.where(lives & (following[0] > HORIZON), dead, following)

    def predict(latent):
        going_on = jnp.where(latent[0] > 0, latent[0] < HORIZON, latent.sum())
        return Prediction(latent.sum(), going_on, {})

    unused = None
    return BoundModel(
        initial_latent=lambda: jnp.zeros((2,)),
        observe=lambda key, latent, timestep, prev_action: timestep.observation,
        observe_sequence=unused,
        latent_at=unused,
        imagine=imagine,
        predict=predict,
        features=lambda latent: latent,
        decode=unused,
    )


@pytest.mark.parametrize(
    "module, action, settings",
    [
        (actor_critic, DiscreteSpec(3), {"normalise_input": True}),
        (actor_critic, BoundedSpec(2), {"ends": "threshold", "rewards": "shifted"}),
        (ppo, DiscreteSpec(3), {"normalise_input": True}),
    ],
)
def test_dead_steps_of_imagination_leave_no_trace(module, action, settings):
    sizes = {"actor_width": 4, "critic_width": 4, "layers": 1, "num_bins": 9, "output_gain": 1.0}
    config = module.Config(horizon=HORIZON + 2, optimiser=ADAM, **sizes, **settings)
    behaviour = config.make(EnvSpec(ArraySpec((2,), "float32"), action))
    state = jax.jit(behaviour.init)(jax.random.key(0), jnp.zeros((2,)))

    @jax.jit
    def update(dead):
        latent = jnp.array([[1.0, 0.5], [0.0, 0.0]]).at[1].set(dead)
        starts = Starts(latent, jnp.array([1.0, 0.0]))  # the second one is an end already
        learned, metrics = behaviour.update(
            state, jax.random.key(1), countdown(dead), starts, None, 0
        )
        # PPO reports them for all rows, with the actions there that were drawn from `dead`.
        for name in ("kl", "clipped"):
            metrics.pop(f"behaviour/{name}", None)
        return learned, metrics

    wanted = update(0.0)
    for bad in BAD[:2]:
        assert_equal(update(bad), wanted)


def test_plans_are_scored_without_what_lies_behind_their_end():
    def value(key, features):
        return features.sum(axis=-1)

    @jax.jit
    def score(dead):
        made = plans.scorer(BoundedSpec(1), countdown(dead), jnp.array([1.0, 0.5]), 0.9, value)
        total = lambda actions: made(jax.random.key(0), actions).sum()  # noqa: E731
        return jax.value_and_grad(total)(jnp.zeros((2, HORIZON + 2, 1)))

    assert_equal(score(jnp.nan), score(0.0))


def test_rows_that_are_not_valid_teach_sac_nothing():
    spec = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
    behaviour = sac.Config(layers=1, width=8).make(spec)
    state = jax.jit(behaviour.init)(jax.random.key(0), jnp.zeros((2,)))
    keys = jax.random.split(jax.random.key(1), 4)
    shape, valid = (2, 6), jnp.broadcast_to(jnp.arange(6) < 4, (2, 6)).astype(jnp.float32)
    observation, following = (jax.random.normal(k, (*shape, 2)) for k in keys[:2])
    action, reward = jax.random.normal(keys[2], (*shape, 1)), jax.random.normal(keys[3], shape)
    rows = Transition(observation, action, reward, following, jnp.ones(shape), valid)

    @jax.jit
    def update(value):
        def fill(x):
            return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)) > 0, x, value)

        batch = jax.tree.map(fill, rows)._replace(valid=valid)
        return behaviour.update(state, jax.random.key(2), countdown(0.0), None, batch, 0)

    wanted = update(0.0)
    for bad in BAD[:2]:
        assert_equal(update(bad), wanted)
