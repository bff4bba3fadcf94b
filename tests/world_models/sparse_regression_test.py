"""STLSQ and its library: published numbers, a float64 oracle, collinear data, the switches.

Golden numbers 1 and 4: shared/specs/state_mbrl.md section 9, computed there in float64 and by
pysindy 2.1.0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.world_models import sparse_regression
from mbrl_jax.world_models.sparse_regression import Config

pytestmark = pytest.mark.usefixtures("quick_compile")

T = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
THETA = np.stack([np.ones(6), T, T**2], axis=1)
TARGET = 0.02 + 1.5 * T - 0.8 * T**2 + np.array([0.01, -0.02, 0.015, 0.0, -0.01, 0.005])
GOLDEN = Config(threshold=0.1, ridge=0.05)


@functools.partial(jax.jit, static_argnums=0)
def _stlsq(config, theta, target, weight=None, allowed=None):
    weight = jnp.ones(len(target)) if weight is None else weight
    allowed = jnp.ones(theta.shape[1], bool) if allowed is None else allowed
    return sparse_regression.stlsq(config, theta, target, weight, allowed)


def _oracle(config, theta, target, weight, allowed):
    """STLSQ in float64, with the terms that are out really taken out."""
    root = np.sqrt(weight)
    theta, target, active = theta * root[:, None], target * root, allowed.copy()
    found = np.zeros(theta.shape[1])
    for _ in range(config.rounds):
        kept = theta[:, active]
        found[:] = 0.0
        gram = kept.T @ kept + config.ridge * np.eye(kept.shape[1])
        found[active] = np.linalg.solve(gram, kept.T @ target)
        before, active = active, np.abs(found) >= config.threshold
        found[~active] = 0.0
        if (before == active).all():
            break
    if config.refit:
        found[active] = np.linalg.lstsq(theta[:, active], target, rcond=None)[0]
    return found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rounds": 1, "refit": False}, [0, 1.4632511025, -0.7757762332]),
        ({"rounds": 2, "refit": False}, [0, 1.4615573268, -0.7729000613]),
        ({"refit": False}, [0, 1.4615573268, -0.7729000613]),
        ({"refit": True}, [0, 1.4919163763, -0.7884320557]),
        ({"threshold": 0.0, "ridge": 0.0}, [0.0178571429, 1.4971428571, -0.7971428571]),
    ],
)
def test_rounds_and_refit_golden(change, expected):
    found = _stlsq(dataclasses.replace(GOLDEN, **change), THETA, TARGET)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-8)
    assert (np.asarray(found) != 0).tolist() == [x != 0 for x in expected]


@pytest.mark.parametrize(
    ("degree", "interactions", "states", "actions", "size"),
    [(2, True, 5, 1, 41), (2, False, 8, 2, 50), (3, True, 5, 0, 55)],
)
def test_library_sizes_golden(degree, interactions, states, actions, size):
    config = Config(degree=degree, interactions=interactions)
    theta = sparse_regression.library(config, jnp.ones((4, states)), jnp.ones((4, actions)))
    assert theta.shape == (4, size)


def test_the_library_holds_the_terms_that_it_says():
    found = sparse_regression.library(Config(), jnp.array([2.0, 3.0]), jnp.array([5.0, 7.0]))
    p = [2, 3, 4, 6, 9]
    products = [x * u for x in p for u in (5, 7)]
    np.testing.assert_array_equal(found, [*p, 5, 7, *products])
    powers = sparse_regression.monomials(Config(degree=3, interactions=False), 2)
    assert powers == [(0,), (1,), (0, 0), (1, 1), (0, 0, 0), (1, 1, 1)]


@pytest.mark.parametrize("refit", [True, False])
def test_masked_rows_and_terms_agree_with_an_oracle_that_takes_them_out(refit):
    generator = np.random.default_rng(0)
    theta = generator.normal(size=(80, 12)) * np.logspace(-1, 2, 12)
    true = np.where(np.arange(12) % 3 == 0, 1.0, 0.0)
    target = theta @ true + 0.1 * generator.normal(size=80)
    weight = generator.integers(0, 3, 80).astype(float)
    allowed = np.arange(12) != 7
    config = Config(threshold=0.3, ridge=0.5, refit=refit)
    found = _stlsq(config, theta, target, weight, allowed)
    expected = _oracle(config, theta, target, weight, allowed)
    assert 0 < (expected == 0).sum() < 12
    np.testing.assert_array_equal(np.asarray(found) == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@functools.cache
def _collinear():
    """A library with a constant twice, a column twice, a sum of two, zeros, and scales apart."""
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 200))
    columns = [np.ones(200), 3 * np.ones(200), a, a, 1e3 * b, a + 1e3 * b, np.zeros(200)]
    return np.stack(columns, axis=1), 2.0 + a - 0.5 * b


@pytest.mark.parametrize("ridge", [0.0, 1e-5])
def test_collinear_and_constant_columns_stay_finite_and_are_fitted(ridge):
    theta, target = _collinear()
    found = np.asarray(_stlsq(Config(threshold=1e-5, ridge=ridge), theta, target))
    assert np.isfinite(found).all() and found[-1] == 0
    np.testing.assert_allclose(theta @ found, target, atol=1e-4)
    assert (found != 0).sum() <= 4  # as many as are independent, or one more in place of another


def test_nothing_to_fit_gives_zeros():
    theta, target = _collinear()
    for weight, allowed in ((0.0, 1.0), (1.0, 0.0)):
        masks = jnp.full(200, weight), jnp.full(7, allowed) > 0
        np.testing.assert_array_equal(_stlsq(Config(), theta, target, *masks), 0.0)


def test_an_ensemble_is_finite_sparse_and_hides_rows_that_do_not_count():
    generator = np.random.default_rng(2)
    theta = np.concatenate([generator.normal(size=(300, 6)), np.ones((300, 2))], axis=1)
    true = np.zeros((8, 2))
    true[[0, 3, 6], [0, 1, 1]] = [1.0, -2.0, 0.5]
    targets = theta @ true + 0.01 * generator.normal(size=(300, 2))
    weight = (np.arange(300) % 4 > 0).astype(np.float32)
    theta[::4], targets[::4] = np.nan, np.inf  # the rows of weight 0
    fit = jax.jit(functools.partial(sparse_regression.fit, Config(threshold=0.1)))
    found = np.asarray(fit(jax.random.key(0), theta, targets, weight))
    # Each member lacks a term of its own; the median has all that most of them keep.
    np.testing.assert_allclose(found, true, atol=0.01)
    np.testing.assert_array_equal(found != 0, true != 0)
    text = jax.jit(jax.vmap(fit, (0, None, None, None))).lower(
        jax.random.split(jax.random.key(0), 2), theta, targets, weight
    )
    assert "lapack" not in text.compile().as_text()  # batched, it can deadlock on CPU


def _rows_drawn(config):
    """How many rows a member draws, read off what a ridge as large as them leaves of 1."""
    config = dataclasses.replace(config, ridge=10.0, refit=False, dropped_terms=0, members=3)
    one = jnp.ones((10, 1))
    fit = jax.jit(functools.partial(sparse_regression.fit, config))
    share = fit(jax.random.key(0), one, one, jnp.ones(10))
    return float(10.0 * share[0, 0] / (1.0 - share[0, 0]))


def test_members_draw_as_many_rows_as_there_are_or_the_published_share():
    assert _rows_drawn(Config()) == pytest.approx(10, rel=1e-4)
    assert _rows_drawn(Config(bag_fraction=0.6)) == pytest.approx(6, rel=1e-4)


def test_members_go_without_a_random_term():
    theta = np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32)
    ones = jnp.ones((50,))
    kept = set()
    fit = jax.jit(
        functools.partial(
            sparse_regression.fit, Config(members=1, dropped_terms=2, threshold=0.0, ridge=0.0)
        )
    )
    for seed in range(20):
        found = np.asarray(fit(jax.random.key(seed), theta, theta @ np.ones((5, 1)), ones))
        assert (found != 0).sum() == 3
        kept.add(tuple(np.flatnonzero(found)))
    assert len(kept) > 5
