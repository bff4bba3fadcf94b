"""What encoders read and what decoders mean, by kind."""

import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks import reconstruction
from mbrl_jax.types import ArraySpec, DictSpec

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


def test_leaves_have_a_kind_each_and_their_losses_are_summed():
    leaves = {"flag": ArraySpec((2,), "bool"), "place": VECTOR, "shade": IMAGE}
    spec = DictSpec(tuple(leaves.items()))
    seen = {
        "flag": jnp.array([[True, False]]),
        "place": jnp.array([[-300.0, 2.0]]),
        "shade": jnp.array([[255, 0]], jnp.uint8),
    }
    raw = {"flag": jnp.array([[1.0, 2.0]]), "place": jnp.ones((1, 2)), "shade": jnp.ones((1, 2))}
    each = [reconstruction.loss("auto", leaf, raw[n], seen[n]) for n, leaf in leaves.items()]
    assert min(each) > 0
    np.testing.assert_allclose(reconstruction.loss("auto", spec, raw, seen), sum(each), rtol=1e-6)
    read = reconstruction.to_input("auto", spec, seen)
    np.testing.assert_allclose(read["place"], [[-np.log(301.0), np.log(3.0)]], rtol=1e-5)
    np.testing.assert_allclose(read["shade"], [[1.0, 0.0]])
    drawn = reconstruction.mean("auto", spec, raw)
    np.testing.assert_allclose(drawn["place"], np.full((1, 2), np.e - 1), rtol=1e-6)
    with pytest.raises(ValueError, match="sigmoid is that of one array.*flag, place, shade"):
        reconstruction.require_kind("sigmoid", spec)
