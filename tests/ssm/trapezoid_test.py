"""Mamba-3's recurrence against a float64 loop: 200 random cases with resets, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm import reference, trapezoid
from tests.ssm import cases

DRAWS, BATCH = 25, cases.BATCH
NAMES = ("v", "dt", "rate", "mix", "k", "q", "D")
# method, rows, (heads, channels, states), chunk
PROGRAMS = [
    ("chunked_sequential", 1, (2, 3, 4), 8),
    ("chunked_sequential", 9, (1, 2, 6), 8),
    ("chunked_sequential", 21, (2, 3, 4), 8),
    ("chunked", 21, (3, 2, 4), 8),
    ("recurrent", 9, (2, 3, 4), 8),
    ("recurrent", 21, (2, 1, 5), 8),
    ("chunked", 9, (2, 3, 4), 32),
    ("chunked_sequential", 24, (1, 4, 4), 16),
]


def draw(seed, length, heads, channels, states, chunk):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    wild = seed % 2 == 1  # steps from 1e-6 to 50, rates from 1e-4 to 100, and some steps of 0
    dt = rng.uniform(0.01, 1.0, (BATCH, length, heads))
    rate = rng.uniform(0.1, 4.0, (BATCH, length, heads))
    if wild:
        dt = np.exp(rng.uniform(np.log(1e-6), np.log(50.0), dt.shape))
        dt[rng.random(dt.shape) < 0.1] = 0.0
        rate = np.exp(rng.uniform(np.log(1e-4), np.log(100.0), rate.shape))  # log-uniform
    state = trapezoid.TrapezoidState(
        normal(BATCH, states, heads, channels), normal(BATCH, heads, states),
        normal(BATCH, heads, channels),
    )  # fmt: skip
    return {
        "v": normal(BATCH, length, heads, channels),
        "dt": dt.astype(np.float32),
        "rate": rate.astype(np.float32),
        "mix": rng.uniform(0.0, 1.0, dt.shape).astype(np.float32),
        "k": normal(BATCH, length, heads, states),
        "q": normal(BATCH, length, heads, states),
        "D": normal(heads),
        "reset": cases.resets(rng, length, chunk),
        "state": state,
    }


def streams(case, method, chunk):
    """y [B, …], final states [B], and entries [B] of a batch."""

    def one(v, dt, rate, mix, k, q, D, reset, state):
        return trapezoid.trapezoid_stream(
            v, dt, rate, mix, k, q, D, reset=reset, state=state, chunk_size=chunk, method=method
        )

    arguments = [case[name] for name in (*NAMES, "reset", "state")]
    return jax.vmap(one, (0, 0, 0, 0, 0, 0, None, 0, 0))(*arguments)


@functools.partial(
    jax.jit,
    static_argnames=("method", "chunk"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def values_and_gradients(draws, bars, method, chunk):
    """Of every draw: y, final states, states after row T // 2, gradients of Σ y·bar + Σ h·bar."""

    def of_draw(case, bars):
        def objective(arguments):
            y, final, entries = streams(case | arguments, method, chunk)
            at = jax.vmap(trapezoid.trapezoid_state_at, (0, None))(entries, y.shape[1] // 2)
            return (y * bars[0]).sum() + (final.h * bars[1]).sum(), (y, final, at)

        arguments = {name: x for name, x in case.items() if name != "reset"}
        gradients, values = jax.grad(objective, has_aux=True)(arguments)
        return *values, gradients

    return jax.vmap(of_draw)(draws, bars)


def objective(case, bars):
    """The same in float64."""
    y, states = reference.trapezoid(**case)
    return (y * bars[0]).sum() + (states[0][:, -1] * bars[1]).sum()


@pytest.mark.parametrize(
    "program",
    [pytest.param(p, marks=[pytest.mark.slow] if i % 2 else []) for i, p in enumerate(PROGRAMS)],
    ids=str,
)
def test_outputs_states_and_gradients_equal_the_recurrence(program):
    method, length, sizes, chunk = program
    draws = [draw(100 * length + i, length, *sizes, chunk) for i in range(DRAWS)]
    rng = np.random.default_rng(length)
    shapes = (draws[0]["v"].shape, draws[0]["state"].h.shape)
    bars = [tuple(rng.normal(size=s).astype(np.float32) for s in shapes) for _ in draws]
    stacked = jax.tree.map(lambda *x: np.stack(x), *draws)
    found = values_and_gradients(
        stacked, jax.tree.map(lambda *x: np.stack(x), *bars), method, chunk
    )
    for i, case in enumerate(draws):
        y, final, at, gradients = jax.tree.map(lambda x, i=i: np.asarray(x[i]), found)
        wanted_y, states = reference.trapezoid(**case)
        assert cases.error(y, wanted_y) < 2e-5
        for got, wanted in zip(
            (*final, *at),
            (*(s[:, -1] for s in states), *(s[:, length // 2] for s in states)),
            strict=True,
        ):
            assert cases.error(got, wanted) < 2e-5
        # Along a random direction of all arguments, by central differences in float64.
        wide = jax.tree.map(lambda x: x.astype(np.float64), {n: case[n] for n in (*NAMES, "state")})
        for name in (*NAMES, "state"):
            direction = jax.tree.map(lambda x: rng.normal(size=x.shape) * abs(x), wide[name])
            sides = [
                objective(case | wide | {name: jax.tree.map(
                    lambda x, d, sign=sign: x + sign * 1e-5 * d, wide[name], direction)}, bars[i])
                for sign in (1, -1)
            ]  # fmt: skip
            wanted = (sides[0] - sides[1]) / 2e-5
            leaves = zip(*map(jax.tree.leaves, (gradients[name], direction)), strict=True)
            parts = [g.astype(np.float64) * d for g, d in leaves]
            size = sum(abs(p).sum() for p in parts) + 1e-3
            assert abs(sum(p.sum() for p in parts) - wanted) < 2e-4 * size, name


def test_steps_equal_the_stream():
    case = draw(3, 21, 2, 3, 4, 8)
    y, final, _ = jax.jit(functools.partial(streams, method="auto", chunk=8))(case)

    def one(v, dt, rate, mix, k, q, reset, state):
        def body(state, row):
            *row, empty = row
            state = jax.tree.map(lambda x: jnp.where(empty, 0.0, x), state)
            return trapezoid.trapezoid_step(state, *row, case["D"])

        return jax.lax.scan(body, state, (v, dt, rate, mix, k, q, reset))

    rows = [case[name] for name in NAMES[:-1]]
    last, stepped = jax.jit(jax.vmap(one))(*rows, case["reset"], case["state"])
    assert cases.error(stepped, y) < 2e-5
    jax.tree.map(lambda a, b: np.testing.assert_array_less(cases.error(a, b), 2e-5), last, final)


def test_a_reset_hides_the_last_row_and_what_is_no_number():
    """The trapezoid's late half would carry an episode's last input into the next one."""
    case = draw(2, 9, 2, 3, 4, 8)
    reset = np.zeros((BATCH, 9), bool)
    reset[:, 4] = True
    case["reset"] = reset
    run = jax.jit(functools.partial(streams, method="auto", chunk=8))
    y, final, _ = run(case)
    spoiled = {n: case[n].copy() for n in ("v", "k", "dt", "mix", "rate", "q")}
    for x in spoiled.values():
        x[:, :4] = np.nan
    state = jax.tree.map(lambda x: np.full_like(x, np.nan), case["state"])
    other, last, _ = run(case | spoiled | {"state": state})
    np.testing.assert_allclose(other[:, 4:], y[:, 4:], rtol=1e-5, atol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, last, final)


def test_with_a_full_share_it_is_mamba_2():
    case = draw(4, 21, 2, 3, 4, 8)
    case["mix"] = np.ones_like(case["mix"])
    case["rate"] = np.broadcast_to(case["rate"][:1, :1], case["rate"].shape)
    y, final, _ = jax.jit(functools.partial(streams, method="auto", chunk=8))(case)

    def mamba_2(v, dt, k, q, reset, h):
        A, D = -jnp.asarray(case["rate"][0, 0]), jnp.asarray(case["D"])
        return ssm.ssd_stream(v, dt, A, k, q, D, reset=reset, initial_state=h, chunk_size=8)[:2]

    rows = [case[name] for name in ("v", "dt", "k", "q", "reset")]
    wanted, state = jax.jit(jax.vmap(mamba_2))(*rows, case["state"].h)
    assert cases.error(y, wanted) < 1e-5 and cases.error(final.h, state) < 1e-5


def test_wrong_shapes_are_named():
    case = draw(5, 9, 2, 3, 4, 8)
    rows = [case[name][0] for name in NAMES[:-1]]
    with pytest.raises(ValueError, match="mix"):
        trapezoid.trapezoid_stream(*rows[:3], rows[3][:5], *rows[4:], case["D"])
