"""Mamba-3's layer: its two published rates, rotation, sizes; `tests/ssm` has the recurrence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.cores import mamba2, mamba3

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = mamba3.Config(width=8, layers=1, state_size=8, head_size=4, chunk_size=4)
CARRY = mamba3.mixer(CONFIG).initial_carry()


def test_both_published_rates():
    x = jnp.array([-3.0, -1.0, 0.0, 2.0])
    np.testing.assert_allclose(mamba3._RATES["heavy_tail"](x), [0.25, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(mamba3._RATES["softplus"](x), np.log1p(np.exp(x)), rtol=1e-6)
    slope = jax.vmap(jax.grad(mamba3._heavy_tail))(jnp.array([-1.0, -1e-6, 1e-6, 1e30]))
    np.testing.assert_allclose(slope, [0.25, 1.0, 1.0, 1.0], rtol=1e-5)


@pytest.mark.parametrize("rate", ["heavy_tail", "softplus"])
def test_no_state_stays_for_ever(rate):
    mixer = mamba3.mixer(dataclasses.replace(CONFIG, rate=rate)).module
    params = mixer.init(jax.random.key(0), CARRY, jnp.zeros((8,)), method="step")
    rows = mixer.apply(params, -1e6 * jnp.ones((8,)), method="_split")
    assert (rows.rate >= mamba3.SLOWEST * (1 - 1e-6)).all()


def test_pairs_turn_and_keep_their_length():
    x = jax.random.normal(jax.random.key(0), (5, 2, 8))
    angle = jax.random.uniform(jax.random.key(1), (5, 2, 2), maxval=6.0)
    found = mamba3.turned(x, angle)
    a = (x[..., 0:2] + 1j * x[..., 2:4]) * np.exp(1j * np.asarray(angle))
    np.testing.assert_allclose(found[..., 0:2], a.real, atol=1e-5)
    np.testing.assert_allclose(found[..., 2:4], a.imag, atol=1e-5)
    np.testing.assert_array_equal(found[..., 4:], x[..., 4:])  # half of the states do not turn


def test_angles_add_up_since_the_last_reset():
    rng = np.random.default_rng(0)
    turn = rng.uniform(-3, 3, (50, 2, 3)).astype(np.float32)
    resets, before = rng.random(50) < 0.1, rng.uniform(0, 6, (2, 3)).astype(np.float32)
    found = jax.jit(mamba3.angles_of)(turn, resets, before)
    angle = before.astype(np.float64)
    for t in range(50):
        angle = np.where(resets[t], 0.0, angle) + turn[t]
        np.testing.assert_allclose(np.exp(1j * found[t]), np.exp(1j * angle), atol=1e-5)
    assert (found >= 0).all() and (found < mamba3.TURN + 1e-5).all()


def test_sizes():
    assert (CONFIG.heads, CONFIG.pairs) == (4, 2)
    assert mamba3.Config(state_size=128, turning=0.5).pairs == 32
    params = jax.eval_shape(mamba3.Config().make(512).init, jax.random.key(0))
    # stem, its norm and the last norm; per layer a norm and the mixer
    inner, states, heads, pairs = 1024, 16, 16, 4
    mixer = 512 * (2 * inner + 2 * states + 3 * heads + pairs) + inner * 512
    mixer += 2 * heads + 2 * states + 2 * heads * states
    expected = 512 * 512 + 512 + 512 + 512 + 2 * (512 + mixer)
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no multiple of head_size"):
        dataclasses.replace(CONFIG, head_size=5).make(4)
    with pytest.raises(ValueError, match="in order"):
        dataclasses.replace(CONFIG, step_range=(0.2, 0.1)).make(4)
    with pytest.raises(ValueError, match="decay_range must be two numbers in order"):
        mamba2.Config(8, head_size=4, decay_range=(2.0, 1.0)).make(4)
