"""Lanes [S, N] over Gymnasium's vector environments, in our time convention.

With `AutoresetMode.NEXT_STEP` a lane whose episode is over ignores its next action and shows the
first row of a new episode with reward 0, as we want it.
"""

import contextlib
import functools
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mbrl_jax.envs.processes import worker
from mbrl_jax.types import EnvSpec, HostEnvironment, PyTree, Timestep


def open_lanes(
    makes: Sequence[Callable[[], Any]],
    spec: EnvSpec,
    observe: Callable[[Any], PyTree],
    to_env: Callable[[np.ndarray], np.ndarray],
    lane_seeds: np.ndarray,
    *,
    processes: bool,
) -> HostEnvironment:
    """Open lanes, each with its own seed.

    Args:
      makes: [S · N] functions that open an environment of Gymnasium's interface.
      spec: of one.
      observe: (what n lanes show) -> our observations [n, …].
      to_env: (our actions [n, …]) -> theirs.
      lane_seeds: [S, N].
      processes: a process for each lane; else all are stepped here, one after the other.
    """
    lanes = _Lanes(makes, spec, observe, to_env, lane_seeds, processes)
    return HostEnvironment(lanes.reset, lanes.send, lanes.receive, lanes.close)


class _Lanes:
    """Gymnasium's vector environment and the newest rows; arrays are flat, [S · N]."""

    def __init__(self, makes, spec, observe, to_env, lane_seeds, processes):
        self._spec, self._observe, self._to_env = spec, observe, to_env
        self._shape = np.shape(lane_seeds)
        self._seeds: Any = [int(seed) for seed in np.reshape(lane_seeds, -1)]
        self._env, self._processes = _vector(makes, processes), processes
        self._actions: Any = None
        self._now: Any = None  # the newest Timestep, NumPy's
        # Processes that were never closed would be waited for when the program ends.
        self._finish = weakref.finalize(self, _close, self._env)

    def reset(self, lanes: np.ndarray | None = None) -> Timestep:
        """Begin new episodes in `lanes` [S, N] (None: in all); the other rows stay as they are."""
        count = int(np.prod(self._shape))
        chosen = np.ones(count, bool) if lanes is None else np.array(lanes).reshape(-1)
        if chosen.any():
            options = None if chosen.all() else {"reset_mask": chosen}
            # Only the first episode is seeded: the next ones go on with the lane's generator.
            raw, _ = self._env.reset(seed=self._seeds, options=options)
            self._seeds = None
            no: Any = np.zeros(count, bool)
            reward: Any = np.zeros(count, np.float32)
            fresh = Timestep(self._observe(raw), reward, ~no, no, no)
            now = fresh if self._now is None else self._now
            self._now = jax.tree.map(lambda new, old: _choose(chosen, new, old), fresh, now)
        return self._shaped(self._now)

    def send(self, actions: np.ndarray) -> None:
        """Begin to step all lanes; without processes they wait for `receive`."""
        flat = np.asarray(actions)
        self._actions = self._to_env(flat.reshape((-1,) + flat.shape[2:]))
        if self._processes:
            self._env.step_async(self._actions)

    def receive(self) -> Timestep:
        """Wait for the rows that the actions led to."""
        stepped = self._env.step_wait() if self._processes else self._env.step(self._actions)
        raw, reward, terminated, truncated, _ = stepped
        is_first, is_last = self._now.is_last, terminated | truncated
        observation, reward = self._observe(raw), reward.astype(np.float32)
        self._now = Timestep(observation, reward, is_first, is_last, terminated)
        return self._shaped(self._now)

    def close(self) -> None:
        """End the processes."""
        self._finish()

    def _shaped(self, flat: Timestep) -> Timestep:
        return jax.tree.map(lambda x: x.reshape(self._shape + x.shape[1:]), flat)


def _vector(makes: Sequence[Callable[[], Any]], processes: bool) -> Any:
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, on the precision of spaces
        if not processes:
            return SyncVectorEnv(makes, autoreset_mode=AutoresetMode.NEXT_STEP)
        guarded = [functools.partial(worker.opened, make, os.getpid()) for make in makes]
        # Not by fork: jax has threads by now, which a forked process would wait for for ever.
        try:
            return AsyncVectorEnv(
                guarded, context="forkserver", autoreset_mode=AutoresetMode.NEXT_STEP
            )
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                "the processes of the lanes ended when they started: a script of your own needs "
                "`if __name__ == '__main__':` before what it runs, or env.processes=false"
            ) from error


def _close(env: Any) -> None:
    with contextlib.suppress(Exception):  # a process that is gone already
        env.close()


def _choose(chosen: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Of each lane [n], a row of `new` or of `old` [n, …]."""
    return np.where(chosen.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
