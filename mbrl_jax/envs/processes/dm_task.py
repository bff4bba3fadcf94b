"""A task of DeepMind Control with Gymnasium's interface. Nothing here imports jax."""

import ctypes.util
import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

RENDERING = (
    "install libEGL and libGL (apt-get install -y libegl1 libgl1), or choose another renderer with "
    "MUJOCO_GL=osmesa or glfw, before the program starts"
)

FILM_SIDE = 192  # pixels of a film of what is seen as states


def choose_renderer() -> None:
    """Where there is no display MuJoCo renders with EGL, unless MUJOCO_GL says otherwise.

    Once dm_control is imported it is too late. Without the library nothing is chosen: states can
    be had all the same.
    """
    if not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


class Task(gymnasium.Env):
    """One lane: its states as a dictionary, or the picture of a camera."""

    def __init__(
        self, domain: str, task: str, pixels: bool, size: int, camera: int, repeat: int, seed: int
    ):
        choose_renderer()
        from dm_control import suite

        self._env: Any = suite.load(domain, task, task_kwargs={"random": seed})
        self._pixels, self._size, self._camera, self._repeat = pixels, size, camera, repeat
        action = self._env.action_spec()
        self.action_space = spaces.Box(
            np.broadcast_to(action.minimum, action.shape).astype(np.float64),
            np.broadcast_to(action.maximum, action.shape).astype(np.float64),
            dtype=np.float64,
        )
        if pixels:
            if camera >= (cameras := self._env.physics.model.ncam):
                raise ValueError(
                    f"{domain}-{task} has {cameras} cameras, counted from 0, and no camera {camera}"
                )
            self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        else:
            # A dictionary of a list keeps the task's own order.
            seen = self._env.observation_spec().items()
            self.observation_space = spaces.Dict(
                [(name, spaces.Box(-np.inf, np.inf, x.shape, np.float64)) for name, x in seen]
            )

    def reset(self, *, seed=None, options=None):
        """Begin an episode; the seed was given to the task when it was made."""
        del seed, options
        return self._observe(self._env.reset().observation), {}

    def step(self, action):
        """`repeat` steps with one action; rewards are summed, an end cuts them short."""
        total = 0.0
        for _ in range(self._repeat):
            step = self._env.step(action)
            total += step.reward or 0.0
            if step.last():
                break
        terminated = step.last() and step.discount == 0.0  # a time limit keeps discount 1
        truncated = step.last() and not terminated
        return self._observe(step.observation), total, terminated, truncated, {}

    def render(self):
        """A picture to be looked at, which nobody learns from."""
        return self._picture(max(self._size, FILM_SIDE))

    def close(self):
        """Free the renderer."""
        self._env.close()

    def _observe(self, observation: Any) -> Any:
        if not self._pixels:
            return {name: np.asarray(x, np.float64) for name, x in observation.items()}
        return self._picture(self._size)

    def _picture(self, side: int) -> np.ndarray:
        try:
            return self._env.physics.render(side, side, camera_id=self._camera)
        except Exception as error:  # each renderer raises what it likes
            raise RuntimeError(f"MuJoCo cannot render here ({error}): {RENDERING}") from error
