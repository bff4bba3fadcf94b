"""Laws L1 to L3: what every sequence core keeps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.testing.asserts import assert_close, assert_same_structure


def check_core(config: Any, in_size: int = 5, seed: int = 0) -> None:
    """Laws L1 to L3 at T = 1, odd lengths, whole chunks and several of them.

    Args:
      config: has `make(in_size) -> SequenceCore`; a `chunk_size` field sets the lengths.
      in_size: D of the inputs.
      seed: of parameters and inputs.
    """
    core = config.make(in_size)
    chunk = getattr(config, "chunk_size", 4)
    key = jax.random.key(seed)
    params = jax.jit(core.init)(jax.random.fold_in(key, 0))
    both_ways = jax.jit(functools.partial(_both_ways, core, params))
    for length in (1, 3, chunk, 2 * chunk + 1):
        xs = jax.random.normal(jax.random.fold_in(key, length), (length, in_size))
        for is_first in _reset_patterns(length, chunk):
            _check_unroll(core, both_ways, xs, is_first)
    _check_resets(core, params, xs, chunk)


def _reset_patterns(length: int, chunk: int) -> list[np.ndarray]:
    """No reset; at the first row; at the last and around chunk seams."""
    none = np.zeros(length, bool)
    first, seams = none.copy(), none.copy()
    first[0] = True
    seams[length - 1] = True
    seams[chunk - 1 : chunk + 1] = True
    return [none, first, seams]


def _both_ways(core, params, carry, xs, is_first):
    """(what stepping gives, what unrolling gives): outputs, last carry, carries of all rows."""

    def body(carry, row):
        carry, output = core.step(params, carry, *row)
        return carry, (carry, output)

    start = core.initial_carry() if carry is None else carry
    last, (carries, outputs) = jax.lax.scan(body, start, (xs, is_first))
    unrolled_last, unrolled, entries = core.unroll(params, carry, xs, is_first)
    rebuilt = jax.vmap(core.carry_at, (None, 0))(entries, jnp.arange(len(xs)))
    return (outputs, last, carries), (unrolled, unrolled_last, rebuilt)


def _check_unroll(core, both_ways, xs, is_first) -> None:
    where = f"T={len(is_first)}, resets at {np.flatnonzero(is_first).tolist()}"
    used = jax.tree.map(lambda x: x + 0.1, core.initial_carry())  # a carry that is not initial
    for carry in (None, used):
        stepped, unrolled = both_ways(carry, xs, jnp.asarray(is_first))
        names = ("L1 unroll ≡ scan(step)", "L1 last carry", "L2 carry_at ≡ carry after t + 1 steps")
        for name, expected, actual in zip(names, stepped, unrolled, strict=True):
            assert_close(actual, expected, f"{name}, {where}")
        assert_same_structure(unrolled[1], used, "L1 the carry's structure")


def _check_resets(core, params, xs, chunk) -> None:
    """A reset at t hides rows before t and the carry, NaN in them included, and only those."""

    @jax.jit
    def unroll(xs, is_first, carry=None):
        return core.unroll(params, carry, xs, is_first)[1]

    length = len(xs)
    for reset in sorted({0, 1, chunk - 1, chunk, chunk + 1, length - 1}):
        is_first = jnp.arange(length) == reset
        clean = unroll(xs, is_first)
        disturbed = unroll(xs.at[:reset].add(10.0), is_first)
        assert_close(disturbed[reset:], clean[reset:], f"L3 reset at {reset} hides the past")
        spoilt = unroll(xs.at[:reset].set(jnp.nan), is_first)
        assert_close(spoilt[reset:], clean[reset:], f"L3 reset at {reset} hides NaN before it")
        before = np.abs(np.asarray(disturbed[:reset] - clean[:reset])).max(axis=-1)
        assert (before > 1e-4).all(), f"L3 reset at {reset} must not act on earlier rows"
        # Padding behind keeps the shape, and with it the compiled program.
        alone = unroll(jnp.roll(xs, -reset, axis=0), jnp.zeros(length, bool))[: length - reset]
        assert_close(clean[reset:], alone, f"L3 rows from {reset} on ≡ an episode of their own")
    nothing = jax.tree.map(lambda x: jnp.full(jnp.shape(x), jnp.nan), core.initial_carry())
    clean, spoilt = unroll(xs, is_first := jnp.arange(length) == 0), unroll(xs, is_first, nothing)
    assert_close(spoilt, clean, "L3 a reset at 0 hides a carry of NaN")
