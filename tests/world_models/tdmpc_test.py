"""TD-MPC2's world model: SimNorm, what is differentiated, seams inside windows, laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import optim, testing
from mbrl_jax.distributions import bernoulli_nll, two_hot_loss
from mbrl_jax.networks.norms import simnorm
from mbrl_jax.types import ArraySpec, BoundedSpec, DictSpec, EnvSpec
from mbrl_jax.world_models import tdmpc

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(1))
CONFIG = tdmpc.Config(latent=16, width=8, layers=0, encoder_width=8, num_bins=9, termination=True)
NETS = tdmpc.make_nets(CONFIG, SPEC.observation)
IMAGES = EnvSpec(ArraySpec((39, 39, 2), "uint8"), BoundedSpec(1))
LENGTH = 2
SEAM = 1  # row of the windows of `_windows` with which an episode begins


def _windows(key):
    """Two windows of three rows, the second of which crosses episodes."""
    make = functools.partial(testing.random_trajectory, SPEC, length=LENGTH + 1)
    pair = [make(jax.random.fold_in(key, i), resets=r) for i, r in enumerate(((), (SEAM,)))]
    return jax.tree.map(lambda *x: jnp.stack(x), *pair)


@functools.cache
def _state():
    """Parameters moved off their start: fresh reward heads say 0 of everything."""
    state = jax.jit(CONFIG.make(SPEC).init)(jax.random.key(0))
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape)  # noqa: E731
    return state._replace(params=jax.tree.map(noise, state.params))


@functools.cache
def _loss():
    """(params, batch) -> ((loss, aux), gradient)."""
    loss = CONFIG.make(SPEC).loss
    gradient = jax.value_and_grad(
        lambda p, batch: loss(p, (), jax.random.key(0), batch), has_aux=True
    )
    return jax.jit(gradient)


def test_the_laws_hold():
    testing.check_world_model(CONFIG, SPEC, length=4)


def test_the_laws_hold_of_images():
    """39 pixels a side leave one place of each channel."""
    config = dataclasses.replace(CONFIG, latent=8, channels=8, termination=False)
    testing.check_world_model(config, IMAGES, length=3)


def test_rows_of_a_window_are_moved_by_keys_of_their_own():
    config = dataclasses.replace(CONFIG, latent=8, channels=8)
    model = config.make(IMAGES)
    state = jax.jit(model.init)(jax.random.key(0))
    window = testing.random_trajectory(IMAGES, jax.random.key(1), length=3)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[0], x.shape), window)
    seen = model.observe_sequence(state, jax.random.key(2), None, None, same).z
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
    still = dataclasses.replace(config, shift=0).make(IMAGES)
    seen = still.observe_sequence(state, jax.random.key(2), None, None, same).z
    np.testing.assert_array_equal(seen[0], seen[2])


def test_a_latent_that_convolutions_do_not_fill_is_refused():
    images = EnvSpec(ArraySpec((64, 64, 9), "uint8"), BoundedSpec(1))
    with pytest.raises(ValueError, match="must be the 256 numbers that model.channels=16"):
        tdmpc.Config(channels=16).make(images)
    assert tdmpc.Config().make(images)  # as published: 32 channels, 512 numbers


def test_simnorm_is_a_softmax_of_each_group():
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    groups = np.exp(x).reshape(5, 3, 8)
    expected = (groups / groups.sum(-1, keepdims=True)).reshape(5, 24)
    np.testing.assert_allclose(simnorm(jnp.asarray(x), 8), expected, rtol=1e-5)


def _loss_by_hand(state, targets, params, rows):
    """Of one window [L + 1]: step by step, towards targets that are numbers."""
    model, state = CONFIG.make(SPEC), state._replace(params=params)
    first = jax.tree.map(lambda x: x[0], rows.timestep)
    latent = model.observe(state, None, None, first, None)
    total = 0.0
    for t in range(LENGTH):
        inputs = jnp.concatenate([latent.z, rows.action[t]])
        head = lambda name, x: NETS[name].apply({"params": params[name]}, x)  # noqa: E731
        latent = model.imagine(state, None, latent, rows.action[t])
        reward = two_hot_loss(head("reward", inputs), rows.timestep.reward[t + 1], limit=10.0)
        consistency = jnp.square(latent.z - targets[t + 1]).mean()
        total += 0.5**t * (20 * consistency + 0.1 * reward) / LENGTH
        logit = head("termination", latent.z)[0]
        total += bernoulli_nll(logit, rows.timestep.is_terminal[t + 1]) / LENGTH
    return total


def test_loss_and_gradient_are_those_by_hand_towards_fixed_targets():
    """The encoder is pulled at row 0 alone: what follows is a target and no more."""
    state, batch = _state(), jax.tree.map(lambda x: x[:1], _windows(jax.random.key(2)))
    rows = jax.tree.map(lambda x: x[0], batch)
    see = jax.jit(jax.vmap(CONFIG.make(SPEC).observe, (None, None, None, 0, None)))
    targets = see(state, None, None, rows.timestep, None).z
    by_hand = jax.jit(jax.value_and_grad(functools.partial(_loss_by_hand, state, targets)))
    expected, expected_gradient = by_hand(state.params, rows)
    (loss, (entries, _, _)), gradient = _loss()(state.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    testing.assert_close(gradient, expected_gradient, "gradient", 1e-4)
    assert abs(gradient["encoder"]["Dense_0"]["kernel"]).max() > 1e-4
    np.testing.assert_array_equal(entries.age[0], np.arange(LENGTH))


def test_nothing_is_trained_across_a_seam():
    state, batch = _state(), _windows(jax.random.key(2))
    (_, (entries, _, _)), before = _loss()(state.params, batch)
    # The action at the end of an episode leads nowhere, and a reset says nothing of rewards.
    action = batch.action.at[1, SEAM - 1].set(0.9)
    timestep = batch.timestep._replace(reward=batch.timestep.reward.at[1, SEAM].set(7.0))
    (_, (changed, _, _)), after = _loss()(
        state.params, batch._replace(action=action, timestep=timestep)
    )
    testing.assert_close(after, before, "gradients", 1e-6)
    np.testing.assert_array_equal(entries.z, changed.z)
    np.testing.assert_array_equal(entries.age, [[0, 1], [0, 0]])
    # The new episode begins with its own encoding, and does train.
    other = batch.timestep.observation.at[1, SEAM].add(1.0)
    timestep = batch.timestep._replace(observation=other)
    _, moved = _loss()(state.params, batch._replace(timestep=timestep))
    change = jax.tree.map(lambda a, b: abs(a - b).max(), moved, before)
    assert change["dynamics"]["Dense_0"]["kernel"] > 1e-5


def test_the_reward_rides_on_the_next_latent():
    model, state = CONFIG.make(SPEC), _state()
    row = jax.tree.map(lambda x: x[0, 1], _windows(jax.random.key(2)))
    seen = model.observe(state, None, None, row.timestep, None)
    assert model.predict(state, seen).reward == row.timestep.reward
    ahead = [
        model.predict(state, model.imagine(state, None, seen, jnp.array([a]))) for a in (-0.9, 0.9)
    ]
    assert abs(ahead[0].reward - ahead[1].reward) > 1e-3
    assert ahead[0].extras["age"] == 1.0 and 0.0 < ahead[0].discount < 1.0


def test_the_encoder_learns_at_a_share_of_the_rate():
    adam = optim.Config("adam", 1e-3, clip_norm=1e9, warmup=0, eps=1e-12)
    model = dataclasses.replace(CONFIG, optimiser=adam).make(SPEC)
    state = jax.jit(model.init)(jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, state.params)
    stepped, norm = jax.jit(model.apply)(state, ones, ())
    steps = jax.tree.map(lambda new, old: np.asarray(new - old), stepped.params, state.params)
    for name, rate in (("encoder", 3e-4), ("dynamics", 1e-3), ("reward", 1e-3)):
        for leaf in jax.tree.leaves(steps[name]):
            np.testing.assert_allclose(leaf, -rate, rtol=1e-3)
    size = sum(x.size for x in jax.tree.leaves(ones))
    np.testing.assert_allclose(norm, size**0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (dataclasses.replace(SPEC, seam="merged"), "seam=separate"),
        (
            dataclasses.replace(SPEC, observation=DictSpec((("x", SPEC.observation),))),
            "one array as observation",
        ),
    ],
)
def test_environments_that_do_not_fit_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        CONFIG.make(spec)


def test_a_latent_that_makes_no_groups_is_refused():
    with pytest.raises(ValueError, match="no multiple of group=8"):
        dataclasses.replace(CONFIG, latent=12).make(SPEC)
