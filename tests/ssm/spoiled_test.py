"""Rows and states that are not finite: every form shows them up to the next reset alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from tests.ssm import cases

pytestmark = pytest.mark.usefixtures("quick_compile")

LENGTH, CHUNK = 13, 4
BAD, RESET = 5, 10  # row that is not finite, and the next reset: one in the chunk, one behind it
FORMS = {
    "ssd": ("chunked", "chunked_sequential", "recurrent"),
    "selective_scan": ("associative", "recurrent", "fused"),
}
INPUTS = {"ssd": ("x", "dt", "B", "C"), "selective_scan": ("u", "delta", "B", "C")}


@functools.partial(jax.jit, static_argnames=("kernel", "method", "chunk_size"))
def run(kernel, method, case, chunk_size=CHUNK):
    """y [B, T, …], states after all rows [B, T, …], final state [B, …]."""
    shared = {"A", "D"}
    axes = {name: None if name in shared else 0 for name in case}
    stream = {"ssd": ssm.ssd_stream, "selective_scan": ssm.selective_scan_stream}[kernel]
    state_at = {"ssd": ssm.ssd_state_at, "selective_scan": ssm.scan_state_at}[kernel]

    def one(case):
        y, final, entries = stream(**case, chunk_size=chunk_size, method=method)
        return y, jax.vmap(state_at, (None, 0))(entries, jnp.arange(LENGTH)), final

    return jax.vmap(one, (axes,))(case)


def make_case(kernel, reset=RESET):
    case = getattr(cases, kernel)(3, LENGTH)
    case["reset"][:] = np.arange(LENGTH) == reset
    return case


def spoil(case, name, value, row=BAD):
    changed = case[name].copy()
    changed[:, row][..., -1] = value
    return case | {name: changed}


def assert_hidden(clean, spoilt, first, reset, tolerance=1e-5):
    """Rows before `first` and from `reset` on are those of the clean case."""
    for got, wanted in zip(spoilt[:2], clean[:2], strict=True):
        for rows in (slice(first), slice(reset, None)):
            assert cases.error(got[:, rows], wanted[:, rows]) < tolerance
    assert cases.error(spoilt[2], clean[2]) < tolerance


@pytest.mark.parametrize("kernel, method", [(k, m) for k in FORMS for m in FORMS[k]])
def test_what_is_not_finite_ends_at_the_reset(kernel, method):
    case = make_case(kernel)
    clean = run(kernel, method, case)
    for name in INPUTS[kernel]:
        for value in (np.nan, np.inf):
            spoilt = run(kernel, method, spoil(case, name, value))
            assert_hidden(clean, spoilt, BAD, RESET)
            seen = np.isfinite(spoilt[0]).reshape(cases.BATCH, LENGTH, -1).all(-1)
            assert not seen[:, BAD].any(), name
            if name != "C" and np.isnan(value):  # what is only read has no part in the state
                assert not seen[:, BAD:RESET].any(), name


@pytest.mark.parametrize("chunk_size", [CHUNK, 16])
@pytest.mark.parametrize("kernel, method", [(k, m) for k in FORMS for m in FORMS[k]])
def test_a_reset_at_row_0_hides_the_state_before_it(kernel, method, chunk_size):
    case = make_case(kernel, reset=0)
    spoilt = case | {"initial_state": np.full_like(case["initial_state"], np.nan)}

    def loss(shared, case):
        y, states, final = run(kernel, method, case | shared, chunk_size)
        return (y * y).sum() + states.sum() + final.sum()

    shared = {name: case[name] for name in ("A", "D")}
    (value, grads), (spoilt_value, spoilt_grads) = (
        jax.value_and_grad(loss)(shared, one) for one in (case, spoilt)
    )
    assert value == spoilt_value
    for name in shared:
        np.testing.assert_array_equal(grads[name], spoilt_grads[name])


def test_a_single_chunk_without_a_state_hides_them_too():
    case = make_case("ssd") | {"initial_state": None}
    clean, spoilt = (
        run("ssd", "auto", one, chunk_size=16) for one in (case, spoil(case, "x", np.nan))
    )
    assert_hidden(clean, spoilt, BAD, RESET)


@pytest.mark.parametrize("kernel", FORMS)
def test_streams_of_nested_maps_do_not_touch_each_other(kernel):
    case = make_case(kernel)
    spoilt = spoil(case, INPUTS[kernel][0], np.nan)
    first = {name: value if name in ("A", "D") else value[:1] for name, value in case.items()}
    both = {
        n: np.stack([first[n], spoilt[n][:1] if n not in ("A", "D") else first[n]]) for n in case
    }
    method = FORMS[kernel][0]
    got = jax.jit(jax.vmap(lambda case: run(kernel, method, case)))(both)
    clean = run(kernel, method, first)
    for leaf, wanted in zip(got, clean, strict=True):
        assert cases.error(leaf[0], wanted) < 1e-5
