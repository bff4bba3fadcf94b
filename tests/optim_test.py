"""Optimisers: golden LaProp steps, learning rates that change or are traced, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import optim


def _trace(optimiser, gradients, start=1.0):
    """Parameters after each of the gradients."""

    def body(loop, gradient):
        params, opt = loop
        params, opt, _ = optim.apply_gradients(optimiser, gradient, opt, params)
        return (params, opt), params

    params = jnp.float32(start)
    gradients = jnp.asarray(gradients, jnp.float32)
    return jax.lax.scan(body, (params, optimiser.init(params)), gradients)[1]


@pytest.mark.parametrize(
    "gradients, expected",
    [
        ((0.5, 0.5, -0.25, 0.1), (0.99, 0.98, 0.97582084, 0.97208798)),
        ((-2.0, 1.0, 1.0, 0.0), (1.01, 1.01140763, 1.00968593, 1.00846488)),
    ],
)
def test_laprop_golden(gradients, expected):
    np.testing.assert_allclose(_trace(optim.laprop(0.01), gradients), expected, rtol=3e-7)


def test_laprop_keeps_a_changing_learning_rate_inside_the_momentum():
    rates = np.array([0.01, 0.03, 0.002, 0.05, 0.0, 0.02])
    gradients = np.random.default_rng(0).normal(size=6)
    params, m, v, c, expected = 1.0, 0.0, 0.0, 0.0, []
    for k, (rate, g) in enumerate(zip(rates, gradients, strict=True), start=1):
        v = 0.999 * v + 0.001 * g**2
        m = 0.9 * m + 0.1 * rate * g / (np.sqrt(v / (1 - 0.999**k)) + 1e-20)
        c = 0.9 * c + 0.1 * rate
        params -= rate * m / c
        expected.append(params)
    schedule = jnp.asarray(rates, jnp.float32)
    actual = _trace(optim.laprop(lambda count: schedule[count]), gradients)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 0.99999])
def test_laprops_correction_is_that_of_float64(decay):
    steps = np.arange(1, 20_001)
    wanted = 1 - np.float64(decay) ** steps
    found = jax.jit(lambda k: optim._share_seen(decay, k))(jnp.asarray(steps, jnp.int32))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_laprop_survives_gradients_that_are_zero():
    np.testing.assert_array_equal(_trace(optim.laprop(0.01), np.zeros(3)), np.ones(3))


def test_laprop_does_not_care_about_the_scale_of_tiny_gradients():
    gradients = np.array([0.5, -0.2, 0.1])
    tiny = _trace(optim.laprop(0.01), 1e-12 * gradients)
    np.testing.assert_allclose(tiny, _trace(optim.laprop(0.01), gradients), rtol=1e-5)


def test_laprop_moments_are_float32_for_half_precision_parameters():
    state = optim.laprop(0.01).init(jnp.zeros(2, jnp.float16))
    assert state.mu.dtype == state.nu.dtype == jnp.float32


def test_laprop_updates_have_the_dtype_of_the_gradients():
    optimiser = optim.laprop(0.01)
    gradient = jnp.ones(2, jnp.bfloat16)
    assert optimiser.update(gradient, optimiser.init(gradient))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["laprop", "adam"])
@pytest.mark.parametrize("size", [0.0, 300.0])  # eps and the square vanish or overflow in float16
def test_half_precision_parameters_take_the_steps_of_float32(name, size):
    optimiser = optim.Config(name, 0.1, warmup=0, eps=1e-8, weight_decay=0.5).make()
    found = {}
    for dtype in (jnp.float16, jnp.float32):
        params, gradient = jnp.ones(3, dtype), jnp.array([size, -size, 0.0], dtype)
        opt = optimiser.init(params)
        for _ in range(3):
            params, opt, norm = optim.apply_gradients(optimiser, gradient, opt, params)
        assert params.dtype == dtype and np.isfinite(norm)
        found[dtype] = np.asarray(params, np.float32)
    np.testing.assert_allclose(found[jnp.float16], found[jnp.float32], atol=2e-3)


@pytest.mark.parametrize("name", ["laprop", "adam"])
def test_warm_up_is_linear_from_the_first_update_on_and_then_constant(name):
    config = optim.Config(name, learning_rate=0.1, warmup=4)
    steps = -np.diff(_trace(config.make(), np.ones(6)), prepend=1.0)
    if name == "laprop":  # momentum weighs the rates, and a constant gradient's step is the rate
        np.testing.assert_allclose(steps, 0.1 * np.array([0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-5)
    else:
        np.testing.assert_allclose(steps[[0, 3, 5]], [0.025, 0.1, 0.1], rtol=1e-5)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert _trace(optim.Config(learning_rate=0.1, warmup=0).make(), [3.0])[0] == pytest.approx(0.9)


def test_gradients_are_clipped_by_their_norm_over_all_leaves():
    clipped = optim.Config(clip_norm=1.0, learning_rate=0.1, warmup=0).make()
    plain = optim.laprop(0.1)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    first = {"a": jnp.array([0.5]), "b": jnp.array([0.5])}
    large = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    shortened = {"a": jnp.array([0.6]), "b": jnp.array([0.8])}

    def second_step(optimiser, second):
        _, state = optimiser.update(first, optimiser.init(params))
        return jax.tree.leaves(optimiser.update(second, state)[0])

    expected = second_step(plain, shortened)
    np.testing.assert_allclose(second_step(clipped, large), expected, rtol=1e-5)
    assert not np.allclose(second_step(plain, large), expected, rtol=1e-3)


def test_a_traced_learning_rate_gives_under_vmap_what_it_gives_alone():
    gradients = np.array([0.5, -0.25, 0.1])
    rates = [0.0, 0.01, 0.02]

    def run(rate):
        return _trace(optim.Config(learning_rate=rate, warmup=2).make(), gradients)

    expected = [run(rate) for rate in rates]
    np.testing.assert_allclose(jax.vmap(run)(jnp.array(rates)), expected, rtol=1e-6)


def test_a_learning_rate_of_zero_moves_nothing():
    config = optim.Config(learning_rate=0.0, warmup=0)
    np.testing.assert_array_equal(_trace(config.make(), [1.0, -2.0]), [1.0, 1.0])


def test_apply_gradients_reports_the_norm_before_clipping():
    optimiser = optim.Config(clip_norm=0.1).make()
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, _, norm = optim.apply_gradients(optimiser, gradients, optimiser.init(params), params)
    assert norm == pytest.approx(5.0)


def test_adam_is_that_of_optax():
    config = optim.Config("adam", 0.01, clip_norm=1e9, warmup=0, eps=1e-8)
    gradients = [0.5, -0.2, 3.0]
    expected = _trace(optax.adam(0.01), gradients)
    np.testing.assert_allclose(_trace(config.make(), gradients), expected, rtol=1e-6)


def test_moving_average_of_a_constant_golden():
    averages = [0.0]
    for _ in range(3):
        averages.append(float(optim.moving_average(averages[-1], 10.0, 0.01)))
    np.testing.assert_allclose(averages[1:], [0.1, 0.199, 0.29701], rtol=1e-6)


@pytest.mark.parametrize("limit", [0, 2**20], ids=["leaf by leaf", "one vector"])
def test_leaves_get_the_same_steps_in_one_vector_as_alone(limit, monkeypatch):
    monkeypatch.setattr(optim, "FLAT_AT_MOST", limit)
    params = {"a": jnp.ones((2, 3)), "b": jnp.array([1.0, -2.0])}
    optimiser = optim.Config(learning_rate=0.01, warmup=2, clip_norm=1.0).make()
    opt = optimiser.init(params)
    assert ((8,) in {leaf.shape for leaf in jax.tree.leaves(opt)}) == (limit >= 8)
    grads = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([0.5, 4.0])}
    plain = optax.chain(
        optim.clip_by_global_norm(1.0),
        optim.laprop(lambda count: 0.01 * jnp.minimum(1.0, (count + 1) / 2)),
    )
    state, expected = plain.init(params), params
    for _ in range(3):
        params, opt, _ = optim.apply_gradients(optimiser, grads, opt, params)
        updates, state = plain.update(grads, state)
        expected = optax.apply_updates(expected, updates)
    for name, leaf in expected.items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-6)


def test_a_tensor_s_gradient_is_clipped_by_the_norm_of_the_tensor():
    """‖g‖ is at most 0.5 ‖p‖, tensor by tensor, and of a tensor of zeros at most 0.5 · 1e-3."""
    params = {"long": jnp.array([3.0, 4.0]), "short": jnp.zeros(2), "fine": jnp.array([10.0])}
    grads = {
        "long": jnp.array([0.0, 50.0]),
        "short": jnp.array([1.0, 0.0]),
        "fine": jnp.array([2.0]),
    }
    clipped, _ = optim.clip_by_ratio(0.5).update(grads, (), params)
    np.testing.assert_allclose(clipped["long"], [0.0, 2.5], rtol=1e-6)
    np.testing.assert_allclose(clipped["short"], [5e-4, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(clipped["fine"], grads["fine"])


def test_the_ratio_holds_before_tensors_become_one_vector():
    """Adam's first moment after a step is (1 - b1) times the clipped gradient of each tensor."""
    config = optim.Config("adam", 1e-3, clip_norm=1e9, clip_ratio=0.5, warmup=0, eps=1e-8)
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([8.0])}
    optimiser = config.make()
    grads = {"a": jnp.array([0.0, 50.0]), "b": jnp.array([1.0])}
    _, state = optimiser.update(grads, optimiser.init(params), params)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (3,)]
    assert any(np.allclose(x, [0.0, 0.25, 0.1]) for x in moments)
