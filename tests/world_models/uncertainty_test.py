"""Measures of uncertainty and the ensemble's loss against golden numbers, computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.world_models import ensemble, uncertainty

MEAN = jnp.array([[0.0, 1.0], [0.2, 0.8], [-0.1, 1.4]])
STD = jnp.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]])
SAMPLE = jnp.array([0.05, 1.0])
MEASURES = jax.jit(uncertainty.measures)


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=3e-6)


def test_measures_golden():
    found = MEASURES(MEAN, STD, 1, SAMPLE)
    assert set(found) == set(uncertainty.NAMES)
    _close(found["max_std"], 0.3162277660)
    _close(found["max_variance"], 0.0905538514)
    _close(1.0 - 0.5 * found["max_std"], 0.8418861170)  # MOPO with r = 1, λ = 0.5
    _close(found["pairwise"], 0.6708203932)
    _close(uncertainty.distance(MEAN), 0.3590109871)
    _close(found["distance"], np.abs(MEAN[:, 1] - MEAN[:, 1].mean()).max())  # without the reward
    _close(found["mean_std"], 0.1972026594)
    _close(uncertainty.total_variance(MEAN, STD), [0.0622222222, 0.0922222222])
    _close(found["ensemble_variance"], 0.1112499133)
    _close(found["ensemble_std"], 0.3929942041)
    _close(uncertainty.left_out_kl(MEAN, STD), [0.9013730631, 3.2821362107, 3.9454906673])
    _close(found["left_out_kl"], 3.2821362107)
    _close(
        uncertainty.log_likelihood(MEAN, STD, SAMPLE), [1.9491459390, -0.4563191691, -0.9002512415]
    )
    _close(found["likelihood_variance"], 1.5669335960)


def test_measures_of_members_that_agree_are_zero_or_their_noise():
    mean, std = jnp.tile(MEAN[:1], (3, 1)), jnp.tile(STD[:1], (3, 1))
    found = MEASURES(mean, std, 0, SAMPLE)
    for name in ("pairwise", "distance", "mean_std", "left_out_kl", "likelihood_variance"):
        np.testing.assert_allclose(found[name], 0.0, atol=2e-6)
    _close(found["max_std"], found["ensemble_std"])
    slope = jax.jit(jax.grad(uncertainty.pairwise))(mean)
    assert np.isfinite(slope).all()


def test_bounds_and_loss_of_a_member_golden():
    bounded = ensemble.bound_log_variance(jnp.array([-20.0, -5.0, 0.0, 0.5, 3.0]), -10.0, 0.5)
    _close(bounded, [-9.9999546011, -4.9973357435, -0.4740040505, -0.1930921091, 0.4211400620])
    mean, target = jnp.array([[0.1, -0.2], [0.3, 0.0]]), jnp.array([[0.0, 0.0], [1.0, -0.5]])
    log_variance = jnp.array([[-1.0, -2.0], [0.0, 0.2]])
    _close(jnp.mean(ensemble.gaussian_nll(mean, log_variance, target)), -0.4456430624)
