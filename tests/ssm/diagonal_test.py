"""`ssm.s4d` and `ssm.s5` against complex128 loops: methods, rules, extreme steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm import diagonal_s4d, diagonal_s5, reference
from tests.ssm import cases

CHUNK = 4
KERNELS = {"s4d": ssm.s4d, "s5": ssm.s5}
METHODS = {"s4d": diagonal_s4d.METHODS[1:], "s5": diagonal_s5.METHODS[1:]}
FORMS = list(METHODS)
RULES = ("zoh", "bilinear")
SHARED = ("dt", "A", "B", "C", "D")  # the arguments without a batch axis
CHANNELS, STATES = 3, 4
DRAWS = 18  # of values in one compiled program, half of them extreme; `cases.BATCH` streams each

# The breadth of shapes is all compile time: LLVM's optimiser would double it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_case(form, seed, length, extreme=False):
    """Arguments by name; extreme ones reach dt from 1e-6 to 50 and dt·Re A down to -5000."""
    rng = np.random.default_rng(seed)
    system = (CHANNELS, STATES) if form == "s4d" else (STATES,)
    steps = CHANNELS if form == "s4d" else STATES

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def complex_normal(*shape):
        return (normal(*shape) + 1j * normal(*shape)).astype(np.complex64)

    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), steps))
    A = -np.exp(rng.uniform(np.log(0.05), np.log(4.0), system)) + 1j * rng.uniform(-6, 6, system)
    if extreme:
        dt = np.exp(rng.uniform(np.log(1e-6), np.log(50.0), steps))
        dt[0], dt[1] = 1e-6, 50.0
        A = np.where(rng.random(system) < 0.3, -100.0, A.real) + 1j * A.imag / max(1, dt.max() / 5)
        A.flat[-1] = 0.0  # an integrator
    return {
        "u": normal(cases.BATCH, length, CHANNELS),
        "dt": dt.astype(np.float32),
        "A": A.astype(np.complex64),
        "B": complex_normal(*((STATES, CHANNELS) if form == "s5" else system)),
        "C": complex_normal(CHANNELS, STATES),
        "D": normal(CHANNELS),
        "reset": cases.resets(rng, length, CHUNK),
        "initial_state": complex_normal(
            cases.BATCH, STATES, *((CHANNELS,) if form == "s4d" else ())
        ),
    }


# --------------------------------------------------------------------- the recurrence in complex128


def discretize_oracle(A, dt, rule):
    """λ, γ and their derivatives by a = dt·A: λ', and γ' of γ / dt."""
    a = A * dt
    if rule == "bilinear":
        below = 1 / (1 - a / 2)
        return (1 + a / 2) * below, dt * below, below**2, below**2 / 2
    decay = np.exp(a)
    safe = np.where(np.abs(a) < 0.05, 1.0, a)
    terms = range(12)
    factorial = np.cumprod(np.arange(1.0, 15.0))
    phi = sum(a**k / factorial[k] for k in terms)  # (e^a - 1) / a = Σ aᵏ / (k + 1)!
    slope = sum((k + 1) * a**k / factorial[k + 1] for k in terms)
    near = np.abs(a) < 0.05
    phi = np.where(near, phi, (decay - 1) / safe)
    return decay, dt * phi, decay, np.where(near, slope, (safe * decay - decay + 1) / safe**2)


def oracle(form, rule, u, dt, A, B, C, D, reset, initial_state, bars=None):
    """y, states […, T, *S], and with cotangents (y, final state as re + i·im) gradients by name.

    Gradients of complex arguments are ∂/∂re + i ∂/∂im; jax returns their conjugates. `form` only
    decides how B and C meet inputs and states: S4D as diagonal matrices.
    """
    u, dt, D = (np.asarray(x, np.float64) for x in (u, dt, D))
    A, B, C, state = (np.asarray(x, np.complex128) for x in (A, B, C, initial_state))
    if form == "s4d":  # states are [N, D]
        A, B, C, dt = A.T, B.T, C.T, dt[None] * np.ones_like(A.T.real)
        write, read = (lambda w, u: w * u[..., None, :]), (lambda w, x: (w * x).sum(-2))
        to_u = lambda w, x: (w.conj() * x).sum(-2).real
        to_x = lambda w, y: w.conj() * y[..., None, :]
        by_write = lambda x, u: (x * u[..., None, :]).sum(0)
        by_read = lambda x, y: (x.conj() * y[..., None, :]).sum(0)
        wide = lambda x: x
    else:
        write, read = (lambda w, u: u @ w.T), (lambda w, x: x @ w.T)
        to_u = lambda w, x: (x @ w.conj()).real
        to_x = lambda w, y: y @ w.conj()
        by_write = lambda x, u: x.T @ u
        by_read = lambda x, y: y.T @ x.conj()
        wide = lambda x: x[:, None]
    decay, gain, decay_slope, gain_slope = discretize_oracle(A, dt, rule)
    weight = wide(gain) * B
    length, alive = u.shape[1], ~reset.reshape(*reset.shape, *[1] * (state.ndim - 1))
    before, states = [], []
    for t in range(length):
        before.append(np.where(alive[:, t], state, 0.0))
        state = decay * before[-1] + write(weight, u[:, t])
        states.append(state)
    y = np.stack([2 * read(C, x).real for x in states], 1) + D * u
    if bars is None:
        return y, np.stack(states, 1)

    y_bar, state_bar = np.asarray(bars[0], np.float64), np.asarray(bars[1], np.complex128)
    u_bar, C_bar, weight_bar, decay_bar = D * y_bar, 0.0, 0.0, 0.0
    for t in reversed(range(length)):
        state_bar = state_bar + to_x(2 * C, y_bar[:, t])
        C_bar = C_bar + 2 * by_read(states[t], y_bar[:, t])
        u_bar[:, t] += to_u(weight, state_bar)
        weight_bar = weight_bar + by_write(state_bar, u[:, t])
        decay_bar = decay_bar + (state_bar * before[t].conj()).sum(0)
        state_bar = np.where(alive[:, t], decay.conj() * state_bar, 0.0)
    gain_bar = weight_bar * B.conj()
    gain_bar = gain_bar.sum(-1) if form == "s5" else gain_bar
    a_bar = decay_bar * decay_slope.conj() + dt * gain_bar * gain_slope.conj()
    dt_bar = (a_bar * A.conj() + gain_bar * (gain / dt).conj()).real
    out = {"u": u_bar, "A": dt * a_bar, "B": wide(gain).conj() * weight_bar, "C": C_bar}
    if form == "s4d":
        out |= {name: out[name].T for name in ("A", "B", "C")}
        dt_bar = dt_bar.sum(0)
    return out | {"dt": dt_bar, "D": (y_bar * u).sum((0, 1)), "initial_state": state_bar}


# ------------------------------------------------------------------------------- what is compared


def run(form, rule, method, case, chunk_size=CHUNK):
    y, final = KERNELS[form](
        **case, return_final_state=True, rule=rule, method=method, chunk_size=chunk_size
    )
    return y, jax.lax.complex(*final)


def run_and_gradients(form, rule, method, case, bars):
    """y, final state, and gradients of Σ y·y_bar + Σ (re·re_bar + im·im_bar) of the final state."""

    def objective(arguments):
        y, final = run(form, rule, method, case | arguments)
        return (y * bars[0]).sum() + (final * bars[1].conj()).real.sum(), (y, final)

    arguments = {name: value for name, value in case.items() if name != "reset"}
    gradients, (y, final) = jax.grad(objective, has_aux=True)(arguments)
    return y, final, gradients


@functools.partial(quick_jit, static_argnames=("form", "rule", "method"))
def all_draws(form, rule, method, draws, bars):
    """`run_and_gradients` of stacked cases."""
    return jax.vmap(functools.partial(run_and_gradients, form, rule, method))(draws, bars)


def cotangents(case, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda like: rng.normal(size=like.shape).astype(np.float32)
    state = case["initial_state"]
    return draw(case["u"]), draw(state) + 1j * draw(state)


def stacked(form, length):
    draws = [make_case(form, i + 100 * length, length, extreme=i % 2) for i in range(DRAWS)]
    stack = lambda rows: jax.tree.map(lambda *x: np.stack(x), *rows)
    return draws, stack(draws), stack([cotangents(case) for case in draws])


def complex_error(got, wanted):
    """Largest difference, relative to the largest value wanted (or to 1e-3); NaN fails."""
    got, wanted = np.asarray(got, np.complex128), np.asarray(wanted)
    assert got.shape == wanted.shape and np.isfinite(got).all()
    return np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-3)


CPU_METHOD = {"s4d": "chunked_sequential", "s5": "recurrent"}
# Lengths around one and several chunks. 12 programs: 216 draws of 4 streams.
CASES = [
    (form, rule, CPU_METHOD[form], length)
    for form in FORMS
    for rule, length in [("zoh", 1), ("zoh", 5), ("bilinear", 4), ("bilinear", 9)]
]
CASES += [
    ("s4d", "zoh", "chunked", 9),
    ("s4d", "bilinear", "recurrent", 7),
    ("s5", "zoh", "chunked", 9),
    ("s5", "bilinear", "associative", 7),
]


@pytest.mark.parametrize("form, rule, method, length", CASES)
def test_outputs_and_gradients_equal_the_recurrence(form, rule, method, length):
    draws, together, bars = stacked(form, length)
    results = jax.tree.map(np.asarray, all_draws(form, rule, method, together, bars))
    for i, case in enumerate(draws):
        y, final, gradients = jax.tree.map(lambda x, i=i: x[i], results)
        wanted_y, states = oracle(form, rule, **case)
        assert complex_error(y, wanted_y) < 1e-5
        assert complex_error(final, states[:, -1]) < 1e-5
        wanted = oracle(form, rule, **case, bars=[bar[i] for bar in bars])
        for name, value in gradients.items():
            assert complex_error(value.conj(), wanted[name]) < 1e-4, name


def test_the_cases_are_as_many_and_as_extreme_as_they_claim():
    assert len(CASES) * DRAWS >= 200
    for form in FORMS:
        drawn = stacked(form, 9)[1]
        rates = drawn["dt"].reshape(DRAWS, -1, *[1] * (form == "s4d")) * drawn["A"].real
        assert rates.min() == -5000.0
        assert drawn["dt"].min() == np.float32(1e-6) and drawn["dt"].max() == 50.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_the_adjoint_equals_finite_differences(form, rule):
    case = make_case(form, 0, 5)
    bars = cotangents(case)
    wanted = oracle(form, rule, **case, bars=bars)

    def objective(**arguments):
        y, states = oracle(form, rule, **arguments)
        return (y * bars[0]).sum() + (states[:, -1] * bars[1].conj()).real.sum()

    rng = np.random.default_rng(2)
    for name in (*SHARED, "u", "initial_state"):
        value = case[name].astype(np.result_type(case[name], np.float64))
        direction = rng.normal(size=value.shape)
        if np.iscomplexobj(value):
            direction = direction + 1j * rng.normal(size=value.shape)
        step = 1e-5 * (case["dt"].min() if name == "dt" else 1.0)
        above = objective(**(case | {name: value + step * direction}))
        slope = (above - objective(**(case | {name: value - step * direction}))) / (2 * step)
        assert abs(slope - (wanted[name].conj() * direction).real.sum()) < 1e-5 * (1 + abs(slope))


# ---------------------------------------------------------------------------------- discretisation


@pytest.mark.parametrize("rule", RULES)
def test_discretisation_is_exact_and_smooth_from_nothing_to_everything(rule):
    # |dt·A| from 0 over both sides of the series' radius to 5000, in all stable directions, with
    # phases of up to three turns.
    size = np.concatenate([[0.0], np.logspace(-12, 3.69, 400), np.linspace(0.45, 0.55, 21)])
    a = size[:, None] * np.exp(1j * np.linspace(np.pi / 2, 3 * np.pi / 2, 9)[None])
    a = (np.minimum(a.real, 0) + 1j * np.clip(a.imag, -20, 20)).astype(np.complex64)
    dt = np.float32(0.25)
    A = a / dt

    @jax.jit
    def both(A, dt):
        decay, gain = ssm.discretize(A, jnp.broadcast_to(dt, A.shape), rule)
        # One cotangent of 1: the derivative itself.
        slopes = [
            jax.grad(lambda A, i=i: ssm.discretize(A, dt, rule)[i].real.sum())(A) for i in (0, 1)
        ]
        return decay, gain, *slopes

    decay, gain, decay_slope, gain_slope = (np.asarray(x, np.complex128) for x in both(A, dt))
    wide = A.astype(np.complex128)
    wanted = discretize_oracle(wide, np.float64(dt), rule)
    scale = np.abs(wanted[0]) + 1e-6
    assert (np.abs(decay - wanted[0]) / scale).max() < 1e-5
    assert (np.abs(gain - wanted[1]) / np.abs(wanted[1])).max() < 1e-5
    assert (np.abs(decay_slope - dt * wanted[2]) / (dt * (np.abs(wanted[2]) + 1e-6))).max() < 1e-4
    assert (np.abs(gain_slope / (dt**2 * wanted[3]) - 1)).max() < 1e-5


def test_unknown_rules_are_named():
    with pytest.raises(ValueError, match="`rule` is 'euler', but one of zoh, bilinear was"):
        ssm.discretize(jnp.ones(3), jnp.ones(3), "euler")


# --------------------------------------------------------------------------- steps, states, resets

STREAM = {"s4d": ssm.s4d_stream, "s5": ssm.s5_stream}
STEP = {"s4d": ssm.s4d_step, "s5": ssm.s5_step}
STATE_AT = {"s4d": ssm.s4d_state_at, "s5": ssm.s5_state_at}


@pytest.mark.parametrize("form, rule", [("s4d", "zoh"), ("s5", "bilinear")])
def test_steps_and_state_at_equal_the_stream(form, rule):
    case = make_case(form, 3, 9)
    shared = [case[name] for name in SHARED]

    @jax.jit
    def both_ways(u, reset, initial):
        y, final, entries = STREAM[form](
            u, *shared, reset=reset, initial_state=initial, rule=rule, chunk_size=CHUNK
        )
        rebuilt = jax.vmap(STATE_AT[form], (None, 0))(entries, jnp.arange(len(u)))

        def one_row(state, row):
            u, reset = row
            state = jax.tree.map(lambda part: jnp.where(reset, 0, part), state)
            state, y = STEP[form](state, u, *shared, rule=rule)
            return state, (state, y)

        start = ssm.ComplexPair(initial.real, initial.imag)
        _, (states, step_y) = jax.lax.scan(one_row, start, (u, reset))
        return (y, rebuilt, final), (step_y, states, jax.tree.map(lambda x: x[-1], states))

    for lane in range(cases.BATCH):
        streamed, stepped = both_ways(*(case[n][lane] for n in ("u", "reset", "initial_state")))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), streamed, stepped)


@pytest.mark.parametrize("form", FORMS)
def test_options_and_defaults(form):
    case = make_case(form, 5, 9)
    zeros = {name: np.zeros_like(case[name]) for name in ("D", "reset", "initial_state")}
    nothing = dict.fromkeys(zeros)

    @quick_jit
    def three(case, zeros):
        kernel = functools.partial(KERNELS[form], chunk_size=CHUNK)
        bare = case | nothing
        return kernel(**bare), kernel(**(case | zeros)), kernel(**bare, conjugate_pairs=False)

    y, of_zeros, half = three(case, zeros)
    assert complex_error(y, of_zeros) < 1e-6
    assert complex_error(2 * half, y) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_float64_inputs_are_computed_in_float64(form):
    case = make_case(form, 5, 9)
    wide = {name: x.astype(np.result_type(x, np.float64)) for name, x in case.items()}
    wide["reset"] = case["reset"]
    with jax.enable_x64(True):
        y, final = quick_jit(functools.partial(run, form, "zoh", "auto"))(wide)
    wanted, states = oracle(form, "zoh", **case)
    assert y.dtype == jnp.float64 and final.dtype == jnp.complex128
    assert complex_error(y, wanted) < 1e-12
    assert complex_error(final, states[:, -1]) < 1e-12


@pytest.mark.parametrize("form, method", [(form, m) for form in FORMS for m in METHODS[form]])
def test_a_reset_hides_the_past_exactly_and_bfloat16_is_close(form, method):
    case = make_case(form, 6, 9)
    case["reset"][:] = np.arange(9) == 6
    changed = case | {
        "u": case["u"].copy(),
        "initial_state": np.full_like(case["initial_state"], np.inf),
    }
    changed["u"][:, :6] = np.nan
    low = case | {"u": jnp.asarray(case["u"], jnp.bfloat16)}

    @quick_jit
    def scan(case):
        return run(form, "zoh", method, case)

    # One program for both: another one may round otherwise.
    (y, final), (changed_y, changed_final), (low_y, low_final) = map(scan, (case, changed, low))
    np.testing.assert_array_equal(y[:, 6:], changed_y[:, 6:])
    np.testing.assert_array_equal(final, changed_final)
    assert low_y.dtype == jnp.bfloat16 and low_final.dtype == jnp.complex64
    assert complex_error(low_y.astype(np.float32), np.asarray(y)) < 0.02
    assert complex_error(low_final, np.asarray(final)) < 0.02


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"A": np.zeros((5, 5, 5))}, "`A` has shape"),
        ({"B": np.zeros((7, 2))}, "`B` has shape"),
        ({"dt": np.zeros(9)}, "` has shape"),
        ({"initial_state": np.zeros((4, 5, 3))}, "`initial_state` has shape"),
        ({"reset": np.zeros((4, 6))}, "`reset` has dtype"),
        ({"rule": "euler"}, "`rule` is 'euler'"),
        ({"chunk_size": 0}, "`chunk_size` is 0"),
        ({"method": "fft"}, "`method` is 'fft'"),
    ],
)
def test_wrong_arguments_are_named(form, change, message):
    with pytest.raises(ValueError, match=message):
        KERNELS[form](**(make_case(form, 0, 6) | change))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_the_reference_says_the_same_as_the_loop_with_gradients(form, rule):
    case = make_case(form, 5, 2 * CHUNK + 1)
    wanted = oracle(form, rule, **case)
    for found, expected in zip(getattr(reference, form)(**case, rule=rule), wanted, strict=False):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
