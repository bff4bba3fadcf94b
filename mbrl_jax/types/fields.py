"""Fields of configs: numbers that may be traced, switches, and parts that are named by a module."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

_LARGEST, _SMALLEST = 2.0**128 - 2.0**103, 2.0**-126  # of float32; XLA takes less for 0


class Range(NamedTuple):
    """Where a number may lie; None: no bound. NaN lies nowhere."""

    low: float | None = None  # inclusive
    high: float | None = None  # inclusive
    above: float | None = None  # exclusive
    below: float | None = None  # exclusive

    def __contains__(self, number: object) -> bool:
        low, high, above, below = self
        return (
            isinstance(number, int | float)
            and number == number
            and (low is None or number >= low)
            and (high is None or number <= high)
            and (above is None or number > above)
            and (below is None or number < below)
        )

    def fault(self, number: int | float) -> str:
        """What is wrong with a number, in words; "" where nothing is."""
        if number not in self:
            return f"is out of range: {self}"
        size = abs(number) if isinstance(number, float) else 0.0
        if _LARGEST < size < math.inf:
            return "is infinite in float32: use a smaller number"
        return "is 0 in float32: use 0 or a larger number" if 0.0 < size < _SMALLEST else ""

    def __str__(self) -> str:
        words = ("at least", "at most", "above", "below")
        bounds = zip(words, self, strict=True)
        told = [f"{word} {bound}" for word, bound in bounds if bound not in (None, -math.inf)]
        return " and ".join(told) or "any number"


def number(
    default: float,
    doc: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A config field that may be traced (learning rate, entropy scale, gamma).

    Numbers never decide shapes or Python branches, so a sweep can vmap over them. Bounds as for
    `bounded`.
    """
    metadata = {"number": True, "doc": doc, **_range(low, high, above, below)}
    return dataclasses.field(default=default, metadata=metadata)


def bounded(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    doc: str = "",
) -> Any:
    """A config field of a number, or of a tuple of numbers, with the range that each lies in.

    `experiment.config.validate` refuses what lies outside, before anything is traced.

    Args:
      default: of the field, if it has one.
      low, high: bounds that it may reach; `low=-math.inf` says that any number will do.
      above, below: bounds that it may not reach.
      doc: what it is.
    """
    metadata = {"doc": doc, **_range(low, high, above, below)}
    return dataclasses.field(default=default, metadata=metadata)


def _range(*bounds: float | None) -> dict[str, Range]:
    """The metadata of a range; none where nothing is said."""
    return {} if bounds == (None,) * 4 else {"range": Range(*bounds)}


def switch(
    default: Any,
    *,
    published: Any,
    better: Any,
    why: str,
    price: str = "",
    number: bool = False,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A config field where a published system does something odd, or leaves something out.

    `python -m launch.switches` lists all of them.

    Args:
      default: of the field: one of the two.
      published: what the published code does.
      better: what we would choose.
      why: when to want which, in a line.
      price: what the published side costs on Catch (`experiments/results`); empty: not measured.
      number: as for `number`.
      low, high, above, below: as for `bounded`, where it is a number.
    """
    metadata = {"published": published, "better": better, "why": why, "price": price}
    metadata |= {"number": number, "doc": why}
    metadata |= _range(low, high, above, below)
    return dataclasses.field(default=default, metadata=metadata)


def part(room: str, default: Any = dataclasses.MISSING) -> Any:
    """A config field that holds a part of an open union: any config with a `make`.

    On the command line `sac` names the module `ROOM.sac`, imported on demand, and stands for its
    `Config`; `ROOM.sac:Other` and `my_module:Config` name a class. A new part needs no entry
    anywhere.

    Args:
      room: the package in which bare names are looked up, such as "mbrl_jax.behaviours".
      default: of the field, if it has one.
    """
    return dataclasses.field(default=default, metadata={"room": room})


def cached_make(make: Callable) -> Callable:
    """Cache `make(config, …)`: equal configs give the same record and so a single compile.

    A config that holds a traced number cannot be hashed and is built afresh.
    """
    cached = functools.lru_cache(maxsize=None)(make)

    @functools.wraps(make)
    def wrapper(*args):
        try:
            return cached(*args)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return make(*args)

    return wrapper
