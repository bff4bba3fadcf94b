"""Chunk after chunk, lanes in turns: the same numbers as the recurrence, however it is mapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm.ssd import turns
from tests.ssm import cases

CHUNK = 4
SIZES = {"heads": 4, "channels": 3, "chunk_size": CHUNK}
ELEMENTS = CHUNK * 4 * 3  # of x in one chunk
METHODS = ("chunked", "chunked_sequential")


@pytest.fixture(params=[1, 2, 5], ids=lambda number: f"{number} lanes at a time")
def _turns(request, monkeypatch):
    monkeypatch.setattr(turns, "TURN_ELEMENTS", request.param * ELEMENTS)


def _loss(method, case):
    y, state = ssm.ssd(**case, return_final_state=True, chunk_size=CHUNK, method=method)
    weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return (y * weights).sum() + jnp.square(state).sum(), (y, state)


# LLVM's optimiser would take most of the time.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _run(method, case):
    numbers = {k: v for k, v in case.items() if k != "reset"}
    loss = lambda numbers, reset: _loss(method, numbers | {"reset": reset})  # noqa: E731
    return jax.grad(loss, has_aux=True)(numbers, case["reset"])


_recurrence = _jit(functools.partial(_run, "recurrent"))


def _assert_equal(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert cases.error(a, b) < 2e-6


@pytest.mark.parametrize(("length", "groups"), [(1, 2), (7, 1), (21, 2), (40, 1)])
@pytest.mark.usefixtures("_turns")
def test_turns_give_what_the_recurrence_gives(length, groups):
    case = cases.ssd(length, length, groups=groups, **SIZES)
    for method in METHODS:
        _assert_equal(_jit(functools.partial(_run, method))(case), _recurrence(case))


@pytest.mark.usefixtures("_turns")
def test_seeds_and_what_they_share():
    first, second = (cases.ssd(seed, 21, **SIZES) for seed in (1, 2))
    both = {k: np.stack([first[k], second[k]]) for k in first}
    axes = dict.fromkeys(both, 0) | {"x": None, "A": None}
    shared = both | {"x": first["x"], "A": first["A"]}
    together = _jit(jax.vmap(functools.partial(_run, "chunked"), (axes,)))(shared)
    for i, own in enumerate((first, second)):
        alone = _recurrence(own | {"x": first["x"], "A": first["A"]})
        _assert_equal(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)


@pytest.mark.usefixtures("_turns")
def test_entries_rebuild_the_state_after_any_row():
    case = {k: v if k in "AD" else v[1] for k, v in cases.ssd(3, 21, **SIZES).items()}
    options = {"reset": case.pop("reset"), "initial_state": case.pop("initial_state")}
    *_, entries = ssm.ssd_stream(**case, **options, chunk_size=CHUNK)
    for t in (0, 7, 20):
        upto = {k: v if k in "AD" else v[: t + 1] for k, v in case.items()}
        until = options | {"reset": options["reset"][: t + 1]}
        _, wanted, _ = ssm.ssd_stream(**upto, **until, chunk_size=CHUNK, method="recurrent")
        assert cases.error(ssm.ssd_state_at(entries, t), wanted) < 2e-6
