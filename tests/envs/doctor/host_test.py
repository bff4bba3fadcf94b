"""The doctor on lanes of the host, broken on purpose, and on the environments that ship."""

import numpy as np
import pytest

from mbrl_jax.envs import atari, doctor, gymnax
from mbrl_jax.types import (
    ArraySpec,
    DiscreteSpec,
    EnvSpec,
    HostEnvironment,
    HostEnvironments,
    Timestep,
)

SPEC = EnvSpec(ArraySpec((2,), "float32"), DiscreteSpec(3))
LIMIT = 5


class Lanes:
    """Random walks, each cut after five steps; `fault` names what is wrong with them."""

    def __init__(self, seeds, fault):
        self.fault, self.shape = fault, seeds.shape
        if fault == "seed_unused":
            seeds = np.arange(seeds.size).reshape(seeds.shape)
        if fault == "unseeded":
            seeds = np.random.default_rng().integers(0, 2**31, seeds.shape)
        self.rngs = [np.random.default_rng(int(seed)) for seed in seeds.reshape(-1)]
        self.state = np.zeros((*self.shape, 2), np.float32)
        self.last = np.ones(self.shape, bool)
        self.actions = None
        self.now = np.zeros(self.shape, np.float32), np.zeros(self.shape, bool)

    def reset(self, lanes):
        if lanes is None or self.fault == "resets_all":
            lanes = np.ones(self.shape, bool)
        reward, first = self.now
        return self._row(np.where(lanes, np.float32(0), reward), self._begin(lanes) | first)

    def _begin(self, lanes):
        for lane in zip(*np.nonzero(lanes), strict=True):
            rng = self.rngs[np.ravel_multi_index(lane, self.shape)]
            start = 0.5 if self.fault == "fixed_start" else rng.random()
            self.state[lane] = start, 0.0
        self.last = self.last & ~lanes
        return lanes.copy()

    def send(self, actions):
        self.actions = actions

    def receive(self):
        if self.fault == "crash" and self.state[0, 0, 1] > 2:
            raise RuntimeError("the emulator is gone")
        first = self._begin(self.last)
        moved = ~first
        self.state[..., 0] += 0.1 * self.actions * moved
        self.state[..., 1] += moved
        self.last = self.state[..., 1] >= LIMIT
        row = self._row(self.state[..., 0] * moved, first)
        if self.fault == "fixed_start":
            row.observation[self.last] = 0.5, 0.0
        return row

    def _row(self, reward, first):
        self.now = reward, first
        seen = self.state if self.fault == "shared_memory" else self.state.copy()
        if self.fault == "copies":
            seen, reward = seen * 0 + seen[:1, :1], reward * 0 + reward[:1, :1]
        if self.fault == "flat":
            seen = seen.reshape(-1, 2)
        if self.fault == "float64":
            reward = reward.astype(np.float64)
        no = np.zeros(self.shape, bool)
        return Timestep(seen, reward, first, self.last.copy(), no)


def lanes_with(fault):
    def open_lanes(seeds, *, evaluation):
        del evaluation
        lanes = Lanes(seeds, fault)
        reset = (lambda: lanes.reset(None)) if fault == "reset_of_all" else lanes.reset
        return HostEnvironment(reset, lanes.send, lanes.receive, lambda: None)

    return HostEnvironments(SPEC, open_lanes)


@pytest.mark.parametrize(
    ("fault", "severity", "topic", "words"),
    [
        ("shared_memory", "error", "lanes", "return a copy"),
        ("copies", "error", "lanes", "all lanes show the same"),
        ("unseeded", "error", "determinism", "seed every generator"),
        ("seed_unused", "warning", "determinism", "use the lane's seed"),
        ("resets_all", "error", "lanes", "in the chosen lanes only"),
        ("flat", "error", "dtypes", "observation is float32 (4, 2)"),
        ("float64", "error", "dtypes", "reward is float64 (2, 2) and should be float32 (2, 2)"),
        ("reset_of_all", "error", "lanes", "it is called as reset(None)"),
        ("crash", "error", "lanes", "the emulator is gone"),
        ("fixed_start", "warning", "last observation", "keep the observation that ended"),
    ],
)
def test_a_fault_of_lanes_is_found(fault, severity, topic, words):
    found = doctor.check(lanes_with(fault), steps=60)
    named = [f for f in found if f.severity == severity and f.topic == topic]
    assert any(words in f.sentence for f in named), found
    if severity == "warning":
        assert doctor.count_errors(found) == 0


def test_sound_lanes_have_no_faults():
    found = doctor.check(lanes_with(None), steps=60)
    assert {f.severity for f in found} == {"ok"}
    assert {"determinism", "lanes", "last observation", "end flags"} <= {f.topic for f in found}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(gymnax.Config("Catch-bsuite"), marks=pytest.mark.slow),
        pytest.param(gymnax.Config("Breakout-MinAtar"), marks=pytest.mark.slow),
        gymnax.Config("Pendulum-v1"),
        atari.Config("Pong-v5"),
        atari.Config("Pong-v5", "dreamerv3"),
    ],
)
def test_the_environments_that_ship_have_no_errors(config):
    found = doctor.check(config, steps=250)
    assert doctor.count_errors(found) == 0, found
