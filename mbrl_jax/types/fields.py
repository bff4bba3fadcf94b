"""Fields of configs: numbers that may be traced, switches, and parts that are named by a module."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any


def number(default: float, doc: str = "") -> Any:
    """A config field that may be traced (learning rate, entropy scale, gamma).

    Numbers never decide shapes or Python branches, so a sweep can vmap over them.
    """
    return dataclasses.field(default=default, metadata={"number": True, "doc": doc})


def switch(default: Any, *, published: Any, better: Any, why: str, number: bool = False) -> Any:
    """A config field where a published system does something odd, or leaves something out.

    `python -m launch.switches` lists all of them.

    Args:
      default: of the field: one of the two.
      published: what the published code does.
      better: what we would choose.
      why: when to want which, in a line.
      number: as for `number`.
    """
    metadata = {"published": published, "better": better, "why": why, "number": number, "doc": why}
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
