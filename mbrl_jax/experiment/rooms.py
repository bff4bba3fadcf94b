"""Open unions: parts that are found by the name of their module, without a list of them anywhere.

A room is a package (`mbrl_jax.behaviours`: `sac` is `mbrl_jax.behaviours.sac:Config`) or a module
with several configs (`mbrl_jax.networks.encoders`: `Dense` is its class).
"""

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import re
from types import ModuleType
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class NotFound(ValueError):
    """No part has that name."""


def find(room: str, text: str) -> type:
    """The config class that `text` names: a part of the room, or "module:Class".

    Raises NotFound, with the names that there are.
    """
    module, colon, qualname = text.partition(":")
    if colon:
        if not _NAME.fullmatch(module) or not _NAME.fullmatch(qualname):
            raise NotFound(f"{text!r} names no class; write module:Class")
        return _checked(_class_in(_imported(module), qualname), text)
    package = importlib.import_module(room)
    inside = {name.lower(): name for name in names(room)}
    if text.lower() not in inside:
        near = difflib.get_close_matches(text.lower(), inside, n=3, cutoff=0.4)
        advice = f"the nearest are {', '.join(near)}; " if near else ""
        raise NotFound(
            f"{room} has {', '.join(inside.values())} and no {text!r}; {advice}a part of your own "
            "is module:Class"
        )
    name = inside[text.lower()]
    if not _is_package(package):
        return getattr(package, name)
    return importlib.import_module(f"{room}.{name}").Config


def named(room: str, text: str) -> Any | None:
    """The config that a name from outside stands for, where the room knows such names."""
    known = getattr(importlib.import_module(room), "named", None)
    return known(text) if known else None


def nearest(room: str, text: str) -> str:
    """Advice: the names from outside that are like it; "" where the room knows none."""
    known = getattr(importlib.import_module(room), "nearest", None)
    near = known(text) if known else []
    return f"; names like it are {', '.join(near)}" if near else ""


def names(room: str) -> list[str]:
    """Parts of a room, as they are written on the command line."""
    package = importlib.import_module(room)
    if not _is_package(package):
        return sorted(name for name, value in vars(package).items() if _is_own(package, value))
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if _has_config(room, name))


def _is_package(module: ModuleType) -> bool:
    return hasattr(module, "__path__")


def _is_own(module: ModuleType, value: object) -> bool:
    """Whether a value is a config that the module defines."""
    return _is_part(value) and value.__module__ == module.__name__


def _is_part(value: object) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "make")


def _has_config(room: str, name: str) -> bool:
    """Whether a module of a package has a config; modules that lack a library have none."""
    try:
        return _is_part(getattr(importlib.import_module(f"{room}.{name}"), "Config", None))
    except ImportError:
        return False


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a file of one's own can raise whatever it likes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NotFound(f"cannot import {module!r} ({lines[0]})") from error


def _class_in(module: ModuleType, qualname: str) -> object:
    found: object = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _checked(found: Any, text: str) -> type:
    if not _is_part(found) or not found.__dataclass_params__.frozen:
        raise NotFound(f"{text!r} is no frozen dataclass with a function make")
    return found
