"""Environments by the names that they have outside: CheetahRun-v1, envpool:WalkerWalk-v1, …

Nothing heavy is imported here.
"""

import difflib
import importlib
from typing import Any

FAMILIES = ("gymnax", "envpool", "atari", "probe")  # that ship


def named(text: str) -> Any | None:
    """The config of FAMILY:NAME, or of a bare name of gymnax or else EnvPool; None for no name."""
    family, colon, name = text.partition(":")
    if colon:
        return _family(family).Config(name) if family in FAMILIES and name else None
    if text in _known("gymnax"):
        return _family("gymnax").Config(text)
    if text in _known("envpool"):
        return _family("atari" if _family("envpool").is_atari(text) else "envpool").Config(text)
    return None


def nearest(text: str) -> list[str]:
    """Up to three names that are like it, each once."""
    known = dict.fromkeys((*_known("gymnax"), *_known("envpool")))
    return difflib.get_close_matches(text, known, n=3, cutoff=0.4)


def _family(name: str) -> Any:
    return importlib.import_module(f"mbrl_jax.envs.{name}")


def _known(family: str) -> list[str]:
    """All names of a family; none where its library is not installed."""
    module = _family(family)
    try:
        return module.known_names() if family == "gymnax" else module.known_tasks()
    except ImportError:
        return []
