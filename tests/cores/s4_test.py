"""S4D core: initial poles and sizes, the layer against complex NumPy, what programs may contain."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.cores import s4
from mbrl_jax.ssm import hippo

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = s4.Config(width=3, layers=1, state_size=4, chunk_size=4)


def hippo_normal(size):
    """The real HiPPO-N matrix, entry by entry as S5's appendix B.1 has it."""
    rows = [
        [
            -0.5 if n == k else (0.5 if n < k else -0.5) * np.sqrt((2 * n + 1) * (2 * k + 1))
            for k in range(size)
        ]
        for n in range(size)
    ]
    return np.array(rows)


@pytest.mark.parametrize("size", [2, 6, 64])
def test_hippo_halves_rebuild_the_real_matrix(size):
    values, vectors = hippo.hippo_legs(size)
    assert (values.imag > 0).all() and (np.diff(values.imag) > 0).all()
    np.testing.assert_allclose(values.real, -0.5)
    rebuilt = 2 * ((vectors * values) @ vectors.conj().T).real
    np.testing.assert_allclose(rebuilt, hippo_normal(size), atol=1e-9 * size**2)


def test_published_poles():
    np.testing.assert_allclose(s4.initial_poles("lin", 6), -0.5 + 1j * np.pi * np.arange(3))
    inverse = [6 / np.pi * (6 / (2 * n + 1) - 1) for n in range(3)]
    np.testing.assert_allclose(s4.initial_poles("inv", 6), -0.5 + 1j * np.array(inverse))
    np.testing.assert_array_equal(s4.initial_poles("legs", 6), hippo.hippo_legs(6)[0])


@functools.cache
def published(init):
    """Initial parameters of one layer of 512 channels with 32 pairs of states."""
    mixer = s4.mixer(s4.Config(init=init))
    initialise = jax.jit(
        lambda key: mixer.module.init(key, mixer.initial_carry(), jnp.zeros(512), method="step")
    )
    return jax.tree.map(np.asarray, initialise(jax.random.key(0))["params"])


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_every_channel_starts_at_the_poles(init):
    params = published(init)
    poles = -np.exp(params["log_decay"]) + 1j * params["frequency"]
    wanted = np.broadcast_to(s4.initial_poles(init, 64), (512, 32))
    np.testing.assert_allclose(poles, wanted, rtol=1e-6)


def test_initial_step_sizes_outputs_and_skips():
    params = published("lin")
    steps = np.quantile(params["log_dt"] / np.log(10), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(steps, [-3, -2.5, -2, -1.5, -1], atol=0.1)
    variance = (params["c"] ** 2).sum(0).mean()  # of a complex standard normal
    np.testing.assert_allclose([variance, params["skip"].std()], [1, 1], rtol=0.1)
    sizes = {name: value.shape for name, value in params.items() if name != "out_proj"}
    assert sizes == {
        "log_dt": (512,),
        "log_decay": (512, 32),
        "frequency": (512, 32),
        "c": (2, 512, 32),
        "skip": (512,),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gated(y, out_proj):
    """GELU and GLU in float64."""
    projected = gelu(y) @ out_proj["kernel"].astype(np.float64) + out_proj["bias"]
    value, gate = np.split(projected, 2, -1)
    return value / (1 + np.exp(-gate))


def step_and_unroll(mixer, seed=0, length=6, width=3):
    """Parameters, inputs, outputs of `step` row by row, and of `unroll`."""
    us = np.random.default_rng(seed).normal(size=(length, width)).astype(np.float32)

    @jax.jit
    def run(key):
        start = mixer.initial_carry()
        params = mixer.module.init(key, start, us[0], method="step")
        advance = functools.partial(mixer.module.apply, params, method="step")
        stepped = jax.lax.scan(advance, start, us)[1]
        never = jnp.zeros(length, bool)
        unrolled = mixer.module.apply(params, None, us, never, method="unroll")[1]
        return params["params"], stepped, unrolled

    params, *outputs = jax.tree.map(np.asarray, run(jax.random.key(seed)))
    return params, us, outputs


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_the_layer_is_the_published_one(rule):
    config = dataclasses.replace(SMALL, rule=rule)
    params, us, outputs = step_and_unroll(s4.mixer(config))
    A = -np.exp(params["log_decay"].astype(np.float64)) + 1j * params["frequency"]
    C = params["c"][0] + 1j * params["c"][1]
    dt = np.exp(params["log_dt"].astype(np.float64))[:, None]
    decay, gain = np.exp(dt * A), (np.exp(dt * A) - 1) / A
    if rule == "bilinear":
        decay, gain = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
    y = [
        2 * sum(C * decay ** (t - j) * gain * us[j][:, None] for j in range(t + 1)).real.sum(1)
        for t in range(len(us))
    ]
    wanted = gated(np.stack(y) + params["skip"] * us, params["out_proj"])
    for output in outputs:
        np.testing.assert_allclose(output, wanted, atol=1e-5)


# ------------------------------------------------------------------------ programs and their parts


def loss_gradient(core):
    """Gradient of a loss on an unrolled sequence, vmapped over seeds, from `init` on."""

    def one_seed(key):
        params = core.init(key)
        xs = jax.random.normal(key, (9, 5))
        unrolled = lambda params: core.unroll(params, None, xs, jnp.arange(9) == 4)[1]
        return jax.grad(lambda params: (unrolled(params) ** 2).sum())(params)

    return jax.jit(jax.vmap(one_seed))


def check_programs(config):
    """No LAPACK inside vmapped seeds; lowers for accelerators; every parameter learns."""
    program = loss_gradient(config.make(5))
    keys = jax.random.split(jax.random.key(0), 2)
    lowered = program.lower(keys)
    assert "lapack" not in lowered.as_text()
    for name, leaf in jax.tree_util.tree_leaves_with_path(lowered.compile()(keys)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name
    exported = jax.export.export(program, platforms=["cuda", "tpu"])(keys)
    assert exported.platforms == ("cuda", "tpu")


def check_carry_is_donated_and_kept(config):
    """Donated carries of vmapped streams; only the stream that starts anew loses its own."""
    core = config.make(5)
    params = jax.jit(core.init)(jax.random.key(0))
    step = jax.jit(jax.vmap(core.step, (None, 0, 0, 0)), donate_argnums=1)
    start = jax.tree.map(lambda x: jnp.stack([x, x]), core.initial_carry())
    fresh = jax.tree.map(jnp.copy, start)
    xs = jax.random.normal(jax.random.key(1), (2, 5))
    first, _ = step(params, start, xs, jnp.zeros(2, bool))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first))
    expected = jax.tree.map(lambda a, b: np.stack([a[0], b[1]]), fresh, first)
    wanted, _ = step(params, jax.tree.map(jnp.asarray, expected), xs, jnp.zeros(2, bool))
    second, _ = step(params, first, xs, jnp.array([True, False]))
    jax.tree.map(np.testing.assert_array_equal, second, wanted)


def test_programs_of_the_core():
    check_programs(dataclasses.replace(SMALL, init="legs"))


def test_carries_can_be_donated_and_reset():
    check_carry_is_donated_and_kept(SMALL)


def test_states_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="state_size 5 is no positive multiple of 2"):
        s4.Config(state_size=5).make(4)
