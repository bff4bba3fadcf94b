"""Distributions: golden numbers of shared/specs/drama.md section 10, sampling, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions

pytestmark = pytest.mark.usefixtures("quick_compile")

BINS = 255


# ------------------------------------------------------------------------------------ categoricals


def test_unimix_keeps_probabilities_between_its_bounds():
    probs = jnp.exp(distributions.unimix_log_probs(1e4 * jnp.eye(32)[0], 0.01))
    np.testing.assert_allclose([probs.max(), probs.min()], [0.9903125, 0.0003125], rtol=1e-5)


def test_entropy_of_a_fully_peaked_unimix_golden():
    peaked = distributions.unimix_log_probs(1e4 * jnp.eye(32)[0], 0.01)
    np.testing.assert_allclose(distributions.categorical_entropy(peaked), 0.087827, atol=1e-6)


def test_largest_kl_of_one_unimix_categorical_golden():
    peaked = distributions.unimix_log_probs(1e4 * jnp.eye(32)[:2], 0.01)
    np.testing.assert_allclose(distributions.categorical_kl(*peaked), 7.980559, rtol=1e-6)


def test_kl_is_not_symmetric():
    log_p, log_q = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    expected = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    np.testing.assert_allclose(distributions.categorical_kl(log_p, log_q), expected, rtol=1e-5)


def _golden_kl():
    """One row of two categoricals of four classes: peaked posterior, uniform prior."""
    posterior = jax.nn.log_softmax(jnp.broadcast_to(jnp.array([2.0, 0.0, 0.0, 0.0]), (1, 2, 4)))
    return posterior, jax.nn.log_softmax(jnp.zeros((1, 2, 4)))


def test_summed_kl_golden_is_reported_raw_and_clipped_to_the_free_nats():
    losses = distributions.kl_losses(*_golden_kl(), jnp.ones(1), 1.0)
    np.testing.assert_allclose(losses, [1.0, 1.0, 0.936021], atol=1e-6)


def _kl_gradients(free_nats, which):
    """Gradients of one of the losses with respect to (posterior, prior)."""

    def chosen(posterior, prior):
        return distributions.kl_losses(posterior, prior, jnp.ones(1), free_nats)[which]

    gradients = jax.grad(chosen, (0, 1))(*_golden_kl())
    return [float(jnp.abs(g).max()) for g in gradients]


@pytest.mark.parametrize("which", [0, 1])
def test_no_gradient_below_the_free_nats(which):
    assert _kl_gradients(1.0, which) == [0.0, 0.0]


def test_dynamics_loss_trains_the_prior_alone():
    posterior, prior = _kl_gradients(0.5, 0)
    assert posterior == 0.0 and prior > 0.1


def test_representation_loss_trains_the_posterior_alone():
    posterior, prior = _kl_gradients(0.5, 1)
    assert posterior > 0.1 and prior == 0.0


def test_the_floor_acts_on_the_mean_over_rows_and_not_on_each_row():
    posterior, prior = _golden_kl()
    rows = jnp.concatenate([posterior, prior, 3.0 * posterior - 2.0 * prior])
    rows = jax.nn.log_softmax(rows)  # KL 0.936, 0 and more than 1
    prior = jnp.broadcast_to(prior, rows.shape)
    each = distributions.categorical_kl(rows, prior).sum(-1)
    assert each[1] < 1e-6 and each[2] > 1.0
    dynamics = distributions.kl_losses(rows, prior, jnp.ones(3), 1.0)[0]
    np.testing.assert_allclose(dynamics, each.mean(), rtol=1e-5)


def test_rows_of_weight_zero_are_left_out_of_the_mean_kl():
    posterior, prior = _golden_kl()
    rows = jnp.concatenate([posterior, prior])
    raw = distributions.kl_losses(
        rows, jnp.broadcast_to(prior, rows.shape), jnp.array([1.0, 0.0]), 0.0
    )[2]
    np.testing.assert_allclose(raw, 0.936021, atol=1e-6)


def test_no_weighted_row_gives_no_kl_and_no_nan():
    assert distributions.kl_losses(*_golden_kl(), jnp.zeros(1), 0.0)[2] == 0.0


def _free_rows():
    """Three rows of KL 0.936, 0 and more than 1, and their prior."""
    posterior, prior = _golden_kl()
    rows = jnp.concatenate([posterior, prior, 3.0 * posterior - 2.0 * prior])
    return jax.nn.log_softmax(rows), jnp.broadcast_to(prior, rows.shape)


def test_free_nats_of_dreamer_act_on_each_row_and_then_comes_the_mean():
    rows, prior = _free_rows()
    each = np.asarray(distributions.categorical_kl(rows, prior).sum(-1))
    losses = distributions.free_kl_losses(rows, prior, jnp.ones(3, bool), 1.0)
    clipped = np.maximum(each, 1.0).mean()
    np.testing.assert_allclose(losses, [clipped, clipped, each.mean()], rtol=1e-5)
    assert clipped > max(1.0, each.mean()) + 0.1  # what a floor under the mean would give


def test_a_row_under_its_free_nats_has_no_gradient_whatever_the_others_have():
    rows, prior = _free_rows()
    mask = jnp.ones(3, bool)
    loss = lambda rows, prior, i: distributions.free_kl_losses(rows, prior, mask, 1.0)[i]  # noqa: E731
    for which, trained in ((0, 1), (1, 0)):  # dynamics trains the prior, representation not
        gradients = jax.grad(loss, (0, 1))(rows, prior, which)
        moved = np.abs(np.asarray(gradients[trained])).max((1, 2))
        assert (moved[:2] == 0).all() and moved[2] > 0.05
        assert np.abs(np.asarray(gradients[1 - trained])).max() == 0.0


def test_masked_rows_are_left_out_whatever_they_hold():
    rows, prior = _free_rows()
    rows = rows.at[2].set(jnp.nan)
    losses = distributions.free_kl_losses(rows, prior, jnp.array([True, True, False]), 0.0)
    np.testing.assert_allclose(losses, 3 * [0.936021 / 2], rtol=1e-5)
    assert distributions.free_kl_losses(rows, prior, jnp.zeros(3, bool), 1.0)[0] == 0.0


# ---------------------------------------------------------------------------------------- sampling

PROBS = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.3, 0.0]])


@pytest.fixture(scope="module")
def draws():
    """[20000, 2, 4] samples of PROBS."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(distributions.sample_one_hot, (0, None)))
    return np.asarray(draw(keys, jnp.log(PROBS)))


def test_sampled_frequencies_match_the_probabilities(draws):
    np.testing.assert_allclose(draws.mean(0), PROBS, atol=0.015)  # four standard errors


def test_a_class_of_probability_zero_is_never_drawn(draws):
    assert draws[:, 1, [1, 3]].max() == 0.0


def test_a_uniform_of_exactly_zero_draws_the_first_possible_class(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    sample = distributions.sample_one_hot(None, jnp.log(jnp.array([0.0, 0.4, 0.6])))
    np.testing.assert_array_equal(sample, [0.0, 1.0, 0.0])


def test_categoricals_are_drawn_independently(draws):
    joint = np.einsum("nc,nd->cd", draws[:, 0], draws[:, 1]) / len(draws)
    np.testing.assert_allclose(joint, np.outer(*PROBS), atol=0.015)


def test_samples_are_exactly_one_hot():
    logits = 3.0 * jax.random.normal(jax.random.key(1), (500, 32, 32))
    log_probs = distributions.unimix_log_probs(logits, 0.01)
    sample = np.asarray(jax.jit(distributions.sample_one_hot)(jax.random.key(2), log_probs))
    assert set(np.unique(sample)) == {0.0, 1.0}
    assert (sample.sum(-1) == 1.0).all()


def test_straight_through_gradient_is_that_of_the_probabilities():
    logits = jax.random.normal(jax.random.key(3), (2, 5))
    weight = jax.random.normal(jax.random.key(4), (2, 5))

    def through_sample(logits):
        sample = distributions.sample_one_hot(jax.random.key(5), jax.nn.log_softmax(logits))
        return (weight * sample).sum()

    expected = jax.grad(lambda logits: (weight * jax.nn.softmax(logits)).sum())(logits)
    np.testing.assert_allclose(jax.grad(through_sample)(logits), expected, atol=1e-6)


# ------------------------------------------------------------------------------- symlog and two-hot


def test_symexp_inverts_symlog():
    x = np.array([-1e6, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0, 1e6], np.float32)
    np.testing.assert_allclose(distributions.symexp(distributions.symlog(x)), x, rtol=1e-5)


def test_symlog_is_odd_and_logarithmic():
    np.testing.assert_allclose(
        distributions.symlog(jnp.array([np.e - 1, 1 - np.e])), [1.0, -1.0], rtol=1e-6
    )


@pytest.mark.parametrize(
    "target, lower, upper_weight",
    [(1.0, 131, 0.401484), (-1.0, 122, 0.598516), (0.1, 127, 0.605219)],
)
def test_two_hot_golden(target, lower, upper_weight):
    code = np.asarray(distributions.two_hot(jnp.float32(target), BINS))
    expected = np.zeros(BINS)
    expected[[lower, lower + 1]] = 1 - upper_weight, upper_weight
    np.testing.assert_allclose(code, expected, atol=1e-5)


def test_two_hot_of_zero_is_the_middle_bin():
    code = np.asarray(distributions.two_hot(jnp.float32(0.0), BINS))
    assert code[127] == 1.0 and code.sum() == 1.0


@pytest.mark.parametrize("target, bin_", [(1e30, BINS - 1), (-1e30, 0)])
def test_two_hot_beyond_the_limit_is_an_outer_bin(target, bin_):
    code = distributions.two_hot(jnp.float32(target), BINS)
    assert int(jnp.argmax(code)) == bin_ and float(code.sum()) == 1.0


@pytest.mark.parametrize("num_bins", [63, BINS])
def test_two_hot_round_trip(num_bins):
    x = jnp.array([-1000.0, -5.0, -0.3, 0.0, 0.01, 1.0, 7.7, 200.0, 12345.0])
    decoded = distributions.two_hot_mean(jnp.log(distributions.two_hot(x, num_bins)))
    np.testing.assert_allclose(decoded, x, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("target", [-3.0, 0.0, 1e4])
def test_uniform_logits_lose_ln_255_whatever_the_target(target):
    loss = distributions.two_hot_loss(jnp.zeros(BINS), jnp.float32(target))
    np.testing.assert_allclose(loss, 5.541264, atol=1e-5)


def test_uniform_logits_stand_for_zero():
    np.testing.assert_allclose(distributions.two_hot_mean(jnp.zeros(BINS)), 0.0, atol=1e-5)


def test_symexp_bins_are_symmetric_and_spaced_in_symlog():
    bins = np.asarray(distributions.symexp_bins(BINS))
    np.testing.assert_array_equal(bins, -bins[::-1])
    assert bins[127] == 0.0
    np.testing.assert_allclose(
        np.asarray(distributions.symlog(bins)), np.linspace(-20, 20, BINS), rtol=1e-5, atol=1e-6
    )


def test_shares_of_symexp_bins_are_linear_in_the_number_itself():
    bins = np.asarray(distributions.symexp_bins(BINS), np.float64)
    code = np.asarray(distributions.two_hot(jnp.float32(100.0), BINS, "symexp"))
    lower = np.searchsorted(bins, 100.0) - 1
    share = (100.0 - bins[lower]) / (bins[lower + 1] - bins[lower])
    np.testing.assert_array_equal(np.flatnonzero(code), [lower, lower + 1])
    np.testing.assert_allclose(code[[lower, lower + 1]], [1 - share, share], atol=1e-4)
    np.testing.assert_allclose((code * bins).sum(), 100.0, rtol=1e-5)


@pytest.mark.parametrize("num_bins", [63, BINS, 256])
def test_round_trip_of_symexp_bins_golden(num_bins):
    there = lambda x: jnp.log(distributions.two_hot(x, num_bins, "symexp"))  # noqa: E731
    back = jax.jit(lambda x: distributions.two_hot_mean(there(x), "symexp"))
    x = np.concatenate([-np.logspace(4, -3, 50), [0.0], np.logspace(-3, 4, 50)])
    np.testing.assert_allclose(back(x.astype(np.float32)), x, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("num_bins", [9, BINS, 256])
def test_equal_logits_over_symexp_bins_stand_for_exactly_zero(num_bins):
    mean = jax.jit(lambda logits: distributions.two_hot_mean(logits, "symexp"))
    np.testing.assert_array_equal(mean(np.full((3, num_bins), 0.7, np.float32)), np.zeros(3))


@pytest.mark.parametrize("target, bin_", [(1e30, BINS - 1), (-jnp.inf, 0)])
def test_numbers_beyond_the_symexp_bins_lie_in_an_outer_one(target, bin_):
    code = distributions.two_hot(jnp.float32(target), BINS, "symexp")
    assert float(code[bin_]) == 1.0 and float(code.sum()) == 1.0


def test_loss_over_symexp_bins_is_the_cross_entropy_with_their_code():
    logits, target = jnp.linspace(-1.0, 1.0, 63), jnp.float32(-7.7)
    code = distributions.two_hot(target, 63, "symexp")
    expected = -(code * jax.nn.log_softmax(logits)).sum()
    np.testing.assert_allclose(
        distributions.two_hot_loss(logits, target, "symexp"), expected, rtol=1e-6
    )
    assert not np.allclose(distributions.two_hot_loss(logits, target), expected)


def test_no_gradient_flows_into_the_target_of_the_two_hot_loss():
    slope = jax.grad(distributions.two_hot_loss, 1)(jnp.arange(9.0), jnp.float32(0.4))
    assert slope == 0.0


# --------------------------------------------------------------------------------------- Bernoulli


@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_bernoulli_nll_against_the_plain_formula(target):
    logits = np.linspace(-8.0, 8.0, 9)
    probability = 1.0 / (1.0 + np.exp(-logits))
    expected = -target * np.log(probability) - (1 - target) * np.log1p(-probability)
    nll = distributions.bernoulli_nll(jnp.asarray(logits, jnp.float32), target)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)


def test_bernoulli_nll_at_huge_logits():
    logits = jnp.array([1e4, 1e4, -1e4, -1e4])
    target = jnp.array([0.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(distributions.bernoulli_nll(logits, target), [1e4, 0, 0, 1e4])


def test_bernoulli_gradient_at_huge_logits_is_finite():
    slope = jax.vmap(jax.grad(distributions.bernoulli_nll))(
        jnp.array([1e4, -1e4]), jnp.array([0.0, 1.0])
    )
    np.testing.assert_array_equal(slope, [1.0, -1.0])
