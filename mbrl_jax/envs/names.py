"""Environments by the names that they have outside: CheetahRun-v1, envpool:WalkerWalk-v1, …

Nothing heavy is imported here.
"""

import difflib
import importlib
from typing import Any

FAMILIES = (  # that ship
    *("gymnax", "envpool", "atari", "gymnasium", "dm_control", "craftax", "brax", "tasks", "probe"),
)


def named(text: str) -> Any | None:
    """The config of FAMILY:NAME, or of a bare name of gymnax, `tasks` or else EnvPool.

    None for what is no name. Raises ConfigError where a family looks for a name and has it not.
    """
    family, colon, name = text.partition(":")
    if colon:
        if family not in FAMILIES or not name:
            return None
        found = _family(family)
        return (getattr(found, "named", None) or found.Config)(name)
    if text in _known("gymnax"):
        return _family("gymnax").Config(text)
    if text in _known("tasks"):
        return _family("tasks").named(text)
    if text in _known("envpool"):
        return _family("atari" if _family("envpool").is_atari(text) else "envpool").Config(text)
    return None


def nearest(text: str) -> list[str]:
    """Up to three names that are like it, each once."""
    known = dict.fromkeys((*_known("gymnax"), *_known("tasks"), *_known("envpool")))
    return difflib.get_close_matches(text, known, n=3, cutoff=0.4)


def library(module: str, remedy: str) -> Any:
    """The module of a library that a family adapts. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{module} cannot be imported ({error}): {remedy}") from error


def _family(name: str) -> Any:
    return importlib.import_module(f"mbrl_jax.envs.{name}")


def _known(family: str) -> list[str]:
    """All names of a family; none where its library is not installed."""
    module = _family(family)
    try:
        return module.known_names() if family == "gymnax" else module.known_tasks()
    except ImportError:
        return []
