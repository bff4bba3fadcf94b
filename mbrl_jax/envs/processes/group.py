"""Several lanes in one process, which look like one environment from outside. No jax here."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space


class Group(gymnasium.Env):
    """Lanes [n] whose observations, rewards and ends are arrays; it resets them by itself."""

    def __init__(self, makes: Sequence[Callable[[], Any]], seeds: Sequence[int], group: int):
        self._lanes: Any = SyncVectorEnv(makes, autoreset_mode=AutoresetMode.NEXT_STEP, copy=False)
        self._seeds: Any = list(seeds)
        self._group = group
        self._seen: Any = None
        self.observation_space = self._lanes.observation_space
        self.action_space = batch_space(self._lanes.single_action_space, len(makes))

    def reset(self, *, seed=None, options=None):
        """Begin new episodes in those of `options["lanes"]` [groups, n] that are here."""
        del seed  # each lane has its own
        chosen = np.array(options["lanes"][self._group])
        if chosen.any():
            masked = None if chosen.all() else {"reset_mask": chosen}
            # Only the first episode is seeded: the next ones go on with the lane's generator.
            self._seen, _ = self._lanes.reset(seed=self._seeds, options=masked)
            self._seeds = None
        return self._seen, {}

    def step(self, action):
        """One step of every lane; what they say beside that stays here."""
        self._seen, reward, terminated, truncated, _ = self._lanes.step(action)
        return self._seen, reward, terminated, truncated, {}

    def render(self):
        """Pictures [n, H, W, 3] of the lanes."""
        return np.asarray(self._lanes.call("render"))

    def close(self):
        """Close the lanes."""
        self._lanes.close()
