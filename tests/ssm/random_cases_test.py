"""`ssm.ssd` and `ssm.selective_scan` against float64 loops over hundreds of random cases.

A draw is four streams with resets of their own (`cases.resets`), a random state and random
cotangents; every second draw has steps from 1e-6 to 50 and decays down to exp(-5000). Draws of one
shape share a program, since compiling is what tests cost.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from tests.ssm import cases, oracles

DRAWS = 24
STREAMED = {"ssd": ("x", "B", "C"), "selective_scan": ("u", "B", "C")}  # may be bfloat16
STEP = {"ssd": "dt", "selective_scan": "delta"}
MAKE = {"ssd": cases.ssd, "selective_scan": cases.selective_scan}
OUTPUT_BAR, GRADIENT_BAR, BFLOAT16_BAR = 1e-5, 1e-4, 0.02


class Program(NamedTuple):
    """What is compiled once: lengths lie around one and several chunks, evenly cut and not."""

    kernel: str
    method: str
    length: int
    layout: tuple[int, ...]  # heads, channels, groups, states; or channels, states
    chunk: int = 8


PROGRAMS = [
    Program("ssd", "chunked_sequential", 1, (2, 3, 1, 4)),
    Program("ssd", "chunked_sequential", 7, (4, 2, 2, 3)),
    Program("ssd", "chunked_sequential", 8, (3, 1, 3, 2)),
    Program("ssd", "chunked_sequential", 9, (2, 3, 1, 4)),
    Program("ssd", "chunked_sequential", 24, (1, 4, 1, 1)),
    Program("ssd", "chunked_sequential", 75, (2, 3, 1, 4)),  # ten chunks: across them by a loop
    Program("ssd", "chunked_sequential", 75, (2, 3, 1, 4), 32),
    Program("ssd", "chunked_sequential", 75, (2, 3, 1, 4), 75),
    Program("ssd", "chunked", 9, (4, 2, 2, 3)),
    Program("ssd", "chunked", 21, (2, 3, 1, 4)),
    Program("ssd", "recurrent", 8, (2, 3, 1, 4)),
    Program("ssd", "recurrent", 21, (4, 2, 2, 3)),
    Program("selective_scan", "fused", 9, (40, 3)),  # more than one program, not full
    Program("selective_scan", "fused", 21, (5, 3)),
    Program("selective_scan", "recurrent", 1, (5, 3)),
    Program("selective_scan", "recurrent", 7, (1, 1)),
    Program("selective_scan", "recurrent", 8, (2, 70)),  # too many states to write sums out
    Program("selective_scan", "recurrent", 9, (5, 3)),
    Program("selective_scan", "recurrent", 24, (5, 3)),
    Program("selective_scan", "recurrent", 75, (3, 2)),
    Program("selective_scan", "associative", 1, (2, 6)),
    Program("selective_scan", "associative", 8, (1, 1)),
    Program("selective_scan", "associative", 9, (5, 3)),
    Program("selective_scan", "associative", 21, (5, 3)),
]
# The long ones.
BFLOAT16_PROGRAMS = [p for p in PROGRAMS if p.length in (21, 75) and p.chunk == 8]


def draws_of(program):
    """`DRAWS` cases, and their cotangents of y and of the final state."""
    made = []
    for i in range(DRAWS):
        case = MAKE[program.kernel](
            1000 * program.length + i, program.length, *program.layout, chunk_size=program.chunk
        )
        made.append(cases.extreme(case, i, STEP[program.kernel]) if i % 2 else case)
    rng = np.random.default_rng(program.length)
    names = (STREAMED[program.kernel][0], "initial_state")
    bars = [
        tuple(rng.normal(size=case[n].shape).astype(np.float32) for n in names) for case in made
    ]
    return made, bars


def stack(draws):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *draws)


# LLVM's optimiser would take most of the time.
@functools.partial(
    jax.jit,
    static_argnames=("kernel", "method", "chunk_size"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def values_and_gradients(kernel, method, chunk_size, draws, bars):
    """y, final state, and gradients of Σ y·y_bar + Σ final·final_bar by name, of every draw."""

    def one_draw(case, bars):
        def objective(arguments):
            y, final = getattr(ssm, kernel)(
                **(case | arguments), return_final_state=True, chunk_size=chunk_size, method=method
            )
            return (y * bars[0]).sum() + (final * bars[1]).sum(), (y, final)

        arguments = {name: value for name, value in case.items() if name != "reset"}
        gradients, values = jax.grad(objective, has_aux=True)(arguments)
        return *values, gradients

    return jax.vmap(one_draw)(draws, bars)


def run(program, draws, bars):
    results = values_and_gradients(program.kernel, program.method, program.chunk, draws, bars)
    return jax.tree.map(np.asarray, results)


def wanted_of(kernel, case, bars):
    """The same of one draw in float64."""
    y, states = getattr(oracles, kernel)(**case)
    adjoint = getattr(oracles, f"{kernel}_adjoint")
    return y, states[:, -1], adjoint(**case, y_bar=bars[0], final_bar=bars[1])


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(p, marks=[pytest.mark.slow] if i % 3 == 1 else [])
        for i, p in enumerate(PROGRAMS)
    ],
    ids=str,
)
def test_outputs_and_gradients_equal_the_recurrence(program):
    made, bars = draws_of(program)
    got = run(program, stack(made), stack(bars))
    for i, case in enumerate(made):
        y, final, gradients = jax.tree.map(lambda leaf, i=i: leaf[i], got)
        wanted_y, wanted_final, wanted = wanted_of(program.kernel, case, bars[i])
        assert cases.error(y, wanted_y) < OUTPUT_BAR
        assert cases.error(final, wanted_final) < OUTPUT_BAR
        for name, gradient in gradients.items():
            assert cases.error(gradient, wanted[name]) < GRADIENT_BAR, name


@pytest.mark.parametrize("kernel", MAKE)
def test_the_cases_are_as_many_and_as_extreme_as_they_claim(kernel):
    programs = [program for program in PROGRAMS if program.kernel == kernel]
    assert len(programs) * DRAWS >= 200
    steps, decays = [], []
    for program in programs:
        for case in draws_of(program)[0][1::2]:
            step = case[STEP[kernel]]
            steps += [step[step > 0].min(), step.max()]
            decays.append(step.max() * case["A"].min())
    assert min(steps) == np.float32(1e-6) and max(steps) == 50.0
    assert min(decays) == -5000.0


@pytest.mark.parametrize("program", BFLOAT16_PROGRAMS, ids=str)
def test_bfloat16_inputs_are_within_two_percent(program):
    made, bars = draws_of(program)
    low = stack(made)
    low |= {name: jnp.asarray(low[name], jnp.bfloat16) for name in STREAMED[program.kernel]}
    got = run(program, low, stack(bars))
    assert got[0].dtype == jnp.bfloat16 and got[1].dtype == jnp.float32
    errors_of_sums = {"A": [], "D": []}
    for i, case in enumerate(made):
        y, final, gradients = jax.tree.map(lambda leaf, i=i: leaf[i], got)
        wanted_y, wanted_final, wanted = wanted_of(program.kernel, case, bars[i])
        assert cases.error(y, wanted_y) < BFLOAT16_BAR
        assert cases.error(final, wanted_final) < BFLOAT16_BAR
        for name, gradient in gradients.items():
            error = cases.error(gradient, wanted[name])
            if name in errors_of_sums:
                errors_of_sums[name].append(error)
            else:
                assert error < BFLOAT16_BAR, name
    # Sums over all rows, in which much may cancel: rounding x, B and C to bfloat16 alone moves them
    # by 5 % of what is left and more, in float64 too.
    for errors in errors_of_sums.values():
        assert np.median(errors) < BFLOAT16_BAR
