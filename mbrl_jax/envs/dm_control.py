"""DeepMind Control (github.com/google-deepmind/dm_control) in our time convention.

`dm_control:cartpole-swingup` is a domain and a task of its suite, seen as states or, with `pixels`,
as the picture of a camera. EnvPool steps the same states many times faster (`CartpoleSwingup-v1`).
A time limit (discount 1) is last and not terminal. Lanes are stepped in processes: a script that
opens some keeps its main part under `if __name__ == "__main__":`.
"""

import dataclasses
import difflib
import functools
import importlib
from typing import Any

from mbrl_jax.envs.names import library
from mbrl_jax.envs.processes import spaces, vector
from mbrl_jax.types import EnvSpec, HostEnvironments, bounded

_REMEDY = (
    "pip install dm-control (its labmaze has no wheel for Python 3.13: use 3.12, or EnvPool's "
    "tasks, such as CartpoleSwingup-v1)"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One task, e.g. "cartpole-swingup", "ball_in_cup-catch", "humanoid_CMU-run"."""

    name: str
    # Parts of the state to keep, in this order; () keeps all. One keeps its shape, several are
    # flattened into one float32 vector.
    leaves: tuple[str, ...] = ()
    pixels: bool = False  # uint8 [size, size, 3] instead of the state
    size: int = bounded(64, low=1)
    camera: int = bounded(0, low=-1)  # -1: the free one
    # Steps of the task with each action: rewards are summed, an end cuts them short.
    action_repeat: int = bounded(1, low=1)
    processes: bool = True  # one for each core, which share the lanes

    @property
    def comes_from(self) -> tuple[str, ...]:
        """Packages that decide what the environment does."""
        return ("dm_control", "mujoco", "gymnasium")

    def make(self) -> HostEnvironments:
        """Describe the task.

        Raises ValueError for a task or a part of the state that is not there, cameras included,
        and where nothing can be rendered.
        """
        return make(self)


def known_tasks() -> list[str]:
    """DOMAIN-TASK of the whole suite."""
    library("dm_control", _REMEDY)
    _task_module().choose_renderer()
    try:
        suite = importlib.import_module("dm_control.suite")
    except Exception as error:  # a renderer that MUJOCO_GL names and that is not there
        remedy = _task_module().RENDERING
        raise ValueError(f"dm_control cannot be imported ({error}): {remedy}") from error
    return ["-".join(pair) for pair in suite.ALL_TASKS]


@functools.cache
def make(config: Config) -> HostEnvironments:
    """Describe a task, and say how its lanes are opened."""
    known = known_tasks()
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(
            f"unknown task {config.name!r}; the nearest of dm_control are {', '.join(near)}"
        )
    if config.pixels and config.leaves:
        raise ValueError("env.leaves are of the state, and env.pixels shows a picture: choose one")
    env = _opener(config)(0)
    observation, observe = spaces.observation_adaptor(
        env.observation_space, config.leaves, who=config.name, flat=True
    )
    action, to_env = spaces.action_adaptor(env.action_space, config.name)
    _require_seen(config, env)
    spec = EnvSpec(observation, action)

    def open_lanes(lane_seeds, *, evaluation):
        del evaluation
        makes = [functools.partial(_opener(config), int(seed)) for seed in lane_seeds.reshape(-1)]
        return vector.open_lanes(
            makes, spec, observe, to_env, lane_seeds, processes=config.processes
        )

    return HostEnvironments(spec, open_lanes, open_lanes)


def _task_module() -> Any:
    return library("mbrl_jax.envs.processes.dm_task", "install gymnasium 1.1 or newer")


def _opener(config: Config) -> Any:
    """(seed) -> the task; what another process gets has no jax in it."""
    domain, _, task = config.name.partition("-")
    look = (config.pixels, config.size, config.camera, config.action_repeat)
    return functools.partial(_task_module().Task, domain, task, *look)


def _require_seen(config: Config, env: Any) -> None:
    """Raise ValueError where the first observation cannot be had: no renderer, no such camera."""
    try:
        env.reset()
    except RuntimeError as error:
        raise ValueError(f"dm_control:{config.name}: {error}") from error
    finally:
        env.close()
