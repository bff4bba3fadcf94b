"""`ssm.ssd` against float64 loops and its own one-row form, resets and options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from tests.ssm import cases, oracles

METHODS = ("chunked", "chunked_sequential", "recurrent")
CHUNK = 8
DIFFERENTIABLE = ("x", "dt", "A", "B", "C", "D", "initial_state")
# Heads, channels, groups, states.
LAYOUTS = [(2, 3, 1, 4), (4, 2, 2, 3), (3, 1, 3, 2), (1, 4, 1, 1)]
SHAPES = [(length, layout) for length in (1, 7, 8, 9, 16, 21) for layout in LAYOUTS[:2]]
SHAPES += [(length, layout) for length in (1, 9, 21) for layout in LAYOUTS[2:]]
# Every second one: `random_cases_test` holds more of them, with gradients.
SHAPES = [
    pytest.param(*shape, marks=[pytest.mark.slow] if (i + i // 2) % 2 else [])
    for i, shape in enumerate(SHAPES)
]


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run(case, method="auto", chunk_size=CHUNK):
    return ssm.ssd(**case, return_final_state=True, chunk_size=chunk_size, method=method)


# The breadth of shapes is all compile time: LLVM's optimiser would double it.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def run_all_methods(case):
    return [
        ssm.ssd(**case, return_final_state=True, chunk_size=CHUNK, method=method)
        for method in METHODS
    ]


@jax.jit
def run_steps(case):
    """States [T, N, H, P] and y [T, H, P] of the one-row form over one stream."""

    def one_row(state, row):
        state = jnp.where(row["reset"], 0, state)
        state, y = ssm.ssd_step(
            state, row["x"], row["dt"], case["A"], row["B"], row["C"], case["D"]
        )
        return state, (state, y)

    rows = {name: case[name] for name in ("x", "dt", "B", "C", "reset")}
    return jax.lax.scan(one_row, case["initial_state"], rows)[1]


def stream(case, lane):
    """One stream of a case."""
    return {name: v if name in ("A", "D") else v[lane] for name, v in case.items()}


def cotangents(case):
    rng = np.random.default_rng(1)
    return [rng.normal(size=case[name].shape).astype(np.float32) for name in ("x", "initial_state")]


@pytest.mark.parametrize("length, layout", SHAPES)
def test_all_methods_equal_the_recurrence(length, layout):
    # 18 shapes, 3 draws of values, 4 streams with different resets each.
    for seed in range(3):
        case = cases.ssd(seed, length, *layout, chunk_size=CHUNK)
        y, states = oracles.ssd(**case)
        for method, (got_y, got_final) in zip(METHODS, run_all_methods(case), strict=True):
            assert cases.error(got_y, y) < 1e-5, method
            assert cases.error(got_final, states[:, -1]) < 1e-5, method


def test_the_adjoint_equals_finite_differences():
    case = cases.ssd(0, 5, *LAYOUTS[1], chunk_size=2)
    y_bar, final_bar = cotangents(case)
    wanted = oracles.ssd_adjoint(**case, y_bar=y_bar, final_bar=final_bar)

    def objective(**arguments):
        y, states = oracles.ssd(**arguments)
        return (y * y_bar).sum() + (states[:, -1] * final_bar).sum()

    for name in DIFFERENTIABLE:
        direction = np.random.default_rng(2).normal(size=case[name].shape)
        slope = cases.perturbed_slope(objective, case, name, direction)
        assert abs(slope - (wanted[name] * direction).sum()) < 1e-6 * (1 + abs(slope)), name


@pytest.mark.parametrize("length, layout", [(5, LAYOUTS[0]), (21, LAYOUTS[0]), (21, LAYOUTS[1])])
def test_steps_and_state_at_equal_the_stream(length, layout):
    case = cases.ssd(3, length, *layout, chunk_size=CHUNK)

    @jax.jit
    def whole(case):
        y, final, entries = ssm.ssd_stream(**case, chunk_size=CHUNK)
        rows = jnp.arange(length)
        return y, final, jax.vmap(ssm.ssd_state_at, in_axes=(None, 0))(entries, rows)

    for lane in range(cases.BATCH):
        y, final, states_at = whole(stream(case, lane))
        states, step_y = run_steps(stream(case, lane))
        assert cases.error(y, step_y) < 1e-5
        assert cases.error(states_at, states) < 1e-5
        assert cases.error(final, states[-1]) < 1e-5


@pytest.mark.parametrize("length", [5, 13])
def test_no_initial_state_means_zeros(length):
    case = cases.ssd(4, length)
    zeros = case | {"initial_state": np.zeros_like(case["initial_state"])}
    zeros |= {"reset": np.zeros_like(case["reset"]), "D": np.zeros_like(case["D"])}
    without = case | {"initial_state": None, "reset": None, "D": None}
    for got, wanted in zip(run_all_methods(without), run_all_methods(zeros), strict=True):
        assert cases.error(got[0], wanted[0]) < 1e-6
        assert cases.error(got[1], wanted[1]) < 1e-6

    @jax.jit
    def last_state(lane):
        entries = ssm.ssd_stream(**lane, chunk_size=CHUNK)[2]
        return ssm.ssd_state_at(entries, length - 1)

    states, _ = run_steps(stream(zeros, 3))
    assert cases.error(last_state(stream(zeros, 3) | {"initial_state": None}), states[-1]) < 1e-5


def test_a_reset_hides_the_past():
    case, other = cases.ssd(5, 21), cases.ssd(6, 21)
    case["reset"][:] = np.arange(21) == 10
    changed = case | {"initial_state": other["initial_state"]}
    for name in ("x", "B", "C"):
        changed[name] = np.concatenate([other[name][:, :10], case[name][:, 10:]], 1)
    slower = changed | {"dt": case["dt"] * np.where(np.arange(21) < 10, 3.0, 1.0)[:, None]}
    slower["dt"] = slower["dt"].astype(np.float32)
    for method in METHODS:
        y, final = run(case, method)
        changed_y, changed_final = run(changed, method)
        np.testing.assert_array_equal(y[:, 10:], changed_y[:, 10:])
        np.testing.assert_array_equal(final, changed_final)
        # Earlier step sizes are in the running sums, and so in their rounding.
        assert cases.error(run(slower, method)[0][:, 10:], y[:, 10:]) < 1e-5


def test_chunk_size_changes_nothing():
    case = cases.ssd(9, 21)
    y, _ = oracles.ssd(**case)
    for chunk_size in (1, 5):
        assert cases.error(run(case, "chunked", chunk_size)[0], y) < 1e-5


def test_equal_steps_in_the_longest_chunks():
    # What is left of a rounded decay is the same in every row here: it adds up over a chunk.
    case = cases.ssd(10, 6000, 1, 2, 1, 2)
    case["dt"] = np.full_like(case["dt"], 0.0123)
    case["A"] = np.full_like(case["A"], -3.0)
    y, states = oracles.ssd(**case)
    got_y, got_final = run(case, "auto", 6000)
    assert cases.error(got_y, y) < 1e-5
    assert cases.error(got_final, states[:, -1]) < 1e-5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"A": np.zeros(3)}, "`A` has shape"),
        ({"B": np.zeros((4, 6, 2))}, "`B` has shape"),
        ({"initial_state": np.zeros((4, 2, 3, 4))}, "`initial_state` has shape"),
        ({"reset": np.zeros((4, 6))}, "`reset` has dtype"),
        ({"chunk_size": 0}, "`chunk_size` is 0"),
        ({"method": "fast"}, "`method` is 'fast'"),
        ({name: np.zeros((4, 6, 4, 4)) for name in ("B", "C")}, "4 groups"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ssm.ssd(**(cases.ssd(0, 6) | change))
