"""Laws L1 to L3: cores that are broken in one way each are found."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import testing
from mbrl_jax.types import SequenceCore

pytestmark = pytest.mark.usefixtures("quick_compile")

DECAY = 0.9


def _advance(params, carry, x, is_first):
    """h ← decay · h + W x, from nothing on a first row; the output is h."""
    kept = carry if is_first is None else jnp.where(is_first, 0.0, carry)
    carry = DECAY * kept + x @ params
    return carry, carry


def _unroll(params, carry, xs, is_first):
    start = jnp.zeros(3) if carry is None else carry
    last, outputs = jax.lax.scan(lambda c, row: _advance(params, c, *row), start, (xs, is_first))
    return last, outputs, outputs


CORE = SequenceCore(
    init=lambda key: jax.random.normal(key, (5, 3)),
    initial_carry=lambda: jnp.zeros(3),
    step=_advance,
    unroll=_unroll,
    carry_at=lambda entries, t: entries[t],
    width=3,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The core above, with functions replaced."""

    changes: Any = ()
    chunk_size: int = 2

    def make(self, in_size):
        """Build it."""
        assert in_size == 5
        return CORE._replace(**dict(self.changes))


def _from_nothing(params, carry, xs, is_first):
    return _unroll(params, None, xs, is_first)


def _last_but_one(params, carry, xs, is_first):
    _, outputs, entries = _unroll(params, carry, xs, is_first)
    return entries[max(len(xs) - 2, 0)], outputs, entries


def _wide(params, carry, xs, is_first):
    last, outputs, entries = _unroll(params, carry, xs, is_first)
    return (last, last), outputs, entries


def _deaf(advance):
    """Both ways alike: a core whose resets do what `advance` does of them."""

    def unroll(params, carry, xs, is_first):
        def body(carry, row):
            carry, output = advance(params, carry, *row)
            return carry, (output, carry)

        start = jnp.zeros(3) if carry is None else carry
        last, (outputs, entries) = jax.lax.scan(body, start, (xs, is_first))
        return last, outputs, entries

    return {"step": advance, "unroll": unroll}


def _half(params, carry, x, is_first):
    return _advance(params, jnp.where(is_first, 0.5 * carry, carry), x, None)


def _multiplied(params, carry, x, is_first):
    return _advance(params, carry * (1.0 - is_first), x, None)


def _late(params, carry, x, is_first):
    """A reset empties the carry behind its row."""
    carry, output = _advance(params, carry, x, None)
    return jnp.where(is_first, x @ params, carry), output


BROKEN = {
    "carry": ({"unroll": _from_nothing}, "L1 unroll"),
    "last": ({"unroll": _last_but_one}, "L1 last carry"),
    "structure": ({"unroll": _wide}, "(?s)L1|structure"),
    "carry_at": ({"carry_at": lambda entries, t: entries[t - 1]}, "L2 carry_at"),
    "half reset": (_deaf(_half), "L3 reset at 1 hides the past"),
    "no reset": (_deaf(lambda p, c, x, _: _advance(p, c, x, None)), "L3 reset at 1 hides the past"),
    "multiplied": (_deaf(_multiplied), "hides NaN"),
    "late": (_deaf(_late), "L3 reset at 1 hides the past"),
}


def test_the_plain_core_keeps_the_laws():
    testing.check_core(Config())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_cores_are_found(name):
    changes, message = BROKEN[name]
    with pytest.raises((AssertionError, ValueError), match=message):
        testing.check_core(Config(tuple(changes.items())))


def test_a_reset_that_acts_on_earlier_rows_is_found():
    """Rows before a reset forget as if it had been at the first row."""

    def unroll(params, carry, xs, is_first):
        reset = jnp.argmax(is_first)
        blank = jnp.where(is_first.any() & (jnp.arange(len(xs)) < reset), 0.0, 1.0)
        return _unroll(params, carry, xs * blank[:, None], is_first)

    with pytest.raises(AssertionError, match="L1 unroll|must not act on earlier rows"):
        testing.check_core(Config((("unroll", unroll),)))
