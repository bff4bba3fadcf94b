"""STORM's transformer against its equations row by row in float64; sizes, ranges, refusals.

Golden numbers: shared/specs/drama.md sections 3.4 and 7.1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.cores import attention, storm

pytestmark = pytest.mark.usefixtures("quick_compile")

IN_SIZE = 5
CONFIG = storm.Config(width=8, layers=2, heads=2, window=4, feed_forward=2, block_size=3)


@functools.cache
def _core_and_params(config):
    """Initial parameters moved at random: biases and scales count too."""
    core = config.make(IN_SIZE)
    leaves, tree = jax.tree.flatten(jax.jit(core.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    moved = [jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32) for x in leaves]
    return core, jax.tree.unflatten(tree, moved)


# ------------------------------------------------------------------------------------------ oracle


def _norm(x, p, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def _attention(p, config, u, seen, kept):
    """Row by row, head by head; `seen[t]` are the rows that row t sees, `kept` scales weights."""
    q, k, v = np.split(u @ p["in_proj"]["kernel"], 3, axis=-1)
    size, out = config.width // config.heads, np.zeros_like(u)
    for t, rows in enumerate(seen):
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            scores = k[rows, part] @ q[t, part] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            weights = weights / weights.sum() * kept[head, t, rows]
            out[t, part] = weights @ v[rows, part]
    return out @ p["out_proj"]["kernel"]


def _oracle(params, config, xs, is_first, kept=None):
    """`kept[i]`: what scales weights [H, T, T] and sums [T, F] of layer i, by purpose."""
    everything = {"weights": np.ones((config.heads, len(xs), len(xs))), "attended": 1, "fed": 1}
    kept = kept or [everything] * config.layers
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    first = [max(np.flatnonzero(is_first[: t + 1]), default=0) for t in range(len(xs))]
    position = [min(t - first[t], config.window - 1) for t in range(len(xs))]
    seen = [np.arange(max(first[t], t - config.window + 1), t + 1) for t in range(len(xs))]
    h = np.maximum(_norm(xs @ p["stem"]["kernel"], p["stem_norm"], 1e-5), 0)
    h = _norm(h @ p["stem_out"]["kernel"], p["stem_out_norm"], 1e-5) + p["positions"][position]
    h = _norm(h, p["input_norm"], 1e-6)
    for i in range(config.layers):
        block = p[f"blocks_{i}"]
        attended = _attention(block["attention"], config, h, seen, kept[i]["weights"])
        h = _norm(h + attended * kept[i]["attended"], block["attention_norm"], 1e-6)
        hidden = np.maximum(h @ block["up"]["kernel"] + block["up"]["bias"], 0)
        out = hidden @ block["down"]["kernel"] + block["down"]["bias"]
        h = _norm(h + out * kept[i]["fed"], block["feed_forward_norm"], 1e-6)
    return h


# ----------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("window", [4, 40])
def test_outputs_equal_the_oracle(window):
    """An empty start, a continued pass, then steps; longer than the window or within it."""
    config = storm.Config(width=8, layers=2, heads=2, window=window, block_size=3)
    core, params = _core_and_params(config)
    xs = np.random.default_rng(1).normal(size=(19, IN_SIZE)).astype(np.float32)

    @jax.jit
    def run(is_first):
        carry, head, _ = core.unroll(params, None, xs[:7], is_first[:7])
        carry, middle, _ = core.unroll(params, carry, xs[7:14], is_first[7:14])
        step = lambda carry, row: core.step(params, carry, *row)  # noqa: E731
        _, tail = jax.lax.scan(step, carry, (xs[14:], is_first[14:]))
        return jnp.concatenate([head, middle, tail])

    resets = [np.zeros(19, bool), np.ones(19, bool)]
    resets += [np.arange(19) == t for t in (0, 3, 6, 7, 13, 14, 18)]
    for is_first in resets:
        expected = _oracle(params, config, xs, is_first)
        testing.assert_close(run(is_first), expected, f"{np.flatnonzero(is_first)}", 1e-5)


def test_gradients_equal_finite_differences_of_the_oracle():
    config = storm.Config(width=4, layers=1, heads=2, window=3, feed_forward=1)
    core, params = _core_and_params(config)
    rng = np.random.default_rng(0)
    xs, weights = rng.normal(size=(6, IN_SIZE)), rng.normal(size=(6, 4))
    is_first = np.arange(6) == 4

    def loss(params):
        return jnp.sum(core.unroll(params, None, xs.astype(np.float32), is_first)[1] * weights)

    gradient = jax.jit(jax.grad(loss))(params)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: np.array(x, np.float64), params))
    for leaf, actual in zip(leaves, jax.tree.leaves(gradient), strict=True):
        for index in np.ndindex(leaf.shape):
            value, sides = leaf[index], []
            for move in (1e-6, -1e-6):
                leaf[index] = value + move
                outputs = _oracle(jax.tree.unflatten(tree, leaves), config, xs, is_first)
                sides.append((outputs * weights).sum())
            leaf[index] = value
            assert actual[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=2e-4)


def test_only_rows_of_the_window_and_their_places_count():
    """With all positions alike, a row that has left the window has left no trace."""
    config = storm.Config(width=8, layers=1, heads=2, window=4)
    core, params = _core_and_params(config)
    params = params | {"positions": jnp.ones_like(params["positions"])}
    unroll = jax.jit(lambda xs: core.unroll(params, None, xs, jnp.zeros(14, bool))[1])
    xs = np.random.default_rng(2).normal(size=(14, IN_SIZE)).astype(np.float32)
    changed = np.abs(unroll(xs) - unroll(xs + (np.arange(14) == 5)[:, None] * xs[::-1])).max(-1)
    assert (changed[5:9] > 1e-4).all() and (changed[[4, 9]] < 1e-6).all(), changed


# ----------------------------------------------------------------------------------------- dropout


def test_dropout_equals_the_oracle_with_the_same_entries_dropped():
    config = storm.Config(width=8, layers=2, heads=2, window=16, dropout=0.25)
    core, params = _core_and_params(config)
    xs = np.random.default_rng(1).normal(size=(9, IN_SIZE)).astype(np.float32)
    is_first, key = np.arange(9) == 4, jax.random.key(7)
    shapes = {"weights": (2, 1, 9, 9), "attended": (9, 8), "fed": (9, 8)}
    kept = []
    for i in range(config.layers):
        dropout = attention.Dropout(config.dropout, jax.random.fold_in(key, i))
        drawn = {name: dropout(name, jnp.ones(shape)) for name, shape in shapes.items()}
        kept.append({name: np.asarray(x, np.float64) for name, x in drawn.items()})
        kept[-1]["weights"] = kept[-1]["weights"][:, 0]
    assert {round(x, 6) for x in np.unique(kept[0]["weights"])} == {0, round(1 / 0.75, 6)}
    outputs = jax.jit(core.unroll_noisy)(params, key, None, xs, is_first)[1]
    testing.assert_close(outputs, _oracle(params, config, xs, is_first, kept), "noisy", 1e-5)
    plain = jax.jit(core.unroll)(params, None, xs, is_first)[1]
    testing.assert_close(plain, _oracle(params, config, xs, is_first), "plain", 1e-5)


def test_dropout_leaves_out_its_share():
    kept = attention.Dropout(0.1, jax.random.key(0))("weights", jnp.ones(20_000))
    assert (kept == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert kept.mean() == pytest.approx(1.0, abs=0.01)
    assert CONFIG.make(IN_SIZE).unroll_noisy is None  # no dropout by default


# -------------------------------------------------------------------------------- published numbers


def _count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_published_parameters_by_module():
    params = jax.eval_shape(storm.Config().make(1024 + 18).init, jax.random.key(0))
    counts = {name: _count(tree) for name, tree in params.items()}
    assert counts == {
        "stem": (1024 + 18) * 512,
        "stem_norm": 2 * 512,
        "stem_out": 512 * 512,
        "stem_out_norm": 2 * 512,
        "positions": 128 * 512,
        "input_norm": 2 * 512,
        "blocks_0": 4 * 512 * 512 + 2 * 512 + 2 * 512 * 1024 + 1024 + 512 + 2 * 512,
        "blocks_1": 2_100_736,
    }
    assert sum(counts.values()) == 5_065_728


def test_initial_ranges_are_torchs():
    params = jax.jit(storm.Config(layers=1).make(1042).init)(jax.random.key(0))
    block = params["blocks_0"]
    for weights, fan_in in (
        (params["stem"]["kernel"], 1042),
        (params["stem_out"]["kernel"], 512),
        (block["attention"]["in_proj"]["kernel"], 512),
        (block["attention"]["out_proj"]["kernel"], 512),
        (block["up"]["kernel"], 512),
        (block["up"]["bias"], 512),
        (block["down"]["kernel"], 1024),
        (block["down"]["bias"], 1024),
    ):
        np.testing.assert_allclose(np.abs(weights).max(), fan_in**-0.5, rtol=0.02)
    np.testing.assert_allclose(params["positions"].std(), 1.0, rtol=0.02)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(platform):
    core = CONFIG.make(IN_SIZE)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, carry = jax.eval_shape(core.init, key), core.initial_carry()
    x = jax.ShapeDtypeStruct((7, IN_SIZE), jnp.float32)
    first = jax.ShapeDtypeStruct((7,), bool)
    loss = lambda *args: jnp.sum(core.unroll(*args)[1])  # noqa: E731
    one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (x, first)]
    for function, arguments in (
        (core.step, (params, carry, *one)),
        (jax.grad(loss), (params, carry, x, first)),
    ):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
        assert exported.platforms == (platform,)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width 8 is no multiple of heads 3"):
        storm.Config(width=8, heads=3).make(IN_SIZE)
