"""S5 core: initial blocks and sizes, the layer against complex NumPy, checkpoints of its carry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from mbrl_jax.cores import s4, s5
from mbrl_jax.ssm import hippo
from tests.cores.s4_test import (
    check_carry_is_donated_and_kept,
    check_programs,
    gated,
    step_and_unroll,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = s5.Config(width=3, layers=1, state_size=8, blocks=2, chunk_size=4)


@functools.cache
def published():
    """Initial parameters of one layer of the default size, with B and C as complex numbers."""
    mixer = s5.mixer(s5.Config())
    initialise = jax.jit(
        lambda key: mixer.module.init(key, mixer.initial_carry(), jnp.zeros(512), method="step")
    )
    params = jax.tree.map(np.asarray, initialise(jax.random.key(0))["params"])
    return params, *(params[name][0] + 1j * params[name][1] for name in ("b", "c"))


def test_states_start_as_blocks_of_hippo():
    params, _, _ = published()
    poles = -np.exp(params["log_decay"]) + 1j * params["frequency"]
    block = hippo.hippo_legs(16)[0]
    np.testing.assert_allclose(poles.reshape(8, 8), np.tile(block, (8, 1)), rtol=1e-6)


def test_initial_inputs_are_real_weights_in_the_basis_of_each_block():
    _, B, _ = published()
    vectors = hippo.hippo_legs(16)[1]
    real = 2 * (vectors @ B.reshape(8, 8, 512)).real  # V B~ and its conjugate's half: B again
    # A real B, seen through the halves: V^H takes it back to where it was.
    np.testing.assert_allclose(vectors.conj().T @ real, B.reshape(8, 8, 512), atol=1e-6)
    np.testing.assert_allclose(real.std(), 128**-0.5, rtol=0.03)
    assert np.abs(real).max() <= 2 / 0.8796 * 128**-0.5 + 1e-6  # truncated at two deviations


def test_initial_outputs_have_their_published_scale():
    _, _, C = published()
    # Rows of V are unitary over both halves: C V has the variance of C, 2 / state_size.
    np.testing.assert_allclose((np.abs(C) ** 2).mean(), 2 / 128, rtol=0.03)


def test_initial_step_sizes_and_skips():
    params, _, _ = published()
    log_dt = params["log_dt"] / np.log(10)
    assert log_dt.shape == (64,) and log_dt.min() >= -3.001 and log_dt.max() <= -0.999
    np.testing.assert_allclose(np.quantile(log_dt, [0.25, 0.5, 0.75]), [-2.5, -2, -1.5], atol=0.3)
    np.testing.assert_allclose(params["skip"].std(), 1, rtol=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_the_layer_is_the_published_one(rule):
    config = dataclasses.replace(SMALL, rule=rule)
    params, us, outputs = step_and_unroll(s5.mixer(config))
    A = -np.exp(params["log_decay"].astype(np.float64)) + 1j * params["frequency"]
    B, C = (params[name][0] + 1j * params[name][1] for name in ("b", "c"))
    dt = np.exp(params["log_dt"].astype(np.float64))
    decay, gain = np.exp(dt * A), (np.exp(dt * A) - 1) / A
    if rule == "bilinear":
        decay, gain = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
    x, y = np.zeros(4, complex), []
    for u in us:
        x = decay * x + gain * (B @ u)
        y.append(2 * (C @ x).real)
    wanted = gated(np.stack(y) + params["skip"] * us, params["out_proj"])
    for output in outputs:
        np.testing.assert_allclose(output, wanted, atol=1e-5)


def test_programs_of_the_core():
    check_programs(SMALL)


def test_carries_can_be_donated_and_reset():
    check_carry_is_donated_and_kept(SMALL)


@pytest.mark.parametrize("config", [SMALL, s4.Config(width=3, layers=1, state_size=4)])
def test_carries_survive_a_checkpoint(config, tmp_path):
    core = config.make(5)
    carry = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), core.initial_carry())
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "carry", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "carry", carry)
    assert jax.tree.structure(restored) == jax.tree.structure(carry)
    jax.tree.map(np.testing.assert_array_equal, restored, carry)


@pytest.mark.parametrize("change", [{"state_size": 6}, {"blocks": 3}])
def test_states_that_do_not_fill_the_blocks_are_refused(change):
    with pytest.raises(ValueError, match=r"is no positive multiple of 2 · blocks"):
        dataclasses.replace(SMALL, **change).make(4)
