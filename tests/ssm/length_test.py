"""Programs of long sequences: no larger than those of short ones, and right."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.cores import mamba3
from mbrl_jax.ssm import chunking
from tests.ssm import diagonal_test

LENGTHS = (128, 1000, 8192)


def s5_or_s4d(kernel, method, length):
    case = diagonal_test.make_case(kernel, 0, length)
    reset = case.pop("reset")

    def value(case):
        options = {"reset": reset, "return_final_state": True, "method": method}
        y, final = getattr(ssm, kernel)(**case, **options)
        return (y * y).sum() + (final.real + final.imag).sum()

    return value, case


def angles(length):
    is_first = jnp.zeros((length,), bool)
    turns = jnp.ones((length, 2, 3))
    return lambda turns: jnp.square(mamba3.angles_of(turns, is_first, None)).sum(), turns


PROGRAMS = {
    "s5": functools.partial(s5_or_s4d, "s5", "associative"),
    "s4d": functools.partial(s5_or_s4d, "s4d", "chunked"),
    "angles of mamba3": angles,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_and_their_gradients_do_not_grow_with_the_length(program):
    def size(length):
        value, arguments = PROGRAMS[program](length)
        text = jax.jit(jax.grad(value)).lower(arguments).as_text()
        return len(re.findall(r"= \"?(?:stablehlo|func|call)", text))

    short, *longer = map(size, LENGTHS)
    # Rows of padding are a few operations.
    assert max(longer) <= 1.05 * min(longer)
    assert max(longer) < 1.3 * short


@pytest.mark.parametrize("length", [1, 8, 9, 64, 131])
def test_associative_scans_in_blocks_equal_the_loop(length):
    # Products of matrices, which do not commute, of integers, which do not round.
    rows = np.random.default_rng(length).integers(0, 3, (length, 2, 2)).astype(np.uint32)

    @jax.jit
    def scan(rows):
        return chunking.associative_scan(lambda a, b: (b[0] @ a[0],), (rows,), whole=8)[0]

    wanted = [rows[0]]
    for row in rows[1:]:
        wanted.append(row @ wanted[-1])
    np.testing.assert_array_equal(scan(rows), np.stack(wanted))


@pytest.mark.parametrize("kernel, method", [("s5", "associative"), ("s4d", "chunked")])
def test_long_sequences_equal_the_recurrence(kernel, method):
    length = 150
    drawn = (
        diagonal_test.make_case(kernel, 1, length),
        diagonal_test.make_case(kernel, 2, length, True),
    )
    cases = jax.tree.map(lambda *x: np.stack(x), *drawn)
    bars = jax.tree.map(lambda *x: np.stack(x), *map(diagonal_test.cotangents, drawn))
    results = diagonal_test.all_draws(kernel, "zoh", method, cases, bars)
    for i, case in enumerate(drawn):
        y, final, gradients = jax.tree.map(lambda x, i=i: np.asarray(x[i]), results)
        wanted_y, states = diagonal_test.oracle(kernel, "zoh", **case)
        assert diagonal_test.complex_error(y, wanted_y) < 1e-5
        assert diagonal_test.complex_error(final, states[:, -1]) < 1e-5
        wanted = diagonal_test.oracle(kernel, "zoh", **case, bars=[bar[i] for bar in bars])
        for name, value in gradients.items():
            assert diagonal_test.complex_error(value.conj(), wanted[name]) < 1e-4, name


@pytest.mark.parametrize("kernel, method", [("s5", "associative"), ("s4d", "chunked")])
def test_a_reset_far_behind_hides_what_is_not_finite(kernel, method):
    length, reset = 300, 161
    case = diagonal_test.make_case(kernel, 3, length)
    case["reset"][:] = np.arange(length) == reset
    spoilt = case | {"u": case["u"].copy()}
    spoilt["u"][:, :reset] = np.nan

    @diagonal_test.quick_jit
    def run(case):
        return diagonal_test.run(kernel, "zoh", method, case)

    (y, final), (spoilt_y, spoilt_final) = run(case), run(spoilt)
    np.testing.assert_array_equal(y[:, reset:], spoilt_y[:, reset:])
    np.testing.assert_array_equal(final, spoilt_final)
