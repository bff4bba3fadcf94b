"""Planners: golden numbers, the true Pendulum, ends, discrete actions, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.behaviours import planning
from mbrl_jax.behaviours.planning import cem, gradient, icem, mppi, plans, shooting
from mbrl_jax.envs.spec import action_of_vector, action_size, action_vector, random_action
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DiscreteSpec,
    EnvSpec,
    MultiDiscreteSpec,
    Prediction,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

BEST = np.array([[0.5, -0.3], [-0.7, 0.1], [0.2, 0.9]], np.float32)  # [H, A]
NOTHING = jnp.zeros((0, 3, 2))
PLANNERS = {
    "mppi": mppi.Config(num_samples=128, num_proposals=0, num_elites=16),
    "cem": cem.Config(horizon=3, num_samples=128, num_elites=16),
    "icem": icem.Config(horizon=3, num_samples=256, num_elites=10, iterations=6, colour=0.5),
    "shooting": shooting.Config(horizon=3, num_samples=20_000),
    "gradient": gradient.Config(horizon=3, num_samples=4, iterations=60),
}


def quadratic(key, actions):
    del key
    return -jnp.square(actions - BEST).sum((1, 2))


@functools.cache
def _planned(name, score):
    """(the planner, (key, memory) -> its plan of a quadratic)."""
    planner = PLANNERS[name].make(2)
    return planner, jax.jit(lambda key, memory: planner.plan(key, memory, score, NOTHING))


@pytest.mark.parametrize(
    ("name", "error"), [*((n, 0.1) for n in PLANNERS if n != "shooting"), ("shooting", 0.4)]
)
def test_each_planner_finds_the_best_of_a_quadratic(name, error):
    planner, plan = _planned(name, quadratic)
    found = plan(jax.random.key(0), planner.initial())
    np.testing.assert_allclose(found.elites[0], BEST, atol=error)
    action = planner.action(jax.random.key(1), found)
    np.testing.assert_allclose(action, BEST[0], atol=error)
    assert abs(found.elites).max() <= 1.0 and planner.explore(jax.random.key(1), found).shape == (
        2,
    )
    np.testing.assert_allclose(found.weights.sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_a_second_plan_begins_where_the_first_ended(name):
    planner, plan = _planned(name, quadratic)
    first = plan(jax.random.key(0), planner.initial())
    memory = planner.shifted(jax.random.key(1), first)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), memory, planner.initial())
    if name != "shooting":
        mean = memory.mean if name == "icem" else memory
        np.testing.assert_array_equal(mean[:-1], first.mean[1:])
    assert np.isfinite(plan(jax.random.key(2), memory).mean).all()


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_a_score_that_is_no_number_is_the_worst(name):
    def score(key, actions):
        del key
        return jnp.where(actions[:, 0, 0] > 0, jnp.nan, actions[:, 0, 0])

    planner, plan = _planned(name, score)
    found = plan(jax.random.key(3), planner.initial())
    assert found.elites[0, 0, 0] <= 0 and np.isfinite(found.mean).all()


# ---------------------------------------------------------------------------------- golden numbers


def test_cem_moves_as_the_published_code_does():
    """Specification of PETS, golden number 4: costs are scores with the other sign."""
    population = jnp.array([[0.5, -0.2], [0.9, 0.1], [-0.4, 0.3], [0.2, 0.6]])[:, None]  # [4, 1, 2]
    costs = jnp.array([1.0, 0.2, 3.0, 0.5])
    config = cem.Config(horizon=1, iterations=1, num_samples=5, num_elites=2)

    def score(key, actions):
        del key
        return jnp.concatenate([-costs, jnp.full((len(actions) - 4,), -9.0)])

    found = cem.plan(config, jax.random.key(0), jnp.zeros((1, 2)), score, population)
    np.testing.assert_allclose(found.mean[0], [0.495, 0.315], rtol=1e-5)
    np.testing.assert_allclose(jnp.square(found.std[0]), [0.13525, 0.08125], rtol=1e-4)


def test_cem_samples_within_the_bounds():
    variance = cem.inside(jnp.array([0.9, -0.5]), jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(variance, [0.0025, 0.0625], rtol=1e-5)


def test_cem_stops_where_nothing_varies():
    config = dataclasses.replace(PLANNERS["cem"], iterations=8, min_variance=0.9)
    found = cem.plan(config, jax.random.key(0), jnp.asarray(BEST), quadratic, NOTHING)
    np.testing.assert_array_equal(found.mean, BEST)  # 0.25 is below the bound from the beginning


def test_icem_has_fewer_samples_from_iteration_to_iteration():
    assert icem.sizes(icem.Config()) == (40, 32, 25)
    config = icem.Config(num_samples=200, num_elites=20, decay=1.3, iterations=5)
    assert icem.sizes(config) == (200, 153, 117, 90, 69)


def test_noise_of_known_draws():
    """Specification of PETS, golden number 5: T = 4, β = 2."""
    real, imaginary = jnp.array([1.0, -0.5, 0.25]), jnp.array([0.0, 0.7, 0.0])
    expected = [0.0606339063, -0.2546624063, 1.0307764064, 1.1035370939]
    found = icem.from_spectrum(real, imaginary, 2.0, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("colour", "power", "lag_1", "lag_5"),
    [
        (0.25, 1.0271101518, 0.1311961361, 0.0032394586),
        (2.0, 1.1585181018, 0.8679616316, 0.2877968876),
        (3.0, 1.2083757594, 0.9557124911, 0.4489136888),
    ],
)
def test_noise_has_its_colour(colour, power, lag_1, lag_5):
    draw = jax.jit(icem.coloured, static_argnums=(1, 2))
    x = np.asarray(draw(jax.random.key(0), colour, (40_000, 30, 1)), np.float64)[..., 0]
    np.testing.assert_allclose(np.square(x).mean(), power, rtol=0.02)
    for lag, expected in ((1, lag_1), (5, lag_5)):
        # The process is periodic: every pair of rows so far apart counts.
        found = (x * np.roll(x, lag, axis=1)).mean() / np.square(x).mean()
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_icem_keeps_elites_and_their_scores():
    """Sequences that no iteration can find again survive to the end, and to the next row."""
    config = dataclasses.replace(PLANNERS["icem"], start_std=1e-3, iterations=3)
    far = jnp.broadcast_to(jnp.asarray(BEST), (config.num_kept, 3, 2))
    memory = icem.Memory(jnp.full((3, 2), -0.9), far, jnp.ones((), bool))
    found = icem.plan(config, jax.random.key(0), memory, quadratic, NOTHING)
    np.testing.assert_array_equal(found.elites[0], BEST)
    moved = icem.shifted(config, jax.random.key(1), found)
    np.testing.assert_array_equal(moved.elites[0, :-1], BEST[1:])
    fresh = memory._replace(there=jnp.zeros((), bool))
    found = icem.plan(config, jax.random.key(0), fresh, quadratic, NOTHING)
    assert abs(found.elites[0] - BEST).max() > 0.5  # in a new episode they do not count


# ------------------------------------------------------------------------------------ as behaviour


def _game(gain, discounts):
    """A model whose latent is (row, reward): `gain` of the first action, then 1000 each row."""

    def imagine(key, latent, action):
        del key
        row, _ = latent
        return row + 1, jnp.where(row == 0, gain(action), 1_000.0)

    def predict(latent):
        row, reward = latent
        return Prediction(reward, jnp.asarray(discounts)[row - 1], {})

    rest = dict.fromkeys(("initial_latent", "observe", "observe_sequence", "latent_at", "decode"))
    features = lambda latent: jnp.zeros((1,))
    return BoundModel(**rest, imagine=imagine, predict=predict, features=features)


START = (jnp.zeros((), jnp.int32), jnp.zeros(()))
SPEC = EnvSpec(ArraySpec((1,), "float32"), BoundedSpec(1))


@pytest.mark.parametrize(
    ("discounts", "expected"),
    [((0.0, 1.0, 1.0), 2.0), ((1.0, 0.5, 0.0), 1_502.0), ((1.0, 1.0, 1.0), 2_002.0)],
)
def test_nothing_behind_a_predicted_end_is_scored(discounts, expected):
    model = _game(lambda action: 2.0, discounts)
    for particles in (1, 4):
        score = plans.scorer(SPEC.action, model, START, 1.0, particles=particles)
        found = score(jax.random.key(0), jnp.zeros((5, 3, 1)))
        np.testing.assert_allclose(found, np.full(5, expected), rtol=1e-5)


def test_particles_are_averaged():
    def imagine(key, latent, action):
        row, _ = latent
        return row + 1, jax.random.normal(key)

    model = _game(lambda action: 0.0, (1.0, 1.0, 1.0))._replace(imagine=imagine)

    def deviation(particles):
        score = plans.scorer(SPEC.action, model, START, 1.0, particles=particles)
        return np.std(jax.jit(score)(jax.random.key(0), jnp.zeros((400, 3, 1))))

    np.testing.assert_allclose(deviation(1), 3**0.5, rtol=0.1)
    np.testing.assert_allclose(deviation(16), 3**0.5 / 4, rtol=0.1)


@pytest.mark.parametrize(
    ("action", "gain", "best"),
    [
        (DiscreteSpec(4), lambda a: (a == 2) * 1.0, 2),
        (MultiDiscreteSpec((3, 2)), lambda a: (a[0] == 1) + (a[1] == 0) * 1.0, (1, 0)),
        (BoundedSpec(1), lambda a: 1.0 - jnp.square(a[0] + 0.6), -0.6),
    ],
)
@pytest.mark.parametrize("explore", [True, False])
def test_any_kind_of_action_is_planned(action, gain, best, explore):
    spec = dataclasses.replace(SPEC, action=action)
    behaviour = planning.Config(cem.Config(horizon=3, num_samples=64, num_elites=8)).make(spec)
    state = behaviour.init(jax.random.key(0), jnp.zeros((1,)))
    model = _game(gain, (0.0, 1.0, 1.0))
    act = jax.jit(functools.partial(behaviour.act, model=model, explore=explore))
    carry, found = act(state, jax.random.key(1), behaviour.initial_carry(), START)
    np.testing.assert_allclose(jnp.ravel(found), np.ravel(best), atol=0.15)
    assert carry.shape == (3, action_size(action))


@pytest.mark.parametrize("spec", [DiscreteSpec(5), MultiDiscreteSpec((3, 4, 2)), BoundedSpec(3)])
def test_an_action_comes_back_from_its_vector(spec):
    for i in range(5):
        action = random_action(spec, jax.random.key(i))
        back = action_of_vector(spec, action_vector(spec, action))
        np.testing.assert_array_equal(back, action)
        assert back.dtype == action.dtype


def test_what_cannot_be_planned_is_refused():
    discrete = dataclasses.replace(SPEC, action=DiscreteSpec(2))
    with pytest.raises(ValueError, match="use behaviour.planner=cem"):
        planning.Config(gradient.Config()).make(discrete)
    for config in (
        cem.Config(num_samples=8),
        icem.Config(num_samples=8),
        shooting.Config(25, 1, 1),
    ):
        with pytest.raises(ValueError, match="num_elites"):
            planning.Config(config).make(SPEC)
