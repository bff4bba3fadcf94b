"""The causal convolution against float64 loops and its own one-row form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from tests.ssm import cases, oracles

SHAPES = [(length, width) for length in (1, 2, 3, 4, 9) for width in (1, 2, 4)]
IN_AXES = {"x": 0, "weight": None, "bias": None, "history": 0, "reset": 0}


def make_case(seed, length, width, channels=3):
    rng = np.random.default_rng(seed)
    case = {
        "x": rng.normal(size=(cases.BATCH, length, channels)),
        "weight": rng.normal(size=(width, channels)),
        "bias": rng.normal(size=channels),
        "history": rng.normal(size=(cases.BATCH, width - 1, channels)),
    }
    case = {name: value.astype(np.float32) for name, value in case.items()}
    return case | {"reset": cases.resets(rng, length, chunk_size=3)}


@jax.jit
def run(case):
    """y [B, T, C] and the histories after every row [B, T, W - 1, C]."""

    def stream(case):
        y, entries = ssm.causal_conv_stream(**case)
        rows = jnp.arange(case["x"].shape[0])
        return y, jax.vmap(ssm.conv_history_at, in_axes=(None, 0))(entries, rows)

    return jax.vmap(stream, in_axes=(IN_AXES,))(case)


@jax.jit
def run_steps(case):
    def stream(case):
        def one_row(history, row):
            x, reset = row
            history = jnp.where(reset, 0, history)
            history, y = ssm.causal_conv_step(history, x, case["weight"], case["bias"])
            return history, (y, history)

        return jax.lax.scan(one_row, case["history"], (case["x"], case["reset"]))[1]

    return jax.vmap(stream, in_axes=(IN_AXES,))(case)


@jax.jit
def gradients(case, y_bar):
    names = ("x", "weight", "bias", "history")

    def objective(arguments):
        return (run(case | arguments)[0] * y_bar).sum()

    return jax.grad(objective)({name: case[name] for name in names})


@pytest.mark.parametrize("length, width", SHAPES)
def test_stream_and_steps_equal_the_loop(length, width):
    for seed in range(3):
        case = make_case(seed, length, width)
        y, histories = oracles.causal_conv(**case)
        for got_y, got_histories in (run(case), run_steps(case)):
            assert cases.error(got_y, y) < 1e-6
            assert cases.error(got_histories, histories) < 1e-6


def test_gradients_equal_finite_differences():
    case = make_case(0, 9, 4)
    y_bar = np.random.default_rng(1).normal(size=case["x"].shape).astype(np.float32)
    for name, gradient in gradients(case, y_bar).items():
        for seed in range(5):
            direction = np.random.default_rng(seed).normal(size=case[name].shape)
            slope = cases.perturbed_slope(
                lambda **c: (oracles.causal_conv(**c)[0] * y_bar).sum(), case, name, direction
            )
            assert abs((gradient * direction).sum() - slope) < 1e-4 * (1 + abs(slope)), name


def test_no_history_means_zeros():
    case = make_case(2, 9, 4)
    lane = {k: case[k] if k in ("weight", "bias") else case[k][0] for k in case}
    zeros = {name: np.zeros_like(lane[name]) for name in ("history", "reset")}
    y, entries = ssm.causal_conv_stream(lane["x"], lane["weight"], lane["bias"])
    wanted, histories = oracles.causal_conv(**(lane | zeros))
    assert cases.error(y, wanted) < 1e-6
    assert cases.error(ssm.conv_history_at(entries, 1), histories[1]) < 1e-6


def test_bfloat16_inputs_give_bfloat16_outputs():
    case = make_case(3, 9, 4)
    low = {k: v if k == "reset" else jnp.asarray(v, jnp.bfloat16) for k, v in case.items()}
    for y, histories in (run(low), run_steps(low)):
        assert y.dtype == histories.dtype == jnp.bfloat16
        assert cases.error(y, oracles.causal_conv(**case)[0]) < 0.02


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": np.zeros((4, 2))}, "`weight` has shape"),
        ({"bias": np.zeros(1)}, "`bias` has shape"),
        ({"history": np.zeros((4, 3))}, "`history` has shape"),
        ({"reset": np.zeros(9)}, "`reset` has dtype"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    case = make_case(0, 9, 4)
    lane = {k: case[k] if k in ("weight", "bias") else case[k][0] for k in case}
    with pytest.raises(ValueError, match=message):
        ssm.causal_conv_stream(**(lane | change))
