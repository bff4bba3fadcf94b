"""`ssm.dplr` against dense matrices in complex128, finite differences and the published kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm import hippo, low_rank, reference
from tests.ssm import cases

CHUNK, CHANNELS, PAIRS, DRAWS = 4, 3, 4, 18
SYSTEM = ("dt", "A", "P", "B", "C", "D")  # without a batch axis
METHODS = low_rank.METHODS[1:]
# The breadth of shapes is all compile time: LLVM's optimiser would double it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_case(seed, length, extreme=False):
    """Arguments by name; extreme ones reach dt from 1e-6 to 50, rates of 0 and 100, |P| of 30."""
    rng = np.random.default_rng(seed)
    system = (CHANNELS, PAIRS)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def complex_normal(*shape):
        return (normal(*shape) + 1j * normal(*shape)).astype(np.complex64)

    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), CHANNELS))
    A = -np.exp(rng.uniform(np.log(0.05), np.log(4.0), system)) + 1j * rng.uniform(-6, 6, system)
    P = complex_normal(*system)
    if extreme:
        dt = np.array([1e-6, 50.0, np.exp(rng.uniform(np.log(1e-6), np.log(50.0)))])
        A = np.where(rng.random(system) < 0.3, -100.0, A.real) + 1j * A.imag
        A.flat[-1] = 0.0  # an integrator
        P = P * np.float32(rng.choice([0.0, 30.0]))
    return {
        "u": normal(cases.BATCH, length, CHANNELS),
        "dt": dt.astype(np.float32),
        "A": A.astype(np.complex64),
        "P": P,
        "B": complex_normal(*system),
        "C": complex_normal(*system),
        "D": normal(CHANNELS),
        "reset": cases.resets(rng, length, CHUNK),
        "initial_state": complex_normal(cases.BATCH, PAIRS, CHANNELS),
    }


def complex_error(got, wanted):
    """Largest difference, relative to the largest value wanted (or to 1e-3); NaN fails."""
    got, wanted = np.asarray(got, np.complex128), np.asarray(wanted)
    assert got.shape == wanted.shape and np.isfinite(got).all()
    return np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-3)


def run(method, case, chunk_size=CHUNK):
    y, final = ssm.dplr(**case, return_final_state=True, method=method, chunk_size=chunk_size)
    return y, jax.lax.complex(*final)


def objective(y, final, bars):
    return (y * bars[0]).sum() + (final * bars[1].conj()).real.sum()


@functools.partial(quick_jit, static_argnames=("method", "chunk"))
def all_draws(method, chunk, draws, bars):
    """y, final state and gradients by name of every draw."""

    def one_draw(case, bars):
        def value(arguments):
            y, final = run(method, case | arguments, chunk)
            return objective(y, final, bars), (y, final)

        arguments = {name: x for name, x in case.items() if name != "reset"}
        gradients, (y, final) = jax.grad(value, has_aux=True)(arguments)
        return y, final, gradients

    return jax.vmap(one_draw)(draws, bars)


def stacked(length):
    draws = [make_case(i + 100 * length, length, extreme=i % 2) for i in range(DRAWS)]
    rng = np.random.default_rng(length)
    normal = lambda like: rng.normal(size=like.shape).astype(np.float32)  # noqa: E731
    bars = []
    for case in draws:
        state = case["initial_state"]
        bars.append((normal(case["u"]), (normal(state) + 1j * normal(state))))
    stack = lambda rows: jax.tree.map(lambda *x: np.stack(x), *rows)  # noqa: E731
    return draws, bars, stack(draws), stack(bars)


def slope(case, name, direction, bars):
    """Of the objective in float64 along a direction, by central differences."""
    value = case[name].astype(np.result_type(case[name], np.float64))

    def at(step):
        y, states = reference.dplr(**(case | {name: value + step * direction}))
        return objective(y, states[:, -1], bars)

    return (at(1e-5) - at(-1e-5)) / 2e-5


# Lengths around one and several chunks.
PROGRAMS = [
    *(("chunked", 1, CHUNK), ("chunked", 9, CHUNK), ("chunked", 9, 16)),
    *(("chunked", 21, 8), ("recurrent", 7, CHUNK)),
]


@pytest.mark.parametrize("method, length, chunk", PROGRAMS)
def test_outputs_and_gradients_equal_the_dense_recurrence(method, length, chunk):
    draws, bars, *together = stacked(length)
    results = jax.tree.map(np.asarray, all_draws(method, chunk, *together))
    rng = np.random.default_rng(2)
    for i, case in enumerate(draws):
        y, final, gradients = jax.tree.map(lambda x, i=i: x[i], results)
        wanted_y, states = reference.dplr(**case)
        assert complex_error(y, wanted_y) < 1e-5
        assert complex_error(final, states[:, -1]) < 1e-5
        for name, gradient in gradients.items():
            # Relative to the argument, so that a step as small as 1e-6 stays above 0.
            size = np.abs(case[name])
            direction = size * rng.normal(size=size.shape)
            if np.iscomplexobj(case[name]):
                direction = direction + 1j * size * rng.normal(size=size.shape)
            parts = gradient.astype(np.result_type(gradient, np.float64)) * direction
            off = abs(parts.real.sum() - slope(case, name, direction, bars[i]))
            assert off < 2e-4 * (np.abs(parts).sum() + 1e-3), name


def test_the_cases_are_as_extreme_as_they_claim():
    drawn = stacked(9)[2]
    assert drawn["dt"].min() == np.float32(1e-6) and drawn["dt"].max() == 50.0
    assert (drawn["dt"][..., None] * drawn["A"].real).min() == -5000.0
    assert np.abs(drawn["P"]).max() > 60 and (drawn["A"] == 0).any()


@pytest.mark.parametrize("size", [2, 6, 64])
def test_legs_taken_apart_is_the_published_matrix(size):
    poles, P, B = hippo.dplr_legs(size)
    vectors = hippo.hippo_legs(size)[1]
    matrix = 2 * ((vectors * poles) @ vectors.conj().T).real
    whole = lambda halves: 2 * (vectors @ halves).real  # noqa: E731
    n = np.arange(size)
    np.testing.assert_allclose(whole(B), np.sqrt(2 * n + 1), atol=1e-9 * size)
    legs = [
        [-np.sqrt((2 * i + 1) * (2 * j + 1)) if i > j else -(i + 1.0) * (i == j) for j in n]
        for i in n
    ]
    np.testing.assert_allclose(matrix - np.outer(whole(P), whole(P)), legs, atol=1e-9 * size**2)


def published_kernel(dt, A, P, B, C, length):
    """S4's algorithm 1 for one channel: Cauchy sums at the roots of unity, of C (1 - Āᴸ)."""
    A, P, B, C = (np.concatenate([x, x.conj()]) for x in (A, P, B, C))
    matrix, one = np.diag(A) - np.outer(P, P.conj()), np.eye(len(A))
    move = np.linalg.inv(one - dt / 2 * matrix) @ (one + dt / 2 * matrix)
    cut = C @ (one - np.linalg.matrix_power(move, length))
    roots = np.exp(-2j * np.pi * np.arange(length) / length)
    g = 2 / dt * (1 - roots) / (1 + roots)
    cauchy = lambda left, right: (left * right / (g[:, None] - A)).sum(-1)  # noqa: E731
    k_00, k_01 = cauchy(cut, B), cauchy(cut, P)
    k_10, k_11 = cauchy(P.conj(), B), cauchy(P.conj(), P)
    return np.fft.ifft(2 / (1 + roots) * (k_00 - k_01 * k_10 / (1 + k_11))).real


def test_taps_are_those_of_the_published_cauchy_kernel():
    length = 25  # odd: -1 is no root
    legs = hippo.dplr_legs(16)
    rng = np.random.default_rng(0)
    C = rng.normal(size=(3, 8)) + 1j * rng.normal(size=(3, 8))
    dt = np.array([1e-3, 1e-2, 1e-1])
    A, P, B = (np.broadcast_to(x, (3, 8)) for x in legs)
    taps = jax.jit(ssm.dplr_kernel, static_argnames="length")(
        dt.astype(np.float32), *(x.astype(np.complex64) for x in (A, P, B, C)), length=length
    )
    wanted = [published_kernel(dt[d], A[d], P[d], B[d], C[d], length) for d in range(3)]
    assert complex_error(taps, np.stack(wanted, 1)) < 1e-5


def test_no_state_grows_whatever_p_is():
    case = make_case(1, 4, extreme=True)
    assert np.abs(case["P"]).max() > 30

    def norms(dt, A, P, B, C, length):
        system = low_rank._discretized(dt, A, P, B, C, jnp.float32)
        state = ssm.ComplexPair(*np.random.default_rng(0).normal(size=(2, PAIRS, CHANNELS)))
        states = low_rank._powers(lambda x: low_rank._forward(system, x), state, length)
        return jnp.sqrt((states.real**2 + states.imag**2).sum(1))

    found = jax.jit(functools.partial(norms, length=2_000))(*(case[n] for n in SYSTEM[:-1]))
    assert (np.asarray(found) <= 1.0001 * np.asarray(found[0])).all()


# --------------------------------------------------------------------------- steps, states, resets


def test_steps_and_state_at_equal_the_stream():
    case = make_case(3, 9)
    shared = [case[name] for name in SYSTEM]

    @jax.jit
    def both_ways(u, reset, initial):
        y, final, entries = ssm.dplr_stream(
            u, *shared, reset=reset, initial_state=initial, chunk_size=CHUNK
        )
        rebuilt = jax.vmap(ssm.dplr_state_at, (None, 0))(entries, jnp.arange(len(u)))

        def one_row(state, row):
            u, reset = row
            state = jax.tree.map(lambda part: jnp.where(reset, 0, part), state)
            state, y = ssm.dplr_step(state, u, *shared)
            return state, (state, y)

        start = ssm.ComplexPair(initial.real, initial.imag)
        _, (states, step_y) = jax.lax.scan(one_row, start, (u, reset))
        return (y, rebuilt, final), (step_y, states, jax.tree.map(lambda x: x[-1], states))

    for lane in range(cases.BATCH):
        streamed, stepped = both_ways(*(case[n][lane] for n in ("u", "reset", "initial_state")))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), streamed, stepped)


@pytest.mark.parametrize("method", METHODS)
def test_a_reset_hides_the_past_exactly_and_bfloat16_is_close(method):
    case = make_case(6, 9)
    case["reset"][:] = np.arange(9) == 6
    nothing = np.full_like(case["initial_state"], np.inf)
    changed = case | {"u": case["u"].copy(), "initial_state": nothing}
    changed["u"][:, :6] = np.nan
    low = case | {"u": jnp.asarray(case["u"], jnp.bfloat16)}
    scan = quick_jit(functools.partial(run, method))
    # One program for both: another one may round otherwise.
    (y, final), (changed_y, changed_final), (low_y, low_final) = map(scan, (case, changed, low))
    np.testing.assert_array_equal(y[:, 6:], changed_y[:, 6:])
    np.testing.assert_array_equal(final, changed_final)
    assert low_y.dtype == jnp.bfloat16 and low_final.dtype == jnp.complex64
    assert complex_error(low_y.astype(np.float32), np.asarray(y)) < 0.02
    assert complex_error(low_final, np.asarray(final)) < 0.02


def test_a_state_behind_a_reset_leaves_no_nan_in_gradients():
    case = make_case(7, 9)
    u, reset = case["u"][0].copy(), np.arange(9) == 6
    u[[5, 8]] = np.nan  # hidden by the reset, and behind the row that is asked for

    @quick_jit
    def gradient(weights):
        entries = ssm.dplr_stream(u, *weights, reset=reset, chunk_size=CHUNK)[2]
        square = lambda x: (x.real**2 + x.imag**2).sum()  # noqa: E731
        return jax.grad(lambda e: square(ssm.dplr_state_at(e, 7)), allow_int=True)(entries).system

    found = gradient([case[name] for name in SYSTEM])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.abs(found.weight.real).max() > 0


def test_defaults_are_zeros():
    case = make_case(5, 9)
    zeros = {name: np.zeros_like(case[name]) for name in ("D", "reset", "initial_state")}
    kernel = quick_jit(functools.partial(ssm.dplr, chunk_size=CHUNK))
    bare = kernel(**(case | dict.fromkeys(zeros)))
    assert complex_error(bare, np.asarray(kernel(**(case | zeros)))) < 1e-6


def test_float64_inputs_are_computed_in_float64():
    case = make_case(5, 9)
    wide = {name: x.astype(np.result_type(x, np.float64)) for name, x in case.items()}
    wide["reset"] = case["reset"]
    with jax.enable_x64(True):
        y, final = quick_jit(functools.partial(run, "auto"))(wide)
    wanted, states = reference.dplr(**case)
    assert y.dtype == jnp.float64 and final.dtype == jnp.complex128
    assert complex_error(y, wanted) < 1e-12
    assert complex_error(final, states[:, -1]) < 1e-12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"A": np.zeros((5, 5, 5))}, "`A` has shape"),
        ({"P": np.zeros((7, 2))}, "`P` has shape"),
        ({"dt": np.zeros(9)}, "`dt` has shape"),
        ({"initial_state": np.zeros((4, 5, 3))}, "`initial_state` has shape"),
        ({"reset": np.zeros((4, 6))}, "`reset` has dtype"),
        ({"chunk_size": 0}, "`chunk_size` is 0"),
        ({"method": "fft"}, "`method` is 'fft'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ssm.dplr(**(make_case(0, 6) | change))
