"""Samplers: laws, dynamic-frequency golden 14 of shared/specs/drama.md, counters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.replay import samplers

pytestmark = pytest.mark.usefixtures("quick_compile")

SAMPLERS = {"uniform": samplers.Uniform(), "dynamic": samplers.DynamicFrequency()}
TRAINED = jnp.array([[0], [3], [10], [10]])
IMAGINED = jnp.array([[0], [0], [64], [1280]])
COUNTS = samplers.Counts(TRAINED, IMAGINED)
PROBABILITIES = {
    "imagine": (0.296923, 0.296923, 0.296923, 0.109232),
    "model": (0.403783, 0.299130, 0.148543, 0.148543),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_keeps_the_laws(name):
    testing.check_sampler(SAMPLERS[name])


def _score(stream, **changes):
    config = samplers.DynamicFrequency(**changes)
    return samplers.dynamic_frequency_score(config, COUNTS, stream)[:, 0]


def test_imagination_score_golden():
    np.testing.assert_allclose(_score("imagine"), [0, 0, 0, -1], atol=1e-6)


@pytest.mark.parametrize("stream", PROBABILITIES)
def test_probabilities_golden(stream):
    actual = jax.nn.softmax(_score(stream))
    np.testing.assert_allclose(actual, PROBABILITIES[stream], atol=1e-6)


def test_smaller_weights_prefer_starts_that_were_trained_on_but_not_imagined():
    score = 10.0 * _score("imagine", alpha=0.5, beta=0.5)
    assert score[2] == pytest.approx(5.0)  # v = 10, b' = 1


@pytest.mark.parametrize("stream", PROBABILITIES)
def test_single_starts_are_drawn_with_these_probabilities(stream):
    sampler = samplers.DynamicFrequency().make()
    ring = samplers.Ring(4, 1, jnp.int32(4))

    def draw(key):
        return sampler.sample(COUNTS, key, ring, 1, 1, stream)[1][0]

    slots = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000))
    frequencies = np.bincount(slots, minlength=4) / len(slots)
    np.testing.assert_allclose(frequencies, PROBABILITIES[stream], atol=0.015)


@pytest.mark.parametrize("stream, touched", [("model", "model"), ("imagine", "imagine")])
def test_only_start_indices_are_counted_and_only_in_their_stream(stream, touched):
    sampler = samplers.DynamicFrequency().make()
    before = sampler.init(20, 2)
    ring = samplers.Ring(20, 2, jnp.int32(27))
    after, slot, lane = sampler.sample(before, jax.random.key(0), ring, 5, 6, stream)
    expected = np.zeros((20, 2), int)
    expected[slot, lane] = 1
    assert expected.sum() == 6  # without replacement
    np.testing.assert_array_equal(getattr(after, touched), expected)
    other = "imagine" if touched == "model" else "model"
    assert not np.asarray(getattr(after, other)).any()


def test_starts_drawn_less_often_are_preferred_until_all_are_even():
    sampler = samplers.DynamicFrequency(temperature=0.01).make()
    ring = samplers.Ring(10, 2, jnp.int32(10))

    def body(counts, key):
        return sampler.sample(counts, key, ring, 1, 5, "model")[0], None

    keys = jax.random.split(jax.random.key(0), 8)
    counts = jax.lax.scan(body, sampler.init(10, 2), keys)[0]
    np.testing.assert_array_equal(counts.model, 2)


@pytest.mark.parametrize("length, expected", [(8, 1026), (128, 906)])
def test_number_of_legal_starts_at_the_first_update_golden(length, expected):
    sampler = samplers.DynamicFrequency().make()
    ring = samplers.Ring(1100, 1, jnp.int32(1033))
    _, slot, _ = sampler.sample(
        sampler.init(1100, 1), jax.random.key(0), ring, length, expected, "model"
    )
    np.testing.assert_array_equal(np.sort(slot), np.arange(expected))


def test_uniform_draws_all_lanes_and_starts_equally_often():
    sampler = samplers.Uniform().make()
    ring = samplers.Ring(6, 2, jnp.int32(9))
    _, slot, lane = sampler.sample((), jax.random.key(0), ring, 3, 20_000, "model")
    frequencies = np.bincount(2 * np.asarray(slot) + np.asarray(lane), minlength=12) / 20_000
    legal = np.repeat([True, False, False, True, True, True], 2)  # slots 3, 4, 5, 0 are oldest
    np.testing.assert_allclose(frequencies, legal / legal.sum(), atol=0.01)
