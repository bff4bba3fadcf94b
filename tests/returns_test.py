"""Returns: golden numbers 10 and 11 of shared/specs/drama.md, limits of λ, survival."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import returns

GAMMA = 0.985
REWARD = jnp.array([1.0, 0.0, 2.0, -1.0])
VALUES = jnp.array([0.5, 0.4, 0.3, 0.2, 0.1])
DISCOUNT = GAMMA * (1.0 - jnp.array([0.0, 0.0, 1.0, 0.0]))


def _lambda_return(mixed, lambda_=0.95):
    return returns.lambda_return(REWARD, DISCOUNT, mixed, VALUES[-1], lambda_)


def test_lambda_return_golden_of_the_textbook_form():
    expected = [2.784782, 1.886275, 2.000000, -0.901500]
    np.testing.assert_allclose(_lambda_return(VALUES[1:]), expected, atol=1e-6)


def test_lambda_return_golden_of_the_published_code():
    expected = [2.794315, 1.891200, 2.000000, -0.896575]
    np.testing.assert_allclose(_lambda_return(VALUES[:-1]), expected, atol=1e-6)


def test_lambda_1_is_the_discounted_sum_and_the_bootstrap():
    expected = [1.0 + GAMMA**2 * 2.0, GAMMA * 2.0, 2.0, -1.0 + GAMMA * 0.1]
    np.testing.assert_allclose(_lambda_return(VALUES[1:], 1.0), expected, rtol=1e-6)


def test_lambda_0_looks_one_step_ahead():
    expected = REWARD + DISCOUNT * VALUES[1:]
    np.testing.assert_allclose(_lambda_return(VALUES[1:], 0.0), expected, rtol=1e-6)


def test_horizons_beyond_the_unrolled_length_agree_with_a_plain_loop():
    rng = np.random.default_rng(0)
    reward, discount, value = rng.uniform(size=(3, 37))
    expected, following = np.zeros(37), 0.7
    for t in reversed(range(37)):
        following = reward[t] + discount[t] * (0.1 * value[t] + 0.9 * following)
        expected[t] = following
    rows = (jnp.asarray(x, jnp.float32) for x in (reward, discount, value))
    np.testing.assert_allclose(returns.lambda_return(*rows, 0.7, 0.9), expected, rtol=1e-5)


def test_survival_is_the_product_of_the_discounts_before():
    reached = returns.survival(jnp.array([0.5, 0.8, 0.1, 0.3]), jnp.float32(1.0))
    np.testing.assert_allclose(reached, [1.0, 0.5, 0.4, 0.04], rtol=1e-6)


def test_nothing_survives_a_terminal_start():
    assert returns.survival(jnp.ones(4), jnp.float32(0.0)).sum() == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_lies_behind_an_end_is_not_seen(bad):
    hidden = jnp.array([False, False, False, True])  # the third action ends it
    reward, mixed = (jnp.where(hidden, bad, x) for x in (REWARD, VALUES[1:].at[2].set(bad)))

    def first(reward, mixed, bootstrap):
        return returns.lambda_return(reward, DISCOUNT, mixed, bootstrap, 0.95)[:3]

    wanted = first(REWARD, VALUES[1:], VALUES[-1])
    np.testing.assert_array_equal(first(reward, mixed, jnp.asarray(bad)), wanted)
    slopes = jax.grad(lambda *x: first(*x).sum(), (0, 1, 2))(reward, mixed, jnp.asarray(bad))
    assert all(np.isfinite(slope).all() for slope in slopes)
    discount = jnp.array([0.5, 0.0, bad, bad])
    np.testing.assert_array_equal(returns.survival(discount, jnp.float32(1.0)), [1, 0.5, 0, 0])
    np.testing.assert_array_equal(
        returns.reached_states(jnp.array([bad, 0.5, 0.0, bad]), jnp.float32(1.0)), [1, 0.5, 0, 0]
    )


@pytest.mark.parametrize(
    "size, fraction, expected", [(16384, 0.05, 819), (16384, 0.95, 15564), (100, 0.05, 5)]
)
def test_order_statistic_golden(size, fraction, expected):
    x = np.random.default_rng(0).permutation(size) + 1
    assert returns.order_statistic(jnp.asarray(x.reshape(2, -1)), fraction) == expected


def test_order_statistic_of_few_values_is_the_smallest():
    assert returns.order_statistic(jnp.array([3.0, 1.0, 2.0]), 0.05) == 1.0
