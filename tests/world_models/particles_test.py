"""Particles of an ensemble (PETS), and what of the ensemble itself PETS needs.

Golden numbers: shared/specs/state_mbrl.md section 1, computed there in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.behaviours.planning import plans
from mbrl_jax.envs import rules
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec, LearnerState, Step, Timestep, bind
from mbrl_jax.world_models import ensemble, markov
from mbrl_jax.world_models.combinators import early_stopped, particles

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((1,), "float32"), BoundedSpec(1))
# Two members without a hidden layer, whose bounds on variances are far off.
LINEAR = ensemble.Config(
    members=2,
    elites=2,
    layers=0,
    weight_decay=0.0,
    learn_reward=False,
    max_log_variance=40.0,
    min_log_variance=-60.0,
)
CONFIG = particles.Config(LINEAR, "TSinf", 4, reward=f"{__name__}:position")


def position(observation, action, next_observation):
    """Where the particle came to."""
    del observation, action
    return next_observation[0]


def root(observation, action, next_observation):
    """No number below 0."""
    del observation, action
    return jnp.sqrt(next_observation[0])


def beyond(observation, action, next_observation):
    """Ends beyond 2."""
    del observation, action
    return next_observation[0] > 2.0


def _state(slopes, shifts, stds):
    """A state in which member e says Δ = slope · x + shift, with that deviation."""
    state = ensemble.make(LINEAR, SPEC).init(jax.random.key(0))
    kernel = jnp.zeros((2, 2, 2)).at[:, 0, 0].set(jnp.asarray(slopes))
    out = jnp.stack([jnp.asarray(shifts), 2.0 * jnp.log(jnp.asarray(stds))], axis=-1)
    layers = [{"kernel": kernel, "bias": out[:, None]}]
    return LearnerState({**state.params, "layers": layers}, state.stats, ())


def _rollout(config, state, length, start=0.0):
    """Latents [length] behind a row that was seen."""
    model = bind(config.make(SPEC), state)

    @jax.jit
    def run(key):
        no = jnp.zeros((), bool)
        row = Timestep(jnp.full((1,), start), jnp.zeros(()), ~no, no, no)
        latent = model.observe(key, model.initial_latent(), row, jnp.zeros(1))

        def body(latent, step_key):
            latent = model.imagine(step_key, latent, jnp.zeros(1))
            return latent, latent

        return jax.lax.scan(body, latent, jax.random.split(key, length))[1]

    return jax.device_get(run(jax.random.key(1)))


# ---------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize(
    ("order", "expected"),
    [([2, 0, 3, 1], [1.8, 4.2, 5.8, 8.6]), ([0, 1, 2, 3], [2.0, 3.7, 6.5, 8.4])],
    ids=["TS1", "TSinf"],
)
def test_particles_go_through_the_members_in_blocks(order, expected):
    noise = jnp.array([0.5, -0.5, 1.0, -1.0]).reshape(2, 2, 1)

    def step(blocks):
        slope, shift, std = (
            jnp.array(x)[:, None, None] for x in ([0.9, 1.1], [0.0, 0.1], [0.2, 0.1])
        )
        return blocks + slope * blocks + shift + std * noise

    rows = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    found = particles.in_blocks(step, 2, jnp.array(order), rows)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


def test_a_step_is_the_mixture_of_the_members():
    config = dataclasses.replace(CONFIG, particles=20_000)
    latent = _rollout(config, _state([0.9, 1.1], [0.0, 0.1], [0.2, 0.1]), 1, start=1.0)
    change = latent.observation[0, :, 0] - 1.0
    np.testing.assert_allclose(change.mean(), 1.05, atol=0.005)
    np.testing.assert_allclose(change.var(), 0.0475, rtol=0.03)


# ------------------------------------------------------------------------------------------ modes


def _steps(mode):
    """Which member moved each particle at each step [3, 20]: it goes on by 1, or by 100."""
    config = dataclasses.replace(CONFIG, mode=mode, particles=20)
    latent = _rollout(config, _state([0.0, 0.0], [1.0, 100.0], [1e-6, 1e-6]), 3)
    moved = np.diff(latent.observation[..., 0], axis=0, prepend=0.0)
    assert np.isin(moved.round(2), [1.0, 100.0]).all()
    return moved > 50


def test_a_particle_stays_with_its_member():
    moved = _steps("TSinf")
    np.testing.assert_array_equal(moved.sum(1), 10)
    assert (moved == moved[:1]).all()


def test_particles_change_members_and_each_member_moves_as_many():
    moved = _steps("TS1")
    np.testing.assert_array_equal(moved.sum(1), 10)
    assert not (moved == moved[:1]).all()


def test_what_is_expected_is_the_mean_of_all_means():
    config = dataclasses.replace(CONFIG, mode="E", particles=1)
    latent = _rollout(config, _state([0.0, 0.0], [1.0, 100.0], [5.0, 5.0]), 2)
    np.testing.assert_allclose(latent.observation[:, 0, 0], [50.5, 101.0], rtol=1e-5)


# --------------------------------------------------------------------------------- what it predicts


def test_the_reward_is_the_mean_over_particles():
    latent = _rollout(CONFIG, _state([0.0, 0.0], [1.0, 3.0], [1e-6, 1e-6]), 3)
    np.testing.assert_allclose(latent.reward, [2.0, 4.0, 6.0], rtol=1e-5)
    np.testing.assert_allclose(latent.discount, 1.0)


def test_a_sum_that_is_no_number_costs_a_million():
    config = dataclasses.replace(CONFIG, reward=f"{__name__}:root")
    latent = _rollout(config, _state([0.0, 0.0], [1.0, -1.0], [1e-6, 1e-6]), 3, start=2.5)
    # Two particles are at 3.5, 4.5, 5.5; two at 1.5, 0.5, -0.5, so that their sum is lost.
    whole = np.sqrt([3.5, 4.5, 5.5]).sum()
    np.testing.assert_allclose(latent.reward.sum(), (whole - 1e6) / 2.0, rtol=1e-5)
    assert np.isfinite(latent.reward).all()


def test_a_plan_scores_nothing_behind_the_end_of_a_particle():
    config = dataclasses.replace(CONFIG, ends=f"{__name__}:beyond")
    state = _state([0.0, 0.0], [0.9, 1.5], [1e-6, 1e-6])
    latent = _rollout(config, state, 5)
    # 0.9, 1.8, 2.7 and the end; 1.5, 3 and the end.
    expected = ((0.9 + 1.8 + 2.7) + (1.5 + 3.0)) / 2.0
    reached = np.concatenate([[1.0], np.cumprod(latent.discount)[:-1]])
    np.testing.assert_allclose((reached * latent.reward).sum(), expected, rtol=1e-5)
    model = bind(config.make(SPEC), state)
    no = jnp.zeros((), bool)
    row = Timestep(jnp.zeros(1), jnp.zeros(()), ~no, no, no)
    start = model.observe(jax.random.key(0), model.initial_latent(), row, jnp.zeros(1))
    score = jax.jit(plans.scorer(SPEC.action, model, start, 1.0))
    np.testing.assert_allclose(score(jax.random.key(0), jnp.zeros((2, 5, 1))), expected, rtol=1e-4)


# ------------------------------------------------------------------------------------------- laws


TINY = ensemble.Config(members=2, elites=1, layers=1, width=4, weight_decay=0.0)


@pytest.mark.parametrize(
    "config",
    [
        particles.Config(TINY, "TS1", 4),
        pytest.param(
            early_stopped.Config(
                particles.Config(dataclasses.replace(TINY, termination=True), "E", 1)
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["TS1", "stopped, E"],
)
def test_particles_keep_the_laws_of_world_models(config):
    testing.check_world_model(config, EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(1)), length=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": 5}, "multiple of the 2 members"),
        ({"mode": "E"}, "with mode=E all would be the same"),
        ({"reward": None}, "name the known one in reward"),
        ({"reward": "cartpole"}, "no known function"),
        ({"model": early_stopped.Config(LINEAR)}, "model.model=ensemble"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change).make(SPEC)


# ---------------------------------------------------------------------------------- the ensemble


@functools.cache
def _windows():
    """Two-row windows [64, 2] of (x, θ, x', θ')."""
    keys = jax.random.split(jax.random.key(0), 3)
    no = jnp.zeros((64, 2), bool)
    observation = jax.random.normal(keys[0], (64, 2, 4))
    action = jax.random.uniform(keys[1], (64, 2, 1), minval=-1.0)
    return Step(Timestep(observation, jnp.ones((64, 2)), no, no, no), action)


CART = EnvSpec(ArraySpec((4,), "float32"), BoundedSpec(1))
PLAIN = ensemble.Config(
    members=2,
    elites=2,
    layers=1,
    width=8,
    weight_decay=1e-2,
    bootstrap=False,
    learn_reward=False,
    deterministic=True,
    inputs="cartpole_swingup_inputs",
)


def test_deterministic_members_learn_half_of_squared_errors_of_their_inputs():
    model, batch = PLAIN.make(CART), _windows()
    state = jax.jit(model.init)(jax.random.key(3))
    found, (_, stats, metrics) = jax.jit(model.loss)(
        state.params, state.stats, jax.random.key(0), batch
    )
    before, after = np.asarray(batch.timestep.observation, np.float64).swapaxes(0, 1)
    x, angle, speed, spin = before.T
    read = np.stack([np.sin(angle), np.cos(angle), x, speed, spin], axis=1)
    np.testing.assert_allclose(stats.observation.mean, read.mean(0), atol=1e-6)
    inputs = np.concatenate([(read - read.mean(0)) / read.std(0), batch.action[:, 0]], axis=1)
    expected, (first, last) = 0.0, state.params["layers"]
    assert last["kernel"].shape == (2, 8, 4)  # means of four changes, and nothing else
    for member in range(2):
        raw = inputs @ np.asarray(first["kernel"][member]) + np.asarray(first["bias"][member])
        out = raw / (1.0 + np.exp(-raw)) @ np.asarray(last["kernel"][member])
        out += np.asarray(last["bias"][member])
        expected += 0.5 * np.square(out - (after - before)).mean()
        for layer in (first, last):
            expected += 0.5 * 1e-2 * np.square(np.asarray(layer["kernel"][member])).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert all(np.isfinite(total) for total, _ in metrics.values())
    features = model.features(state._replace(stats=stats), model.initial_latent())
    np.testing.assert_allclose(features.shape, (5,))


def test_imagined_rows_have_no_reward_and_no_noise():
    model = PLAIN.make(CART)
    state = jax.jit(model.init)(jax.random.key(3))
    latent = markov.Latent(jnp.ones(4), jnp.zeros(()), jnp.ones(()), {})
    imagine = jax.jit(jax.vmap(model.imagine, (None, 0, None, None)))
    found = imagine(state, jax.random.split(jax.random.key(0), 50), latent, jnp.zeros(1))
    assert (found.reward == 0).all()
    assert len(np.unique(np.asarray(found.observation[:, 0]).round(5))) == 2  # one a member


def test_bootstrap_sets_are_drawn_anew_after_their_period():
    rows = markov.flat_transitions(CART, _windows())
    config = dataclasses.replace(PLAIN, bootstrap=True, bootstrap_period=10)
    counts = jax.jit(functools.partial(ensemble.bag_counts, config, rows))
    first, same, other = (np.asarray(counts(jnp.float32(n))) for n in (0.0, 9.0, 10.0))
    np.testing.assert_array_equal(first, same)
    assert 0.3 < (first != other).mean() < 0.9
    forever = dataclasses.replace(config, bootstrap_period=0)
    late = jax.jit(functools.partial(ensemble.bag_counts, forever, rows))
    np.testing.assert_array_equal(late(jnp.float32(0.0)), late(jnp.float32(50.0)))


def test_unknown_rules_are_named():
    assert rules.find("never") is rules.never
    with pytest.raises(ValueError, match="name one of mbrl_jax.envs.rules"):
        dataclasses.replace(PLAIN, inputs="sines").make(CART).init(jax.random.key(0))
