"""Lanes [S, N] over Gymnasium's vector environments, in our time convention.

With `AutoresetMode.NEXT_STEP` a lane whose episode is over ignores its next action and shows the
first row of a new episode with reward 0, as we want it. Processes hold equal groups of lanes; the
last one is filled up with lanes that nobody looks at.
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
    to_env: Callable[[PyTree], Any],
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
      processes: one for each core, which share the lanes; else all are stepped here in turn.
    """
    lanes = _Lanes(makes, spec, observe, to_env, lane_seeds, processes)
    return HostEnvironment(lanes.reset, lanes.send, lanes.receive, lanes.close, lanes.render)


class _Lanes:
    """Gymnasium's vector environment and the newest rows; arrays are flat, [S · N]."""

    def __init__(self, makes, spec, observe, to_env, lane_seeds, processes):
        self._spec, self._observe, self._to_env = spec, observe, to_env
        self._shape = lane_seeds.shape
        self._count = lane_seeds.size
        self._seeds: Any = [int(seed) for seed in lane_seeds.reshape(-1)]
        self._groups = min(self._count, len(os.sched_getaffinity(0))) if processes else 0
        self._env = _in_groups(makes, self._seeds, self._groups) if processes else _here(makes)
        self._actions: Any = None
        self._now: Any = None  # the newest Timestep, NumPy's
        # Processes that were never closed would be waited for when the program ends.
        self._finish = weakref.finalize(self, _close, self._env)

    def reset(self, lanes: np.ndarray | None = None) -> Timestep:
        """Begin new episodes in `lanes` [S, N] (None: in all); the other rows stay as they are."""
        chosen = np.ones(self._count, bool) if lanes is None else np.array(lanes).reshape(-1)
        if chosen.any():
            raw = self._reset(chosen)
            no: Any = np.zeros(self._count, bool)
            reward: Any = np.zeros(self._count, np.float32)
            fresh = Timestep(self._seen(raw), reward, ~no, no, no)
            now = fresh if self._now is None else self._now
            self._now = jax.tree.map(lambda new, old: _choose(chosen, new, old), fresh, now)
        return self._shaped(self._now)

    def send(self, actions: PyTree) -> None:
        """Begin to step all lanes; without processes they wait for `receive`."""
        flat = jax.tree.map(lambda x: np.asarray(x).reshape((-1,) + np.shape(x)[2:]), actions)
        self._actions = self._to_env(flat)
        if self._groups:
            grouped = functools.partial(_grouped, groups=self._groups)
            self._env.step_async(jax.tree.map(grouped, self._actions))

    def receive(self) -> Timestep:
        """Wait for the rows that the actions led to."""
        stepped = self._env.step_wait() if self._groups else self._env.step(self._actions)
        raw, *said, _ = stepped
        reward, terminated, truncated = (x.reshape(-1)[: self._count] for x in said)
        is_first, is_last = self._now.is_last, terminated | truncated
        reward = reward.astype(np.float32)
        self._now = Timestep(self._seen(raw), reward, is_first, is_last, terminated)
        return self._shaped(self._now)

    def render(self) -> np.ndarray:
        """Pictures of all lanes, where the environments were made to give them."""
        pictures = np.asarray(self._env.call("render"))
        flat = pictures.reshape((-1,) + pictures.shape[-3:])[: self._count]
        return flat.reshape(self._shape + flat.shape[1:])

    def close(self) -> None:
        """End the processes."""
        self._finish()

    def _reset(self, chosen: np.ndarray) -> Any:
        """What the lanes show after new episodes in those chosen [S · N]."""
        if self._groups:  # they know their seeds
            return self._env.reset(options={"lanes": _grouped(chosen, self._groups)})[0]
        options = None if chosen.all() else {"reset_mask": chosen}
        # Only the first episode is seeded: the next ones go on with the lane's generator.
        seeds, self._seeds = self._seeds, None
        return self._env.reset(seed=seeds, options=options)[0]

    def _seen(self, raw: Any) -> PyTree:
        return jax.tree.map(lambda x: x[: self._count], self._observe(raw))

    def _shaped(self, flat: Timestep) -> Timestep:
        return jax.tree.map(lambda x: x.reshape(self._shape + x.shape[1:]), flat)


def _here(makes: Sequence[Callable[[], Any]]) -> Any:
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, on the precision of spaces
        return SyncVectorEnv(makes, autoreset_mode=AutoresetMode.NEXT_STEP)


def _in_groups(makes: Sequence[Callable[[], Any]], seeds: Sequence[int], groups: int) -> Any:
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode

    from mbrl_jax.envs.processes.group import Group

    places = _grouped(np.arange(len(makes)), groups)
    opened = [
        functools.partial(Group, [makes[i] for i in row], [seeds[i] for i in row], group)
        for group, row in enumerate(places)
    ]
    guarded = [functools.partial(worker.opened, make, os.getpid()) for make in opened]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Not by fork: jax has threads by now, which a forked process would wait for for ever.
            return AsyncVectorEnv(
                guarded, context="forkserver", autoreset_mode=AutoresetMode.DISABLED
            )
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                "the processes of the lanes ended when they started: a script of your own needs "
                "`if __name__ == '__main__':` before what it runs, or env.processes=false"
            ) from error


def _grouped(lanes: np.ndarray, groups: int) -> np.ndarray:
    """[n, …] as [groups, n / groups, …], the last lane repeated where that does not come out."""
    size = -(-len(lanes) // groups)
    filled = np.minimum(np.arange(groups * size), len(lanes) - 1)
    return lanes[filled].reshape((groups, size, *lanes.shape[1:]))


def _close(env: Any) -> None:
    with contextlib.suppress(Exception):  # a process that is gone already
        env.close()


def _choose(chosen: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Of each lane [n], a row of `new` or of `old` [n, …]."""
    return np.where(chosen.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
