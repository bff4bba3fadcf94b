"""Environments of this project's own, in jax: tasks that only memory solves, and a cart-pole.

`named("RepeatPreviousHard")` gives the config; `tasks:RepeatPreviousHard` on the command line.
"""

import difflib
from typing import Any

from mbrl_jax.envs.tasks import cartpole_swingup, repeat_previous, rooms
from mbrl_jax.errors import ConfigError

__all__ = ["known_tasks", "named"]

_MODULES: tuple[Any, ...] = (repeat_previous, rooms, cartpole_swingup)


def known_tasks() -> list[str]:
    """Names of all tasks."""
    return [name for module in _MODULES for name in module.SIZES]


def named(name: str) -> Any:
    """The config of a task. Raises ConfigError for a name that no task has."""
    for module in _MODULES:
        if name in module.SIZES:
            return module.Config(name)
    near = difflib.get_close_matches(name, known_tasks(), n=3, cutoff=0.3) or known_tasks()
    raise ConfigError(f"there is no task {name!r}; those like it are {', '.join(near)}")
