"""What the laws are stated with: close, equal, the same structure, finite metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Metrics, PyTree

TOLERANCE = 2e-5


def assert_close(
    actual: PyTree, expected: PyTree, message: str, tolerance: float = TOLERANCE
) -> None:
    """Leaves agree to `tolerance`, relative to the largest value of each expected leaf."""
    jax.tree.map(lambda a, e: _assert_leaf(a, e, message, tolerance), actual, expected)


def _assert_leaf(actual: Any, expected: Any, message: str, tolerance: float) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{message}: {actual.shape} != {expected.shape}"
    if actual.size:
        error = np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())
        assert error <= tolerance, f"{message}: relative error {error:.2g} > {tolerance:.2g}"


def assert_same_structure(actual: PyTree, expected: PyTree, message: str) -> None:
    """Same tree, shapes and dtypes; arrays or what `jax.eval_shape` says of them."""
    describe = lambda x: (jnp.shape(x), jnp.result_type(x))  # noqa: E731
    a, e = jax.tree.map(describe, actual), jax.tree.map(describe, expected)
    assert _structure(actual) == _structure(expected), f"{message}: tree changed"
    assert a == e, f"{message}: shapes or dtypes changed"


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def equal(one: PyTree, other: PyTree) -> bool:
    """Whether two trees of the same structure agree bit for bit; NaN equals NaN."""
    same = jax.tree.map(lambda a, b: _bits(a) == _bits(b), one, other)
    return all(jax.tree.leaves(same))


def _bits(x: Any) -> bytes:
    """The bytes of an array; of a typed key, those of its data."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def assert_equal(actual: PyTree, expected: PyTree, message: str) -> None:
    """Same tree, and the same bits."""
    assert _structure(actual) == _structure(expected), f"{message}: tree changed"
    changed = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
        )
        if _bits(a) != _bits(b)
    ]
    assert not changed, f"{message}: {', '.join(changed[:4])} changed"


def assert_metrics(metrics: Metrics, law: str) -> None:
    """Every metric is (sum [], count []) named "group/name", and its sum is finite."""
    for name, (total, count) in metrics.items():
        assert "/" in name, f"{law} metrics are named group/name, not {name!r}"
        shapes = jnp.shape(total), jnp.shape(count)
        assert shapes == ((), ()), f"{law} metric {name} has the shapes {shapes}"
        assert np.isfinite(total), f"{law} metric {name} is {float(total)}"
