"""`ssm.selective_scan` against float64 loops and its own one-row form, resets and options."""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm import fused_scan
from tests.ssm import cases, oracles

METHODS = ("associative", "recurrent", "fused")
CHUNK = 8
DIFFERENTIABLE = ("u", "delta", "A", "B", "C", "D", "initial_state")
# Channels, states.
LAYOUTS = [(5, 3), (1, 1), (2, 6)]
SHAPES = [(length, LAYOUTS[0]) for length in (1, 2, 7, 8, 9, 15, 16, 17)]
SHAPES += [(length, layout) for length in (1, 9) for layout in LAYOUTS[1:]]


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run(case, method="auto", chunk_size=CHUNK):
    return ssm.selective_scan(**case, return_final_state=True, chunk_size=chunk_size, method=method)


# The breadth of shapes is all compile time: LLVM's optimiser would double it.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def run_all_methods(case):
    return [
        ssm.selective_scan(**case, return_final_state=True, chunk_size=CHUNK, method=method)
        for method in METHODS
    ]


@jax.jit
def run_steps(case):
    """States [T, N, D] and y [T, D] of the one-row form over one stream."""

    def one_row(state, row):
        state = jnp.where(row["reset"], 0, state)
        state, y = ssm.selective_scan_step(
            state, row["u"], row["delta"], case["A"], row["B"], row["C"], case["D"]
        )
        return state, (state, y)

    rows = {name: case[name] for name in ("u", "delta", "B", "C", "reset")}
    return jax.lax.scan(one_row, case["initial_state"], rows)[1]


def cotangents(case):
    rng = np.random.default_rng(1)
    return [rng.normal(size=case[name].shape).astype(np.float32) for name in ("u", "initial_state")]


@pytest.mark.parametrize("length, layout", SHAPES)
def test_all_methods_equal_the_recurrence(length, layout):
    # 12 shapes, 3 draws of values, 4 streams with different resets each.
    for seed in range(3):
        case = cases.selective_scan(seed, length, *layout, chunk_size=CHUNK)
        y, states = oracles.selective_scan(**case)
        for method, (got_y, got_final) in zip(METHODS, run_all_methods(case), strict=True):
            assert cases.error(got_y, y) < 1e-5, method
            assert cases.error(got_final, states[:, -1]) < 1e-5, method


def test_the_adjoint_equals_finite_differences():
    case = cases.selective_scan(0, 5, chunk_size=2)
    y_bar, final_bar = cotangents(case)
    wanted = oracles.selective_scan_adjoint(**case, y_bar=y_bar, final_bar=final_bar)

    def objective(**arguments):
        y, states = oracles.selective_scan(**arguments)
        return (y * y_bar).sum() + (states[:, -1] * final_bar).sum()

    for name in DIFFERENTIABLE:
        direction = np.random.default_rng(2).normal(size=case[name].shape)
        slope = cases.perturbed_slope(objective, case, name, direction)
        assert abs(slope - (wanted[name] * direction).sum()) < 1e-6 * (1 + abs(slope)), name


@pytest.mark.parametrize("length", [5, 21])
def test_steps_and_state_at_equal_the_stream(length):
    case = cases.selective_scan(3, length, chunk_size=CHUNK)

    @jax.jit
    def whole(case):
        y, final, entries = ssm.selective_scan_stream(**case, chunk_size=CHUNK)
        rows = jnp.arange(length)
        return y, final, jax.vmap(ssm.scan_state_at, in_axes=(None, 0))(entries, rows)

    for lane in range(cases.BATCH):
        one = {name: v if name in ("A", "D") else v[lane] for name, v in case.items()}
        y, final, states_at = whole(one)
        states, step_y = run_steps(one)
        assert cases.error(y, step_y) < 1e-5
        assert cases.error(states_at, states) < 1e-5
        assert cases.error(final, states[-1]) < 1e-5


def test_gate_bias_and_softplus():
    case = cases.selective_scan(4, 13)
    rng = np.random.default_rng(4)
    z, delta_bias = rng.normal(size=(2, *case["u"].shape)).astype(np.float32)
    delta_bias = delta_bias[0, 0]
    got = run(case | {"z": z, "delta_bias": delta_bias}, "recurrent")[0]
    softly = ssm.selective_scan(**case, z=z, delta_bias=delta_bias, delta_softplus=True)
    shifted = case["delta"].astype(np.float64) + delta_bias
    gate = z / (1.0 + np.exp(-z.astype(np.float64)))
    y, _ = oracles.selective_scan(**(case | {"delta": shifted}))
    assert cases.error(got, y * gate) < 1e-5
    y, _ = oracles.selective_scan(**(case | {"delta": np.log1p(np.exp(shifted))}))
    assert cases.error(softly, y * gate) < 1e-5


def test_optional_arguments_default_to_nothing():
    case = cases.selective_scan(5, 13)
    zeros = {name: np.zeros_like(case[name]) for name in ("D", "reset", "initial_state")}
    nothing = dict.fromkeys(zeros)
    y = ssm.selective_scan(**(case | nothing), chunk_size=CHUNK)
    assert cases.error(y, run(case | zeros)[0]) < 1e-6


def test_a_reset_hides_the_past_exactly():
    case, other = cases.selective_scan(6, 21), cases.selective_scan(7, 21)
    case["reset"][:] = np.arange(21) == 10
    changed = case | {"initial_state": other["initial_state"]}
    for name in ("u", "delta", "B", "C"):
        changed[name] = np.concatenate([other[name][:, :10], case[name][:, 10:]], 1)
    for method in METHODS:
        y, final = run(case, method)
        changed_y, changed_final = run(changed, method)
        np.testing.assert_array_equal(y[:, 10:], changed_y[:, 10:])
        np.testing.assert_array_equal(final, changed_final)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"A": np.zeros((3, 3))}, "`A` has shape"),
        ({"B": np.zeros((4, 6, 2))}, "`B` has shape"),
        ({"z": np.zeros((4, 6))}, "`z` has shape"),
        ({"delta_bias": np.zeros(1)}, "`delta_bias` has shape"),
        ({"initial_state": np.zeros((4, 5, 3))}, "`initial_state` has shape"),
        ({"reset": np.zeros((4, 6))}, "`reset` has dtype"),
        ({"chunk_size": 0}, "`chunk_size` is 0"),
        ({"method": "chunked"}, "`method` is 'chunked'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ssm.selective_scan(**(cases.selective_scan(0, 6) | change))


def test_without_kernels_the_method_is_named(monkeypatch):
    auto = importlib.import_module("mbrl_jax.ssm.selective_scan").auto_method
    monkeypatch.setattr(fused_scan, "available", lambda: False)
    with pytest.warns(UserWarning, match="no Triton backend.* takes the associative method"):
        assert auto("gpu") == "associative"
    assert (auto("tpu"), auto("cpu")) == ("associative", "recurrent")
    with pytest.raises(ValueError, match="use method='auto'"):
        fused_scan.require()


def test_what_jax_says_of_its_kernels_ends_no_test():
    warnings.warn("The Pallas Triton backend is deprecated", DeprecationWarning, stacklevel=1)
