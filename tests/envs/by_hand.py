"""Environments of Gymnasium's interface, and how they are stepped by hand."""

import gymnasium
import numpy as np
from gymnasium import spaces

from mbrl_jax.types import Timestep


class Walk(gymnasium.Env):
    """A walk with every kind of space; it ends for good at 5, and by itself never."""

    def __init__(self, start=0):
        image = spaces.Box(0, 255, (2, 2, 1), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "where": spaces.Box(-np.inf, np.inf, (), np.float64),
                "both": spaces.Tuple((image, spaces.Discrete(3, start=1))),
                "bits": spaces.MultiBinary(2),
            }
        )
        self.action_space = spaces.MultiDiscrete([3, 2], start=[-1, 0])
        self._start, self._where = start, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._where = self._start + self.np_random.integers(0, 3)
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self._where += action[0] * (1 + action[1]) + self.np_random.integers(0, 2)
        return self._observation(), float(self._where) / 3, bool(self._where > 5), False, {}

    def _observation(self):
        place = int(self._where)
        return {
            "where": np.float64(self._where),
            "both": (np.full((2, 2, 1), place % 256, np.uint8), np.int64(1 + place % 3)),
            "bits": np.array([place % 2, place > 2], np.int8),
        }


class Painted(gymnasium.Env):
    """Counts steps; its picture is as bright as the count."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode, self._count = render_mode, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._count += int(action)
        return np.full(2, self._count, np.float32), 1.0, False, False, {}

    def render(self):
        assert self.render_mode == "rgb_array"
        return np.full((5, 7, 3), self._count, np.uint8)


class Arms(gymnasium.Env):
    """Actions are a dictionary with a tuple in it; it shows what arrived, and has no end."""

    def __init__(self):
        self.observation_space = spaces.Box(-10, 10, (5,), np.float32)
        force = spaces.Box(0, 10, (2,), np.float32)
        self.action_space = spaces.Dict(
            {
                "move": spaces.MultiDiscrete([2, 4]),
                "arms": spaces.Tuple((force, spaces.Discrete(3, start=-1))),
            }
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(5, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        force, side = action["arms"]
        seen = np.concatenate([action["move"], force, [side]]).astype(np.float32)
        return seen, 1.0, False, False, {}


def rows(env, seed, actions):
    """Rows of our convention: of `actions`, the one after a last row is ignored."""
    observation, _ = env.reset(seed=int(seed))
    yield Timestep(observation, 0.0, True, False, False)
    over = False
    for action in actions:
        if over:
            observation, _ = env.reset()
            yield Timestep(observation, 0.0, True, False, False)
            over = False
        else:
            observation, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            yield Timestep(observation, reward, False, over, terminated)


def assert_lane(found, wanted, observe):
    """Rows of one lane [T] are those of its environment, to the bits of float32."""
    for t, (row, by_hand) in enumerate(zip(found, wanted, strict=True)):
        seen = observe(by_hand.observation)
        for name in seen if isinstance(seen, dict) else [None]:
            mine, theirs = (
                (row.observation, seen)
                if name is None
                else (
                    row.observation[name],
                    seen[name],
                )
            )
            np.testing.assert_array_equal(mine, theirs, err_msg=f"row {t}")
        assert row.reward == np.float32(by_hand.reward), t
        assert tuple(map(bool, row[2:5])) == tuple(map(bool, by_hand[2:5])), t
