"""Transformer core against attention written row by row in float64; its cache; what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.cores import attention, stack, transformer
from mbrl_jax.networks.heads import RMS_EPS

pytestmark = pytest.mark.usefixtures("quick_compile")

KINDS = ["rotary", "relative"]
IN_SIZE = 5


def _config(kind, **changes):
    sizes = dict(width=8, layers=2, heads=2, window=4, feed_forward=2, block_size=3)
    return transformer.Config(positions=kind, **(sizes | changes))


@functools.cache
def _init(config):
    """Initial parameters moved at random: biases and scales count too."""

    def init(key):
        leaves, tree = jax.tree.flatten(config.make(IN_SIZE).init(key))
        keys = jax.random.split(key, len(leaves))
        moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, moved)

    return jax.jit(init)


def _core_and_params(config, seed=0):
    return config.make(IN_SIZE), _init(config)(jax.random.key(seed))


def _rows(length, seed=1):
    return np.asarray(jax.random.normal(jax.random.key(seed), (length, IN_SIZE)))


# ------------------------------------------------------------------------------------------ oracle


def _norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def _silu(x):
    return x / (1 + np.exp(-x))


def _turn(x, angle_of_pair):
    """Complex pairs (c, c + P/2) times exp(i angle)."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * angle_of_pair)
    return np.concatenate([z.real, z.imag])


def _attention_oracle(params, config, u, is_first):
    """Row by row, head by head, with positions counted from the very first row."""
    size = config.width // config.heads
    q, k, v = np.split(u @ params["in_proj"]["kernel"], 3, axis=-1)
    out = np.zeros((len(u), config.width))
    frequency = config.rotary_base ** (-2 * np.arange(size // 2) / size)
    for t in range(len(u)):
        first = max(np.flatnonzero(is_first[: t + 1]), default=0)
        seen = range(max(first, t - config.window + 1), t + 1)
        for h in range(config.heads):
            part = slice(h * size, (h + 1) * size)
            if config.positions == "rotary":
                query = _turn(q[t, part], t * frequency)
                scores = [query @ _turn(k[j, part], j * frequency) for j in seen]
                scores = np.array(scores) / np.sqrt(size)
            else:
                scores = np.array([q[t, part] @ k[j, part] for j in seen]) / np.sqrt(size)
                scores += [params["bias"][h, t - j] for j in seen]
            weights = np.exp(scores - scores.max())
            out[t, part] = (weights / weights.sum()) @ v[list(seen), part]
    return out @ params["out_proj"]["kernel"]


def _oracle(params, config, xs, is_first):
    """The whole core in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    stem = xs @ p["stem"]["kernel"] + p["stem"]["bias"]
    r = _silu(_norm(stem, p["stem_norm"]["scale"], RMS_EPS))
    for i in range(2 * config.layers):
        u = _norm(r, p[f"norms_{i}"]["scale"], stack.BLOCK_EPS)
        part = p[f"mixers_{i}"]
        if i % 2 == 0:
            r = r + _attention_oracle(part, config, u, is_first)
        else:
            hidden = _silu(u @ part["up"]["kernel"] + part["up"]["bias"])
            r = r + hidden @ part["down"]["kernel"] + part["down"]["bias"]
    return _norm(r, p["final_norm"]["scale"], stack.BLOCK_EPS)


# ----------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    "kind, layers, window, block_size, lengths",
    [
        ("rotary", 2, 4, 3, (11, 6)),
        ("relative", 2, 4, 3, (11, 6)),
        ("rotary", 1, 40, None, (9, 7)),
        ("relative", 1, 5, None, (1, 13)),
        ("rotary", 1, 2, 1, (3, 5)),
        ("relative", 1, 9, 4, (2, 17)),
    ],
)
def test_outputs_equal_the_oracle(kind, layers, window, block_size, lengths):
    """An empty start, a continued pass, then steps; resets anywhere, none, and in every row."""
    config = _config(kind, layers=layers, window=window, block_size=block_size)
    core, params = _core_and_params(config)
    head, total = lengths[0], sum(lengths) + 4

    @jax.jit
    def run(xs, is_first):
        middle = total - 4
        carry, first, _ = core.unroll(params, None, xs[:head], is_first[:head])
        carry, second, _ = core.unroll(params, carry, xs[head:middle], is_first[head:middle])
        step = lambda carry, row: core.step(params, carry, *row)  # noqa: E731
        _, third = jax.lax.scan(step, carry, (xs[middle:], is_first[middle:]))
        return jnp.concatenate([first, second, third])

    xs, rng = _rows(total), np.random.default_rng(0)
    resets = [np.zeros(total, bool), np.ones(total, bool)]
    resets += [rng.random(total) < chance for chance in (0.1, 0.2, 0.4)]
    resets += [np.arange(total) == t for t in (0, head - 1, head, total - 4, total - 1)]
    for is_first in resets:
        testing.assert_close(
            run(xs, is_first),
            _oracle(params, config, xs, is_first),
            f"resets at {np.flatnonzero(is_first)}",
            1e-5,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_seen_for_exactly_one_window(kind):
    core, params = _core_and_params(_config(kind, layers=1))
    unroll = jax.jit(lambda xs: core.unroll(params, None, xs, jnp.zeros(14, bool))[1])
    xs = _rows(14)
    changed = np.abs(unroll(xs) - unroll(xs + 3.0 * (np.arange(14) == 5)[:, None])).max(-1)
    assert (changed[5:9] > 1e-4).all() and (changed[[4, 9]] < 1e-6).all(), changed


# --------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences_of_the_oracle(kind):
    config = _config(kind, width=4, layers=1, window=3, block_size=2, feed_forward=1)
    core, params = _core_and_params(config)
    xs, weights = _rows(7), np.random.default_rng(0).normal(size=(7, 4))
    is_first = np.arange(7) == 4

    @jax.jit
    @jax.grad
    def gradient(inputs):
        carry, head, _ = core.unroll(*inputs[:1], None, inputs[1][:5], is_first[:5])
        tail = core.unroll(inputs[0], carry, inputs[1][5:], is_first[5:])[1]
        return jnp.sum(jnp.concatenate([head, tail]) * weights)

    leaves, tree = jax.tree.flatten((params, xs))
    leaves = [np.array(x, np.float64) for x in leaves]

    def loss():
        oracle_params, rows = jax.tree.unflatten(tree, leaves)
        return np.sum(_oracle(oracle_params, config, rows, is_first) * weights)

    expected = []
    for leaf in leaves:
        differences = np.zeros_like(leaf)
        for index in np.ndindex(leaf.shape):
            value, sides = leaf[index], []
            for move in (1e-5, -1e-5):
                leaf[index] = value + move
                sides.append(loss())
            leaf[index] = value
            differences[index] = (sides[0] - sides[1]) / 2e-5
        expected.append(differences)
    actual = gradient((params, jnp.asarray(xs)))
    testing.assert_close(actual, jax.tree.unflatten(tree, expected), "gradient", 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_nan_where_all_but_oneself_is_masked(kind):
    core, params = _core_and_params(_config(kind))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(params, carry, xs, is_first):
        return jnp.sum(core.unroll(params, carry, xs, is_first)[1] ** 2)

    empty = core.initial_carry()
    full = jax.tree.map(lambda x: x + 100.0, empty)
    for carry in (empty, full):
        for is_first in (np.ones(7, bool), np.zeros(7, bool)):
            for scale in (0.0, 1e4):
                value, gradients = loss(params, carry, scale * _rows(7), is_first)
                assert np.isfinite(value)
                for leaf in jax.tree.leaves(gradients):
                    assert np.isfinite(leaf).all()


# ------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_wears_out_in_a_long_life(kind):
    """The same 7 rows again and again: after a million steps the outputs are still the same."""
    window, period = 4, 7
    rows = np.random.default_rng(0).normal(size=(3, period, 1, 2)).astype(np.float32)
    positions = {
        "rotary": attention.Positions(rotary_base=100.0),
        "relative": attention.Positions(bias=jnp.array([[0.0, 1.0, -1.0, 0.5]])),
    }[kind]

    def live(cache, periods):
        def once(_, state):
            cache, outputs = state
            for i in range(period):
                q, k, v = rows[:, i]
                cache, y = attention.attend_step(cache, q, k, v, positions)
                outputs = outputs.at[i].set(y)
            return cache, outputs

        return jax.lax.fori_loop(0, periods, once, (cache, jnp.zeros((period, 1, 2))))

    live = jax.jit(live)
    young, early = live(attention.empty_cache(window, 1, 2), 4)
    old, late = live(young, 142_860)  # a multiple of the window: the ring stands alike
    np.testing.assert_array_equal(late, early)
    jax.tree.map(np.testing.assert_array_equal, old, young)
    for _ in range(window):  # other places of the ring are no different
        young, late = live(young, 1)
        np.testing.assert_allclose(late, early, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_within_two_percent(kind):
    core, params = _core_and_params(_config(kind, layers=1))
    xs, is_first = jnp.asarray(_rows(19)), jnp.arange(17) == 6

    @jax.jit
    def run(params, xs):
        carry, unrolled, _ = core.unroll(params, None, xs[:17], is_first)
        carry, once = core.step(params, carry, xs[17], None)
        carry, twice = core.step(params, carry, xs[18], None)
        return carry, jnp.concatenate([unrolled, once[None], twice[None]])

    carry, expected = run(params, xs)
    narrow = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree))
    narrow_carry, actual = run(*narrow((params, xs)))
    testing.assert_same_structure(narrow_carry, carry, "the cache stays float32")
    assert actual.dtype == jnp.bfloat16
    error = np.linalg.norm(actual.astype(jnp.float32) - expected, axis=-1)
    assert (error < 0.02 * np.linalg.norm(expected, axis=-1)).all(), error


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_with_parameters_of_their_own_equal_solo_runs(kind):
    core, _ = _core_and_params(_config(kind))
    params = [_core_and_params(_config(kind), seed)[1] for seed in range(3)]
    xs, is_first = _rows(3 * 11).reshape(3, 11, IN_SIZE), np.arange(11) == 5

    def unroll(params, xs):
        return core.unroll(params, None, xs, is_first)

    together = jax.jit(jax.vmap(unroll))(jax.tree.map(lambda *x: jnp.stack(x), *params), xs)
    solo = jax.jit(unroll)
    for seed in range(3):
        mine = jax.tree.map(lambda x, i=seed: x[i], together)
        testing.assert_close(mine, solo(params[seed], xs[seed]), f"seed {seed}", 1e-6)


# ----------------------------------------------------------------------------------- cost and size


def test_work_grows_with_the_length_and_not_its_square():
    core = _config("rotary", width=64, window=16, block_size=None).make(IN_SIZE)
    params = jax.eval_shape(core.init, jax.random.key(0))

    def work_of(length):
        xs = jax.ShapeDtypeStruct((length, IN_SIZE), jnp.float32)
        first = jax.ShapeDtypeStruct((length,), bool)
        unroll = jax.jit(lambda *args: core.unroll(args[0], None, *args[1:])[1])
        return unroll.lower(params, xs, first).cost_analysis()["flops"]

    work = [work_of(length) for length in (512, 2048)]
    assert work[1] / work[0] < 4.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(kind, platform):
    core = _config(kind).make(IN_SIZE)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, carry = jax.eval_shape(core.init, key), core.initial_carry()
    x = jax.ShapeDtypeStruct((7, IN_SIZE), jnp.float32)
    first = jax.ShapeDtypeStruct((7,), bool)
    loss = lambda *args: jnp.sum(core.unroll(*args)[1])  # noqa: E731
    one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (x, first)]
    for function, arguments in (
        (core.init, (key,)),
        (core.step, (params, carry, *one)),
        (core.unroll, (params, carry, x, first)),
        (jax.grad(loss), (params, carry, x, first)),
    ):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
        assert exported.platforms == (platform,)


@pytest.mark.parametrize(
    "kind, width, layers, heads, window, feed_forward",
    [("rotary", 512, 2, 8, 128, 4), ("relative", 128, 3, 4, 16, 2), ("relative", 8, 1, 8, 5, 1)],
)
def test_parameter_count(kind, width, layers, heads, window, feed_forward):
    config = transformer.Config(width, layers, heads, window, feed_forward, kind)
    params = jax.eval_shape(config.make(30).init, jax.random.key(0))
    hidden = feed_forward * width
    part = 4 * width**2 + (heads * window if kind == "relative" else 0) + width
    net = 2 * width * hidden + hidden + width + width
    expected = 30 * width + 2 * width + layers * (part + net) + width
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_relative_biases_begin_with_slopes_that_halve():
    bias = transformer.linear_bias_init(jax.random.key(0), (8, 3))
    slopes = 0.5 ** np.arange(1, 9)
    np.testing.assert_allclose(bias, -slopes[:, None] * np.arange(3), rtol=1e-6)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(heads=3), "width 8 is no multiple of heads 3"),
        (dict(heads=8), "has 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        _config("rotary", **changes).make(IN_SIZE)


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="positions must be one of .*'learned'"):
        _config("learned").make(IN_SIZE)
