"""What encoders read and what decoders mean, by kind."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import reconstruction
from mbrl_jax.types import ArraySpec

VECTOR, IMAGE = ArraySpec((2,), "float32"), ArraySpec((2,), "uint8")


@pytest.mark.parametrize(
    "kind, raw, target, expected",
    [
        ("bernoulli", [0.0, 0.0], [1.0, 0.0], 2 * np.log(2)),
        ("sigmoid", [0.0, 0.0], [1.0, 0.0], 0.5),
        ("squared", [3.0, 0.0], [1.0, 2.0], 8.0),
        ("symlog", [1.0, 0.0], [np.e - 1, 1 - np.e], 1.0),
    ],
)
def test_loss_is_summed_over_the_observation_and_averaged_over_rows(kind, raw, target, expected):
    raw, target = (jnp.broadcast_to(jnp.array(x), (3, 4, 2)) for x in (raw, target))
    np.testing.assert_allclose(reconstruction.loss(kind, VECTOR, raw, target), expected, rtol=1e-5)


def test_bytes_are_numbers_in_zero_to_one():
    x = reconstruction.to_input("sigmoid", IMAGE, jnp.array([255, 51], jnp.uint8))
    np.testing.assert_allclose(x, [1.0, 0.2], rtol=1e-6)


@pytest.mark.parametrize("kind", ["symlog", "squared"])
def test_a_perfect_decoder_means_what_was_seen(kind):
    seen = jnp.array([-1e4, 0.3])
    raw = reconstruction.to_input(kind, VECTOR, seen)
    np.testing.assert_allclose(reconstruction.mean(kind, VECTOR, raw), seen, rtol=1e-5)
    assert reconstruction.loss(kind, VECTOR, raw, seen) == 0.0


@pytest.mark.parametrize("kind", ["bernoulli", "sigmoid"])
def test_other_means_are_probabilities(kind):
    np.testing.assert_allclose(reconstruction.mean(kind, VECTOR, jnp.zeros(2)), [0.5, 0.5])


@pytest.mark.parametrize(
    "dtype, kind",
    [("bool", "bernoulli"), ("uint8", "sigmoid"), ("int32", "symlog"), ("float32", "symlog")],
)
def test_auto_chooses_by_dtype(dtype, kind):
    spec, seen = ArraySpec((3,), dtype), jnp.array([0, 1, 1]).astype(dtype)
    raw = jnp.array([-2.0, 0.5, 3.0])
    assert reconstruction.kind_of("auto", spec) == kind
    for f in (
        lambda k: reconstruction.to_input(k, spec, seen),
        lambda k: reconstruction.mean(k, spec, raw),
        lambda k: reconstruction.loss(k, spec, raw, seen),
    ):
        np.testing.assert_array_equal(f("auto"), f(kind))
