"""DeepMind Control in lanes, against the suite stepped by hand."""

import ctypes.util
import functools

import jax
import numpy as np
import pytest

from launch import flags
from mbrl_jax.envs import dm_control, envpool
from mbrl_jax.types import ArraySpec, BoundedSpec

pytest.importorskip("dm_control")
dm_control.known_tasks()  # chooses the renderer before the suite is imported
from dm_control import suite  # noqa: E402
from dm_env import restart, termination, transition, truncation  # noqa: E402

HERE = functools.partial(dm_control.Config, processes=False)
SEEDS = np.array([[3], [103]])
needs_egl = pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="no libEGL here")


def _play(config, actions):
    """Rows [T + 1] of lanes [2, 1]."""
    lanes = config.make().open(SEEDS, evaluation=False)
    found = [lanes.reset(None)]
    for action in actions:
        lanes.send(action)
        found.append(lanes.receive())
    lanes.close()
    return found


def _by_hand(name, seed, actions, show, repeat=1):
    """(observation, reward, first, last, terminal) of rows."""
    env = suite.load(*name.split("-"), task_kwargs={"random": seed})
    step = env.reset()
    yield show(env, step.observation), 0.0, True, False, False
    for action in actions:
        if step.last():
            step = env.reset()
            yield show(env, step.observation), 0.0, True, False, False
            continue
        total = 0.0
        for _ in range(repeat):
            step = env.step(action)
            total += step.reward
            if step.last():
                break
        ended = step.last() and step.discount == 0
        yield show(env, step.observation), np.float32(total), False, step.last(), ended


def _states(env, observation):
    del env
    return np.concatenate([np.reshape(x, -1) for x in observation.values()]).astype(np.float32)


def _picture(env, observation):
    del observation
    return env.physics.render(24, 24, camera_id=1)


def _assert_same(found, name, actions, show, repeat=1):
    for lane, (seed,) in enumerate(SEEDS):
        mine = [jax.tree.map(lambda x: x[lane, 0], row) for row in found]  # noqa: B023
        wanted = _by_hand(name, int(seed), actions[:, lane, 0].astype(np.float64), show, repeat)
        for row, by_hand in zip(mine, wanted, strict=True):
            for x, y in zip(row[:5], by_hand, strict=True):
                np.testing.assert_array_equal(x, y)


def _actions(num, size):
    return np.random.default_rng(0).uniform(-1, 1, (num, 2, 1, size)).astype(np.float32)


@pytest.mark.parametrize(("name", "repeat"), [("cartpole-swingup", 1), ("walker-walk", 7)])
def test_states_rewards_and_ends_are_those_of_the_suite(name, repeat):
    config = HERE(name, action_repeat=repeat)
    steps = -(-1_000 // repeat)  # the suite cuts after 1,000
    actions = _actions(steps + 3, config.make().spec.action.size)
    found = _play(config, actions)
    _assert_same(found, name, actions, _states, repeat)
    assert found[steps].is_last.all() and not any(row.is_terminal.any() for row in found)
    assert found[steps + 1].is_first.all() and (found[steps].reward > 0).all()


@needs_egl
def test_pixels_are_those_of_the_suite():
    config = HERE("cartpole-swingup", pixels=True, size=24, camera=1, action_repeat=2)
    assert config.make().spec.observation == ArraySpec((24, 24, 3), "uint8")
    actions = _actions(4, 1)
    _assert_same(_play(config, actions), "cartpole-swingup", actions, _picture, repeat=2)


@needs_egl
@pytest.mark.parametrize("processes", [True, False])
def test_a_film_of_states_shows_what_the_task_renders(processes):
    config = dm_control.Config("cartpole-swingup", processes=processes)
    seeds, side = np.array([[3, 4, 5]]), 192
    lanes = config.make().open_rendered(seeds, evaluation=True)
    lanes.reset(None)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 1, 3, 1)).astype(np.float32)
    for action in actions:
        lanes.send(action)
        lanes.receive()
    pictures = lanes.render()
    lanes.close()
    assert pictures.shape == (1, 3, side, side, 3) and pictures.dtype == np.uint8
    env = suite.load("cartpole", "swingup", task_kwargs={"random": 4})
    env.reset()
    for action in actions:
        env.step(action[0, 1])
    np.testing.assert_array_equal(pictures[0, 1], env.physics.render(side, side, camera_id=0))


def test_lanes_have_processes_of_their_own():
    actions = _actions(5, 1)
    rows = [_play(make("cartpole-swingup"), actions) for make in (HERE, dm_control.Config)]
    jax.tree.map(np.testing.assert_array_equal, *rows)


class _Ends:
    """An environment of dm_env that ends as it is told."""

    def __init__(self, end):
        self.end, self.count = end, 0

    def reset(self):
        return restart({"x": np.zeros(1)})

    def step(self, action):
        self.count += 1
        end = self.end if self.count == 3 else transition
        return end(2.0, {"x": np.full(1, self.count)})


@pytest.mark.parametrize(("end", "flags_"), [(termination, (1, 0)), (truncation, (0, 1))])
def test_discount_0_is_terminal_and_an_end_cuts_a_repetition_short(end, flags_):
    from mbrl_jax.envs.processes.dm_task import Task

    task = Task("cartpole", "swingup", False, 64, 0, 2, 0)
    task._env = _Ends(end)
    assert task.step(None) == ({"x": 2}, 4.0, False, False, {})
    assert task.step(None) == ({"x": 3}, 2.0, *map(bool, flags_), {})


def test_specs_leaves_and_names():
    for ours, theirs in {"cheetah-run": "CheetahRun-v1", "walker-walk": "WalkerWalk-v1"}.items():
        assert HERE(ours).make().spec == envpool.Config(theirs).make().spec
    chosen = HERE("walker-walk", leaves=("velocity",)).make().spec
    assert (chosen.observation, chosen.action) == (ArraySpec((9,), "float32"), BoundedSpec(6))
    found = flags.load_environment("dm_control:cartpole-swingup")
    assert found == dm_control.Config("cartpole-swingup")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (HERE("cartpol-swingup"), "the nearest of dm_control are cartpole-swingup"),
        (HERE("cartpole-swingup", leaves=("x",)), "no observation 'x'; it has position, velocity"),
        (HERE("cartpole-swingup", leaves=("position",), pixels=True), "choose one"),
        (HERE("cartpole-swingup", camera=7, pixels=True), "has 2 cameras.* and no camera 7"),
        (HERE("lqr-lqr_2_1"), "actions without bounds"),
    ],
)
def test_what_is_not_there_is_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.make()


def test_what_cannot_be_rendered_is_said_with_the_remedy(monkeypatch):
    from dm_control.mujoco import engine

    def fails(*args, **kwargs):
        raise RuntimeError("no OpenGL")

    monkeypatch.setattr(engine.Physics, "render", fails)
    with pytest.raises(ValueError, match=r"cannot render here \(no OpenGL\): install libEGL"):
        HERE("cartpole-swingup", pixels=True, size=8).make()
