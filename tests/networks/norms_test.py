"""BatchNorm in torch's sense, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks.norms import EPS, BatchNorm, apply_with_stats, normalise_batch

X = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 4)).astype(np.float32)
PARAMS = {"scale": jnp.array([1.0, 2.0, 0.5, -1.0]), "bias": jnp.array([0.0, 1.0, 0.0, 3.0])}
STATS = {"mean": jnp.array([1.0, 0.0, -1.0, 2.0]), "var": jnp.array([1.0, 4.0, 2.0, 0.5])}
ROWS = X.reshape(-1, 4).astype(np.float64)


def _affine(normed):
    return normed * np.asarray(PARAMS["scale"]) + np.asarray(PARAMS["bias"])


@pytest.fixture(scope="module")
def trained():
    """Output and new statistics of one training batch."""
    return apply_with_stats(BatchNorm(), PARAMS, STATS, jnp.asarray(X), True)


def test_a_batch_is_normalised_with_its_biased_variance(trained):
    normed = (ROWS - ROWS.mean(0)) / np.sqrt(ROWS.var(0) + 1e-5)
    np.testing.assert_allclose(trained[0].reshape(-1, 4), _affine(normed), atol=1e-5)


def test_the_running_variance_takes_the_unbiased_one(trained):
    expected = 0.9 * np.asarray(STATS["var"]) + 0.1 * ROWS.var(0, ddof=1)
    np.testing.assert_allclose(trained[1]["var"], expected, rtol=1e-6)


def test_the_running_mean_moves_by_a_tenth(trained):
    expected = 0.9 * np.asarray(STATS["mean"]) + 0.1 * ROWS.mean(0)
    np.testing.assert_allclose(trained[1]["mean"], expected, rtol=1e-5)


def test_evaluation_normalises_with_the_running_statistics():
    y, _ = apply_with_stats(BatchNorm(), PARAMS, STATS, jnp.asarray(X), False)
    normed = (ROWS - np.asarray(STATS["mean"])) / np.sqrt(np.asarray(STATS["var"]) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 4), _affine(normed), rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_the_statistics_alone():
    assert apply_with_stats(BatchNorm(), PARAMS, STATS, jnp.asarray(X), False)[1] is STATS


def test_initialising_does_not_count_as_a_batch():
    stats = BatchNorm().init(jax.random.key(0), jnp.asarray(X), True)["batch_stats"]
    np.testing.assert_array_equal([stats["mean"], stats["var"]], [[0] * 4, [1] * 4])


def test_a_single_row_gives_finite_statistics():
    _, stats = apply_with_stats(BatchNorm(), PARAMS, STATS, jnp.asarray(X[0, :1]), True)
    assert np.isfinite(stats["var"]).all()


def test_the_gradient_by_hand_is_that_of_autodiff():
    def plain(x, scale, bias):
        rows = x.reshape(-1, 4)
        mean, var = rows.mean(0), rows.var(0)
        return (x - mean) / jnp.sqrt(var + EPS) * scale + bias

    y_bar = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)
    arguments = (jnp.asarray(X), PARAMS["scale"], PARAMS["bias"])
    found, wanted = (
        jax.jit(jax.grad(lambda *a, f=f: (f(*a) * y_bar).sum(), (0, 1, 2)))(*arguments)
        for f in (lambda *a: normalise_batch(*a)[0], plain)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()) + 1e-6)
