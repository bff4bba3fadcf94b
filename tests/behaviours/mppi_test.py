"""MPPI: a known quadratic, one iteration against NumPy, warm starts, the drawn action."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.behaviours.planning import mppi, plans

pytestmark = pytest.mark.usefixtures("quick_compile")

BEST = np.array([[0.5, -0.3], [-0.7, 0.1], [0.2, 0.9]], np.float32)  # [H, A]
NO_PROPOSALS = jnp.zeros((0, 3, 2))
CONFIG = mppi.Config(num_samples=128, num_proposals=0, num_elites=16)


def quadratic(key, actions):
    del key
    return -jnp.square(actions - BEST).sum((1, 2))


@functools.partial(jax.jit, static_argnums=0)
def planned(config, key, mean, proposals=NO_PROPOSALS):
    return mppi.plan(config, key, mean, quadratic, proposals)


def test_the_best_plan_of_a_quadratic_is_found():
    found = planned(CONFIG, jax.random.key(0), jnp.zeros((3, 2)))
    np.testing.assert_allclose(found.mean, BEST, atol=0.04)
    np.testing.assert_allclose(found.std, 0.05, atol=0.05)  # it narrows down to its bound
    assert (np.asarray(found.std) >= 0.05).all()
    scores = np.asarray(quadratic(None, found.elites))
    assert (np.diff(scores) <= 0).all() and abs(found.elites).max() <= 1.0


def test_one_iteration_is_what_numpy_says():
    config = dataclasses.replace(CONFIG, iterations=1, num_samples=8, num_elites=3)
    proposals = BEST + 0.1 * np.arange(1, 8, dtype=np.float32)[:, None, None]
    found = planned(config, jax.random.key(1), jnp.full((3, 2), -1.0), jnp.asarray(proposals))
    scores = -np.square(proposals - BEST).sum((1, 2))  # the one sampled is far off
    weights = np.exp(0.5 * (scores[:3] - scores[0]))
    weights /= weights.sum()
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4)
    mean = (weights[:, None, None] * proposals[:3]).sum(0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    variance = (weights[:, None, None] * np.square(proposals[:3] - mean)).sum(0)
    np.testing.assert_allclose(found.std, np.clip(np.sqrt(variance), 0.05, 2.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("control_cost", "weights", "mean"),
    [
        (0.0, [0.8788782427, 0.1189432359, 0.0021785214], [0.2411819385, 0.1607787308]),
        (0.5, None, [0.2505527133, 0.1505481421]),
    ],
)
def test_weights_and_plan_of_known_costs(control_cost, weights, mean):
    """Specification of PETS, golden number 6: λ = 0.5, Σ = 0.25 I, costs 1, 2 and 4."""
    config = mppi.Config(1, 1, 4, 3, 3, 2.0, 1e-3, 0.5, control_cost)
    before = jnp.array([[0.1, 0.2]])
    away = jnp.array([[0.2, -0.1], [-0.3, 0.4], [0.5, 0.5]])[:, None]

    def score(key, actions):
        del key, actions
        return -jnp.array([1.0, 2.0, 4.0, 99.0])

    plan = jax.jit(lambda key: mppi.plan(config, key, before, score, before + away))
    found = plan(jax.random.key(0))
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-5)
    if weights:
        np.testing.assert_allclose(found.weights, weights, rtol=1e-5)


def test_a_plan_begins_where_it_is_told_and_the_next_one_an_action_later():
    at_once = dataclasses.replace(CONFIG, iterations=1, min_std=1e-4, max_std=1e-3)
    found = planned(at_once, jax.random.key(2), jnp.asarray(0.5 * BEST))
    np.testing.assert_allclose(found.mean, 0.5 * BEST, atol=5e-3)
    expected = [*found.mean[1:], np.zeros(2)]
    np.testing.assert_array_equal(plans.shifted_mean(jax.random.key(0), found), expected)


def test_a_score_that_is_no_number_is_the_worst():
    def score(key, actions):
        del key
        return jnp.where(actions[:, 0, 0] > 0, jnp.nan, actions[:, 0, 0])

    plan = functools.partial(mppi.plan, CONFIG, score=score, proposals=NO_PROPOSALS)
    found = jax.jit(plan)(jax.random.key(0), jnp.zeros((3, 2)))
    assert found.elites[:, 0, 0].max() <= 0 and np.isfinite(found.mean).all()


def test_the_action_is_that_of_an_elite_by_its_weight():
    elites = jnp.array([-1.0, 0.0, 0.9])[:, None, None] * jnp.ones((3, 2, 1))
    found = plans.Plan(jnp.zeros((2, 1)), jnp.full((2, 1), 0.4), elites, jnp.array([0.5, 0.2, 0.3]))
    keys = jax.random.split(jax.random.key(0), 4_000)
    draw = jax.jit(jax.vmap(plans.drawn_action, (0, None, None)))
    plain = np.asarray(draw(keys, found, 0.0))[:, 0]
    shares = [(abs(plain - x) < 1e-6).mean() for x in (-1.0, 0.0, 0.9)]
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.03)
    noisy = np.asarray(draw(keys, found, 1.0))[:, 0]
    assert noisy.min() == -1.0 and noisy.max() == 1.0
    np.testing.assert_allclose(np.std((noisy - plain)[plain == 0]), 0.4, atol=0.05)


def test_sizes_that_make_no_plan_are_refused():
    with pytest.raises(ValueError, match="reach num_elites=16"):
        dataclasses.replace(CONFIG, num_samples=8).validate()
