"""BatchNorm in torch's sense, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mbrl_jax.networks.norms import BatchNorm, apply_with_stats, moments

X = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 4)).astype(np.float32)
PARAMS = {"scale": jnp.array([1.0, 2.0, 0.5, -1.0]), "bias": jnp.array([0.0, 1.0, 0.0, 3.0])}
STATS = {"mean": jnp.array([1.0, 0.0, -1.0, 2.0]), "var": jnp.array([1.0, 4.0, 2.0, 0.5])}
ROWS = X.reshape(-1, 4).astype(np.float64)


class _Normed(nn.Module):
    """A batch through BatchNorm, without the activation."""

    @nn.compact
    def __call__(self, x, train):
        affine = BatchNorm(name="norm")(moments(x), x.size // x.shape[-1], train)
        return affine.scale * x + affine.shift


def _apply(x, train):
    y, stats = apply_with_stats(_Normed(), {"norm": PARAMS}, {"norm": STATS}, jnp.asarray(x), train)
    return y, stats["norm"]


def _affine(normed):
    return normed * np.asarray(PARAMS["scale"]) + np.asarray(PARAMS["bias"])


@pytest.fixture(scope="module")
def trained():
    """Output and new statistics of one training batch."""
    return _apply(X, True)


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
    y, _ = _apply(X, False)
    normed = (ROWS - np.asarray(STATS["mean"])) / np.sqrt(np.asarray(STATS["var"]) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 4), _affine(normed), rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_the_statistics_alone():
    assert _apply(X, False)[1] is STATS


def test_initialising_does_not_count_as_a_batch():
    stats = _Normed().init(jax.random.key(0), jnp.asarray(X), True)["batch_stats"]["norm"]
    np.testing.assert_array_equal([stats["mean"], stats["var"]], [[0] * 4, [1] * 4])


def test_a_single_row_gives_finite_statistics():
    _, stats = _apply(X[0, :1], True)
    assert np.isfinite(stats["var"]).all()
