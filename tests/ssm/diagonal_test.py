"""`ssm.s4d` and `ssm.s5` against complex128 loops: methods, rules, extreme steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm import diagonal_s4d, diagonal_s5
from tests.ssm import cases

CHUNK = 8
KERNELS = {"s4d": ssm.s4d, "s5": ssm.s5}
METHODS = {"s4d": diagonal_s4d.METHODS[1:], "s5": diagonal_s5.METHODS[1:]}
FORMS = list(METHODS)
RULES = ("zoh", "bilinear")
SHARED = ("dt", "A", "B", "C", "D")  # the arguments without a batch axis
CHANNELS, STATES = 3, 4
LENGTHS = (1, 2, 7, 8, 9, 16, 17)
DRAWS = 5  # of values; each has `cases.BATCH` streams with resets of their own


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


# ----------------------------------------------------------------------- the recurrence in complex128


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


# The breadth of shapes is all compile time: LLVM's optimiser would double it.
@functools.partial(
    jax.jit,
    static_argnames=("form", "rule", "method"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def all_draws(form, rule, method, draws, bars):
    """`run_and_gradients` of stacked cases."""
    return jax.vmap(functools.partial(run_and_gradients, form, rule, method))(draws, bars)


def cotangents(case, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda like: rng.normal(size=like.shape).astype(np.float32)
    state = case["initial_state"]
    return draw(case["u"]), draw(state) + 1j * draw(state)


def stacked(form, length, extreme):
    draws = [make_case(form, seed + 100 * length, length, extreme) for seed in range(DRAWS)]
    stack = lambda rows: jax.tree.map(lambda *x: np.stack(x), *rows)
    return draws, stack(draws), stack([cotangents(case) for case in draws])


def assert_right(form, rule, method, length, extreme):
    draws, together, bars = stacked(form, length, extreme)
    y, final, gradients = jax.tree.map(
        np.asarray, all_draws(form, rule, method, together, bars)
    )
    for i, case in enumerate(draws):
        wanted_y, states = oracle(form, rule, **case)
        assert complex_error(y[i], wanted_y) < 1e-5
        assert complex_error(final[i], states[:, -1]) < 1e-5
        wanted = oracle(form, rule, **case, bars=[bar[i] for bar in bars])
        for name, value in gradients.items():
            assert complex_error(value[i].conj(), wanted[name]) < 1e-4, name


def complex_error(got, wanted):
    """Largest difference, relative to the largest value wanted (or to 1e-3); NaN fails."""
    got = np.asarray(got, np.complex128)
    assert got.shape == wanted.shape and np.isfinite(got).all()
    return np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-3)


# Each case is 5 draws of 4 streams. With every length, form and rule by the method of CPU, and the
# other methods at one length of several chunks, these are 2 · 2 · (8 + 2 · 2) · 5 = 240 draws.
CPU_METHODS = {"s4d": "chunked_sequential", "s5": "recurrent"}
CASES = [(form, CPU_METHODS[form], length) for form in FORMS for length in LENGTHS]
CASES += [(f, m, 17) for f in FORMS for m in METHODS[f] if m != CPU_METHODS[f]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form, method, length", CASES)
def test_outputs_and_gradients_equal_the_recurrence(form, method, length, rule):
    assert_right(form, rule, method, length, extreme=False)
