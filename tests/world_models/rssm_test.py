"""DreamerV3's recurrent state-space model: laws, what each row trains, gradients, learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import optim, testing
from mbrl_jax.envs.spec import zero_action
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.types import BoundedSpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import rssm
from tests.world_models.followed import assert_followed, imagined

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = rssm.Config(
    deter=8,
    hidden=8,
    groups=3,
    classes=4,
    blocks=2,
    prior_layers=1,
    encoder=encoders.Dense(width=8),
    decoder=decoders.Dense(width=8),
    head_width=8,
    num_bins=9,
    free_nats=0.0,
    optimiser=optim.Config("adam", 1e-3, warmup=0, eps=1e-8),
)


def test_laws_with_bounded_actions(tiny_spec):
    testing.check_world_model(CONFIG, EnvSpec(tiny_spec.observation, BoundedSpec(2)))


# -------------------------------------------------------------------------------------------- loss

LENGTH = 6  # L; windows hold one row more
RESETS = ((3,), (LENGTH,), ())


@pytest.fixture(scope="module")
def system(tiny_spec):
    """(model, state, key, batch): three windows, the last of which begins amid an episode."""
    model, key = CONFIG.make(tiny_spec), jax.random.key(0)
    windows = [
        testing.random_trajectory(tiny_spec, jax.random.fold_in(key, i), LENGTH + 1, resets)
        for i, resets in enumerate(RESETS)
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *windows)
    timestep = batch.timestep
    timestep = timestep._replace(is_first=timestep.is_first.at[-1, 0].set(False))
    state = jax.jit(model.init)(key)
    # Heads that start at 0 would hide what depends on what.
    noise = lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape)  # noqa: E731
    state = state._replace(params=jax.tree.map(noise, state.params))
    return model, state, jax.random.key(7), batch._replace(timestep=timestep)


TERMS = ("reward", "termination", "kl")


@pytest.fixture(scope="module")
def changed(system, tiny_spec):
    """By `unled`: [B, L+1, 3] bool, whether a term changes with what is said of a row.

    Of each row reward and end change, and of the last rows of windows, which have no successors,
    the frame as well.
    """
    _, state, key, batch = system
    shape, t = batch.timestep.reward.shape, batch.timestep
    rows = jnp.eye(t.reward.size + 1, t.reward.size, -1, dtype=bool).reshape(-1, *shape)
    last = jnp.arange(shape[1]) == LENGTH

    def terms(model, row):
        other = t._replace(
            observation=jnp.where((row & last)[..., None], t.observation + 1.0, t.observation),
            reward=jnp.where(row, t.reward + 3.0, t.reward),
            is_terminal=t.is_terminal ^ row,
        )
        metrics = model.loss(state.params, state.stats, key, batch._replace(timestep=other))[1][2]
        return jnp.stack([metrics[f"model/{name}"][0] for name in TERMS])

    def differs(unled):
        model = dataclasses.replace(CONFIG, unled=unled).make(tiny_spec)
        values = np.asarray(jax.jit(jax.vmap(functools.partial(terms, model)))(rows))
        return (values[1:] != values[0]).reshape(*shape, len(TERMS))

    return {unled: differs(unled) for unled in ("masked", "counted")}


def test_masked_rewards_and_ends_are_those_of_rows_that_something_led_to(system, changed):
    led_to = ~np.asarray(system[3].timestep.is_first)
    led_to[:, 0] = False
    np.testing.assert_array_equal(changed["masked"][..., 0], led_to)
    np.testing.assert_array_equal(changed["masked"][..., 1], led_to)
    np.testing.assert_array_equal(changed["masked"][:, -1, 2], led_to[:, -1])


def test_counted_rows_are_all_rows(changed):
    assert changed["counted"][..., :2].all() and changed["counted"][:, -1, 2].all()


@pytest.fixture(scope="module")
def look(system):
    """Function (params) -> (entries, metrics) of the loss."""
    model, state, key, batch = system

    @jax.jit
    def run(params):
        entries, _, metrics = model.loss(params, state.stats, key, batch)[1]
        return entries, metrics

    return run


def test_latents_of_the_loss_are_those_of_observing_row_by_row(system, look):
    """A window amid an episode begins as an episode does: no action led to its first row."""
    model, state, key, batch = system
    begins = batch.timestep.is_first.at[:, 0].set(True)
    assert not batch.timestep.is_first[-1, 0]
    batch = batch._replace(timestep=batch.timestep._replace(is_first=begins))

    def observed(window_key, window):
        def body(loop, row):
            row_key, timestep, action = row
            latent = model.observe(state, row_key, loop[0], timestep, loop[1])
            return (latent, action), latent

        keys = jax.random.split(window_key, LENGTH + 1)
        start = model.initial_latent(), zero_action(DiscreteSpec(2))
        return jax.lax.scan(body, start, (keys, window.timestep, window.action))[1]

    expected = jax.jit(jax.vmap(observed))(jax.random.split(key, len(RESETS)), batch)
    expected = jax.tree.map(lambda x: x[:, :-1], expected)
    testing.assert_close(look(state.params)[0], expected, "L4 for the loss")


def _saturated(params, name, choice):
    """The head always says class `choice` of every group."""
    bias = jnp.tile(1e4 * jnp.eye(CONFIG.classes)[choice], CONFIG.groups)
    return params | {name: params[name] | {"Dense_1": params[name]["Dense_1"] | {"bias": bias}}}


def test_prior_and_posterior_both_keep_one_percent_for_chance(system, look):
    params = _saturated(_saturated(system[1].params, "prior", 0), "posterior", 1)
    metrics = look(params)[1]
    sure, other = 0.9925, 0.0025
    kl = CONFIG.groups * (sure - other) * np.log(sure / other)
    np.testing.assert_allclose(metrics["model/kl"][0], kl, rtol=1e-4)
    entropy = -CONFIG.groups * (sure * np.log(sure) + 3 * other * np.log(other))
    np.testing.assert_allclose(metrics["model/posterior_entropy"][0], entropy, rtol=1e-4)


def test_terms_add_up_with_the_published_scales(system, look):
    metrics = {name[6:]: float(value) for name, (value, _) in look(system[1].params)[1].items()}
    names = ("reconstruction", "reward", "termination", "dynamics", "representation")
    np.testing.assert_allclose(metrics["loss"], sum(metrics[name] for name in names), rtol=1e-6)
    np.testing.assert_allclose(metrics["dynamics"], metrics["kl"], rtol=1e-6)
    np.testing.assert_allclose(metrics["representation"], 0.1 * metrics["kl"], rtol=1e-6)


def test_a_first_row_forgets_state_sample_and_action_whatever_they_hold(system):
    model, state, key, batch = system
    row = jax.tree.map(lambda x: x[0, 0], batch.timestep)
    spoilt = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model.initial_latent())
    observe = jax.jit(lambda latent, action: model.observe(state, key, latent, row, action))
    fresh = observe(model.initial_latent(), jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, observe(spoilt, jnp.int32(1)), fresh)


def test_an_untrained_reward_is_exactly_zero(system):
    model, state, _, _ = system
    latent = jax.tree.map(lambda x: x + 0.3, model.initial_latent())
    predict = jax.jit(lambda params: model.predict(state._replace(params=params), latent).reward)
    untrained = jax.jit(model.init)(jax.random.key(3)).params
    assert predict(untrained) == 0.0 != predict(state.params)


# --------------------------------------------------------------------------------------- gradients


@pytest.fixture(scope="module")
def jacobian(system):
    """By part of the parameters: largest slopes [5] of four terms and of a later latent."""
    model, state, key, batch = system
    names = ("reconstruction", "reward", "termination", "dynamics")

    def terms(params):
        entries, _, metrics = model.loss(params, state.stats, key, batch)[1]
        latent = model.latent_at(jax.tree.map(lambda x: x[2], entries), LENGTH - 1)
        later = model.features(state._replace(params=params), latent) @ jnp.arange(20.0)
        return jnp.stack([*(metrics[f"model/{name}"][0] for name in names), later])

    found = jax.jit(jax.jacrev(terms))(state.params)
    largest = lambda x: np.abs(np.asarray(x)).reshape(5, -1).max(-1)  # noqa: E731
    return {
        name: functools.reduce(np.maximum, map(largest, jax.tree.leaves(tree)))
        for name, tree in found.items()
    }


@pytest.mark.parametrize("name", ["encoder", "gru", "posterior"])
def test_every_prediction_trains_what_makes_the_latent(jacobian, name):
    assert (jacobian[name] > 1e-5).all()


def test_the_prior_is_trained_by_the_dynamics_alone(jacobian):
    np.testing.assert_array_equal(jacobian["prior"] > 0, [False, False, False, True, False])


# ---------------------------------------------------------------------------------------- learning


def test_what_is_imagined_is_what_followed_the_action(tiny_spec):
    optimiser = optim.Config("adam", 2e-2, warmup=0, eps=1e-8)
    config = dataclasses.replace(CONFIG, reconstruction="bernoulli", optimiser=optimiser)
    assert_followed(imagined(config.make(tiny_spec)))


# --------------------------------------------------------------------------------------- the record


def test_equal_configs_give_the_same_record(tiny_spec):
    assert CONFIG.make(tiny_spec) is dataclasses.replace(CONFIG).make(tiny_spec)


def test_what_cannot_work_is_refused_with_the_way_out(tiny_spec):
    with pytest.raises(ValueError, match="seam=separate"):
        CONFIG.make(dataclasses.replace(tiny_spec, seam="merged"))
    with pytest.raises(ValueError, match="model.blocks=3"):
        dataclasses.replace(CONFIG, blocks=3).make(tiny_spec)
