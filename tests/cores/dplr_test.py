"""S4 core: where channels start, the layer against dense matrices, the order of a block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.cores import dplr
from mbrl_jax.networks.heads import RMS_EPS
from mbrl_jax.ssm import hippo, reference
from tests.cores.s4_test import (
    check_carry_is_donated_and_kept,
    check_programs,
    gated,
    gelu,
    step_and_unroll,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = dplr.Config(width=3, layers=2, state_size=4, chunk_size=4)


def complex_of(params):
    """Λ, P, B and C as complex numbers [W, N]."""
    poles = -np.exp(params["log_decay"].astype(np.float64)) + 1j * params["frequency"]
    return poles, *(params[name][0] + 1j * params[name][1] for name in "pbc")


def test_every_channel_starts_as_hippo_legs():
    mixer = dplr.mixer(dplr.Config(width=128))
    initialise = jax.jit(
        lambda key: mixer.module.init(key, mixer.initial_carry(), jnp.zeros(128), method="step")
    )
    params = jax.tree.map(np.asarray, initialise(jax.random.key(0))["params"])
    *legs, C = complex_of(params)
    for found, wanted in zip(legs, hippo.dplr_legs(64), strict=True):
        np.testing.assert_allclose(found, np.broadcast_to(wanted, (128, 32)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((np.abs(C) ** 2).mean(), 1.0, rtol=0.1)  # a standard normal
    log_dt = params["log_dt"] / np.log(10)
    np.testing.assert_allclose(np.quantile(log_dt, [0, 0.5, 1]), [-3, -2, -1], atol=0.3)
    np.testing.assert_array_equal(params["skip"], np.ones(128))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_the_layer_is_the_published_one():
    params, us, outputs = step_and_unroll(dplr.mixer(SMALL))
    A, P, B, C = complex_of(params)
    dt = np.exp(params["log_dt"].astype(np.float64))
    never, zeros = np.zeros(len(us), bool), np.zeros((2, 3))
    y, _ = reference.dplr(us, dt, A, P, B, C, params["skip"], never, zeros)
    for output in outputs:
        np.testing.assert_allclose(output, gated(y, params["out_proj"]), atol=1e-5)


def norm(x, scale, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def test_a_feed_forward_layer_ends_every_block():
    core = dataclasses.replace(SMALL, layers=3).make(5)
    params = jax.tree.map(np.asarray, jax.jit(core.init)(jax.random.key(0)))
    kinds = ["up" if "up" in params[f"mixers_{i}"] else "c" for i in range(5)]
    assert kinds == ["c", "c", "up", "c", "up"]  # the last block is shorter
    xs = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    never, zeros = np.zeros(6, bool), np.zeros((2, 3))
    stem = xs @ params["stem"]["kernel"] + params["stem"]["bias"]
    r = norm(stem, params["stem_norm"]["scale"], RMS_EPS)
    r = r / (1 + np.exp(-r))
    for i, kind in enumerate(kinds):
        u, layer = norm(r, params[f"norms_{i}"]["scale"]), params[f"mixers_{i}"]
        if kind == "up":
            inner = gelu(u @ layer["up"]["kernel"] + layer["up"]["bias"])
            r = r + inner @ layer["down"]["kernel"] + layer["down"]["bias"]
            continue
        A, P, B, C = complex_of(layer)
        y, _ = reference.dplr(u, np.exp(layer["log_dt"]), A, P, B, C, layer["skip"], never, zeros)
        r = r + gated(y, layer["out_proj"])
    found = jax.jit(lambda xs: core.unroll(params, None, xs, never)[1])(xs)
    np.testing.assert_allclose(found, norm(r, params["final_norm"]["scale"]), atol=2e-5)


def test_programs_of_the_core():
    check_programs(SMALL)


def test_carries_can_be_donated_and_reset():
    check_carry_is_donated_and_kept(SMALL)


def test_states_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="state_size 5 is no positive multiple of 2"):
        dplr.Config(state_size=5).make(4)
