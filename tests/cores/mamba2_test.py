"""Mamba cores: golden outputs, parameter counts, initial ranges.

Golden numbers: shared/specs/drama.md sections 3, 7.1 and 10.3, computed there in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.cores import mamba, mamba2, stack

GOLDEN = mamba2.Config(width=2, layers=1, state_size=2, head_size=2, chunk_size=4)
OUTPUTS = [
    (0.51783612, 1.07208305),
    (0.76299345, 0.94189931),
    (0.30033304, 0.83123388),
    (0.74313415, 1.00662103),
    (0.89339662, 0.94677686),
]
STATE_AFTER_3 = [  # heads, channels, states
    [[0.009958, -0.004266], [0.008415, -0.001252]],
    [[-0.000433, 0.000349], [0.009477, -0.002328]],
]


def _golden_params():
    """Parameters of 10.3, which come as torch's [out, in]."""
    i, j = np.arange(14)[:, None], np.arange(2)[None]
    c, k = np.arange(8)[:, None], np.arange(4)[None]
    o, inner = np.arange(2)[:, None], np.arange(4)[None]
    params = {
        "in_proj": {"kernel": 0.5 * np.sin(1 + i + 14 * j).T},
        "conv_kernel": 0.5 * np.cos(1 + c + 8 * k).T,
        "conv_bias": 0.1 * np.sin(np.arange(8) + 1),
        "dt_bias": np.array([-1.0, -0.5]),
        "a_log": np.array([0.0, np.log(2.0)]),
        "skip": np.array([1.0, 0.75]),
        "norm": {"scale": 1 + 0.1 * np.arange(4)},
        "out_proj": {"kernel": 0.5 * np.sin(2 + o + 2 * inner).T},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


@pytest.fixture(scope="module")
def golden():
    """(outputs, carry after 3 rows) by stepping, and (outputs, rebuilt carry) by unrolling."""
    mixer = mamba2.mixer(GOLDEN)
    variables = {"params": _golden_params()}
    t, j = jnp.arange(5.0)[:, None], jnp.arange(2.0)[None]
    us = jnp.cos(t + 3 * j)

    @jax.jit
    def run():
        def body(carry, u):
            carry, y = mixer.module.apply(variables, carry, u, method="step")
            return carry, (carry, y)

        _, (carries, stepped) = jax.lax.scan(body, mixer.initial_carry(), us)
        _, unrolled, entries = mixer.module.apply(
            variables, None, us, jnp.zeros(5, bool), method="unroll"
        )
        third = jax.tree.map(lambda x: x[2], carries)
        return (stepped, third), (unrolled, mixer.carry_at(entries, 2))

    return run()


@pytest.mark.parametrize("way", [0, 1], ids=["step", "unroll"])
def test_mamba2_mixer_outputs_golden(golden, way):
    np.testing.assert_allclose(golden[way][0], OUTPUTS, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", [0, 1], ids=["step", "unroll"])
def test_mamba2_state_after_three_rows_golden(golden, way):
    state = np.asarray(golden[way][1].state).transpose(1, 2, 0)  # [N, H, P] -> heads first
    np.testing.assert_allclose(state, STATE_AFTER_3, atol=1e-6)


# -------------------------------------------------------------------------------------- parameters


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _mixer_params(mixer, width):
    def init(key):
        u = jnp.zeros((width,))
        return mixer.module.init(key, mixer.initial_carry(), u, method="step")["params"]

    return jax.eval_shape(init, jax.random.key(0))


def test_mamba2_mixer_parameter_count():
    assert _count(_mixer_params(mamba2.mixer(mamba2.Config()), 512)) == 1_603_792


def test_mamba_mixer_parameter_count():
    assert _count(_mixer_params(mamba.mixer(mamba.Config()), 512)) == 1_694_720


@pytest.fixture(scope="module")
def published_mamba():
    """Initial parameters of one layer of the published Mamba-1."""
    mixer = mamba.mixer(mamba.Config())
    init = jax.jit(
        lambda key: mixer.module.init(key, mixer.initial_carry(), jnp.zeros(512), method="step")
    )
    return jax.tree.map(np.asarray, init(jax.random.key(0))["params"])


def test_initial_weights_of_mamba_fill_their_published_range(published_mamba):
    p = published_mamba
    for weights, bound in (
        (p["in_proj"]["kernel"], 512**-0.5),
        (p["x_proj"]["kernel"], 1024**-0.5),
        (p["dt_proj"]["kernel"], 32**-0.5),
        (p["out_proj"]["kernel"], 1024**-0.5 / 2**0.5),
        (p["conv_kernel"], 0.5),
        (p["conv_bias"], 0.5),
    ):
        np.testing.assert_allclose([weights.min(), weights.max()], [-bound, bound], rtol=0.01)
    assert (p["skip"] == 1).all()
    bias = p["dt_proj"]["bias"]
    np.testing.assert_allclose([bias.min(), bias.max()], [-6.9073, -2.2522], atol=0.02)
    np.testing.assert_allclose(np.exp(p["a_log"]), np.tile(np.arange(1, 17), (1024, 1)), rtol=1e-6)


def test_mamba_carries_what_the_published_one_does():
    """Of the inputs of the convolution one less: the newest is the row itself."""
    carry = mamba.Config().make(1030).initial_carry()
    assert sum(x.size for x in jax.tree.leaves(carry)) == 40_960 - 2 * 1024
    carry = mamba2.Config().make(1030).initial_carry()
    assert sum(x.size for x in jax.tree.leaves(carry)) == 41_216 - 2 * 1056


@pytest.mark.parametrize("num_actions, expected", [(6, 3_737_504), (18, 3_743_648)])
def test_sequence_model_parameter_count(num_actions, expected):
    core = mamba2.Config().make(1024 + num_actions)
    assert _count(jax.eval_shape(core.init, jax.random.key(0))) == expected


def test_each_block_adds_a_mixer_and_a_norm():
    counts = [
        _count(jax.eval_shape(mamba2.Config(layers=layers).make(1030).init, jax.random.key(0)))
        for layers in (1, 2)
    ]
    assert counts[1] - counts[0] == 1_604_304


@pytest.fixture(scope="module")
def published():
    """Initial parameters of one layer of the published Mamba-2."""
    mixer = mamba2.mixer(mamba2.Config())
    init = jax.jit(
        lambda key: mixer.module.init(key, mixer.initial_carry(), jnp.zeros(512), method="step")
    )
    return jax.tree.map(np.asarray, init(jax.random.key(0))["params"])


@pytest.mark.parametrize(
    "path, bound",
    [
        (("in_proj", "kernel"), 512**-0.5),
        (("out_proj", "kernel"), 1024**-0.5 / 2**0.5),
        (("conv_kernel",), 0.5),
        (("conv_bias",), 0.5),
    ],
    ids=lambda x: ".".join(x) if isinstance(x, tuple) else None,
)
def test_initial_weights_fill_their_published_range(published, path, bound):
    weights = published
    for name in path:
        weights = weights[name]
    np.testing.assert_allclose([weights.min(), weights.max()], [-bound, bound], rtol=0.01)


def test_initial_decay_rates_lie_between_1_and_16(published):
    assert (published["a_log"] >= 0).all() and (published["a_log"] <= 2.7726).all()
    assert np.ptp(published["a_log"]) > 1.0


def test_initial_skips_and_gate_norm_are_one(published):
    assert (published["skip"] == 1).all() and (published["norm"]["scale"] == 1).all()


@pytest.fixture(scope="module")
def dt_bias():
    return np.asarray(stack.dt_bias_init()(jax.random.key(0), (5000,)))


def test_initial_dt_biases_fill_their_published_range(dt_bias):
    np.testing.assert_allclose([dt_bias.min(), dt_bias.max()], [-6.9073, -2.2522], atol=0.01)


def test_initial_step_sizes_are_log_uniform(dt_bias):
    step_sizes = np.log10(np.log1p(np.exp(dt_bias.astype(np.float64))))
    quartiles = np.quantile(step_sizes, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-2.5, -2.0, -1.5], atol=0.05)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="head_size 48"):
        mamba2.Config(width=32, head_size=48).make(4)


@pytest.fixture(scope="module")
def long_memory():
    config = mamba2.Config(
        width=64, layers=1, head_size=1, decay_range=(1e-3, 0.1), step_range=(0.1, 1.0)
    )
    return config.make(8).init(jax.random.key(0))


def test_decays_begin_in_their_range(long_memory):
    leaves = {path[-1].key: np.asarray(x) for path, x in jax.tree.leaves_with_path(long_memory)}
    decays, steps = np.exp(leaves["a_log"]), np.log1p(np.exp(leaves["dt_bias"]))
    np.testing.assert_allclose([decays.min(), decays.max()], [1e-3, 0.1], atol=5e-3)
    np.testing.assert_allclose([steps.min(), steps.max()], [0.1, 1.0], rtol=0.1)


@pytest.mark.parametrize("name", ["decay_range", "step_range"])
def test_a_range_must_be_in_order(name):
    with pytest.raises(ValueError, match=f"{name} must be two numbers in order, not 2.0, 1.0"):
        mamba2.Config(**{name: (2.0, 1.0)}).make(8)
