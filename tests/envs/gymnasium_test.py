"""Gymnasium's environments in lanes, against the same ones stepped by hand."""

import dataclasses
import functools
import operator
import os
import signal
import sys

import gymnasium as bare
import jax
import numpy as np
import pytest
from gymnasium import spaces

from launch import flags
from mbrl_jax.envs import gymnasium, names
from mbrl_jax.envs.processes.spaces import action_adaptor, observation_adaptor
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.annotations import sources_of
from mbrl_jax.experiment.experiment import with_settings
from mbrl_jax.loops import play
from mbrl_jax.runs import circumstances
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    MultiDiscreteSpec,
)
from tests import small
from tests.envs import by_hand

HERE = functools.partial(gymnasium.Config, processes=False)
SEEDS = np.array([[3, 4], [103, 104]])


def _play(config, actions):
    """Rows [T + 1] of lanes [2, 2]."""
    lanes = config.make().open(SEEDS, evaluation=False)
    found = [lanes.reset(None)]
    for action in actions:
        lanes.send(action)
        found.append(lanes.receive())
    lanes.close()
    return found


def _lane(found, seed, lane):
    return [jax.tree.map(lambda x: x[seed, lane], row) for row in found]


def test_processes_share_lanes_that_do_not_come_out_even():
    name, seeds = "tests.envs.by_hand:Walk", np.array([[3, 4, 5]])
    actions = np.random.default_rng(0).integers(0, (3, 2), (40, 1, 3, 2))
    chosen = np.array([[False, True, True]])
    found = []
    for make in (gymnasium.Config, HERE):
        lanes = make(name, leaves=("both.0", "both.1", "bits")).make().open(seeds, evaluation=False)
        rows = [lanes.reset(None)]
        for t, action in enumerate(actions):
            lanes.send(action)
            rows += [lanes.receive(), *([lanes.reset(chosen)] if t % 10 == 3 else [])]
        lanes.close()
        found.append(rows)
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert any(row.is_terminal.any() for row in found[0])


def _forward(carry, timestep, step):
    return carry, np.ones(timestep.reward.shape, np.int32)


def test_lanes_render_where_the_environment_can_be_asked_to():
    bare.register("Painted-v0", by_hand.Painted, max_episode_steps=9)
    made = HERE("Painted-v0").make()
    lanes = made.open_rendered(np.array([[3], [4]]), evaluation=True)
    (film, _) = play.play_film(lanes, _forward, None, max_steps=3, rendered=True)
    assert film.frames.shape == (4, 5, 7, 3) and film.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert made.open(np.array([[3]]), evaluation=True).reset(None).observation.shape == (1, 1, 2)
    assert HERE("tests.envs.by_hand:Walk").make().open_rendered is None


def test_what_cannot_be_rendered_says_why():
    lanes = HERE("CartPole-v1").make().open(np.array([[3]]), evaluation=True)
    broken = lanes._replace(render=lambda: 1 / 0)
    with pytest.raises(ConfigError, match="gives no pictures here .division by zero.: install"):
        play.play_film(broken, _forward, None, 3, rendered=True)


@pytest.mark.parametrize("processes", [True, False])
def test_cartpole_is_what_it_is_by_hand(processes):
    config = gymnasium.Config("CartPole-v1", processes=processes)
    spec = config.make().spec
    assert (spec.observation, spec.action) == (ArraySpec((4,), "float32"), DiscreteSpec(2))
    actions = np.random.default_rng(0).integers(0, 2, (80, 2, 2))
    found = _play(config, actions)
    for seed, lane in np.ndindex(2, 2):
        mine = _lane(found, seed, lane)
        assert sum(row.is_terminal for row in mine) >= 2
        assert [row.is_first for row in mine[1:]] == [row.is_last for row in mine[:-1]]
        wanted = by_hand.rows(bare.make("CartPole-v1"), SEEDS[seed, lane], actions[:, seed, lane])
        by_hand.assert_lane(mine, wanted, lambda x: x)


def test_a_time_limit_is_last_and_not_terminal_and_bounds_are_rescaled():
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (45, 2, 2, 1)).astype(np.float32)
    found = _play(HERE("Pendulum-v1", max_steps=20), actions)
    mine = _lane(found, 1, 0)
    assert [t for t, row in enumerate(mine) if row.is_last] == [20, 41]
    assert not any(row.is_terminal for row in mine)
    torques = (2.0 * np.clip(actions[:, 1, 0].astype(np.float64), -1, 1)).astype(np.float32)
    wanted = by_hand.rows(bare.make("Pendulum-v1", max_episode_steps=20), 103, torques)
    by_hand.assert_lane(mine, wanted, lambda x: x)


def _walk_of_ours(seen):
    image, choice = seen["both"]
    return {
        "where": np.float32([seen["where"]]),
        "both.0": image,
        "both.1": np.float32(np.arange(1, 4) == choice),
        "bits": np.float32(seen["bits"]),
    }


def test_a_function_of_ones_own_with_every_kind_of_space():
    config = HERE("tests.envs.by_hand:Walk", options=("start=-1",), max_steps=9)
    spec = config.make().spec
    assert spec.action == MultiDiscreteSpec((3, 2))
    assert spec.observation == DictSpec(
        (
            ("bits", ArraySpec((2,), "float32")),
            ("both.0", ArraySpec((2, 2, 1), "uint8")),
            ("both.1", ArraySpec((3,), "float32")),
            ("where", ArraySpec((1,), "float32")),
        )
    )
    actions = np.random.default_rng(0).integers(0, (3, 2), (60, 2, 2, 2))
    found = _play(config, actions)
    for seed, lane in np.ndindex(2, 2):
        mine = _lane(found, seed, lane)
        env = bare.wrappers.TimeLimit(by_hand.Walk(-1), 9)
        wanted = by_hand.rows(env, SEEDS[seed, lane], actions[:, seed, lane] + [-1, 0])
        by_hand.assert_lane(mine, wanted, _walk_of_ours)
    ends = np.stack([(row.is_last, row.is_terminal) for row in found])
    assert ends[:, 1].any() and (ends[:, 0] & ~ends[:, 1]).any()


@pytest.mark.parametrize("processes", [True, False])
def test_dictionaries_of_actions_arrive_as_they_were_chosen(processes):
    config = gymnasium.Config("tests.envs.by_hand:Arms", processes=processes)
    spec = config.make().spec.action
    assert spec == DictActionSpec(
        (
            ("arms.0", BoundedSpec(2)),
            ("arms.1", DiscreteSpec(3)),
            ("move", MultiDiscreteSpec((2, 4))),
        )
    )
    rng, lead = np.random.default_rng(0), (12, 2, 2)
    actions = {
        "arms.0": rng.uniform(-1.2, 1.2, (*lead, 2)).astype(np.float32),
        "arms.1": rng.integers(0, 3, lead),
        "move": rng.integers(0, (2, 4), (*lead, 2)),
    }
    found = _play(config, [jax.tree.map(operator.itemgetter(t), actions) for t in range(lead[0])])
    for seed, lane in np.ndindex(2, 2):
        mine = _lane(found, seed, lane)
        move, force, side = (actions[n][:, seed, lane] for n in ("move", "arms.0", "arms.1"))
        arrived = np.concatenate([move, 5 * np.clip(force, -1, 1) + 5, side[:, None] - 1], axis=1)
        np.testing.assert_allclose([x.observation for x in mine[1:]], arrived, atol=1e-6)


def test_leaves_can_be_chosen():
    whole = HERE("tests.envs.by_hand:Walk")
    image = HERE("tests.envs.by_hand:Walk", leaves=("both.0",)).make()
    assert image.spec.observation == ArraySpec((2, 2, 1), "uint8")
    two = HERE("tests.envs.by_hand:Walk", leaves=("where", "both.1"))
    assert two.make().spec.observation == ArraySpec((4,), "float32")
    all_of_it, both = (_play(c, [])[0].observation for c in (whole, two))
    wanted = np.concatenate([all_of_it["where"], all_of_it["both.1"]], axis=-1)
    np.testing.assert_array_equal(both, wanted)
    with pytest.raises(
        ValueError, match="no observation 'there'; it has bits, both.0, both.1, where"
    ):
        HERE("tests.envs.by_hand:Walk", leaves=("there",)).make()


def test_some_lanes_can_begin_anew_and_rows_stay_as_they_are():
    lanes = HERE("CartPole-v1").make().open(SEEDS, evaluation=True)
    rows = [lanes.reset(None)]
    for _ in range(3):
        lanes.send(np.ones((2, 2), np.int32))
        rows.append(lanes.receive())
    copy = jax.tree.map(np.array, rows[-1])
    chosen = np.array([[True, False], [False, False]])
    after = lanes.reset(chosen)
    np.testing.assert_array_equal(after.is_first, chosen)
    np.testing.assert_array_equal(after.observation[~chosen], rows[-1].observation[~chosen])
    np.testing.assert_array_equal(after.reward, np.where(chosen, 0, 1))
    assert (after.observation[0, 0] != rows[-1].observation[0, 0]).all()
    jax.tree.map(np.testing.assert_array_equal, rows[-1], copy)
    lanes.send(np.ones((2, 2), np.int32))
    assert not lanes.receive().is_first.any()


def test_signals_to_a_whole_job_leave_the_lanes_to_their_owner():
    lanes = gymnasium.Config("CartPole-v1").make().open(SEEDS, evaluation=False)
    lanes.reset(None)
    for process in lanes.reset.__self__._env.processes:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(process.pid, number)
    lanes.send(np.ones((2, 2), np.int32))
    assert (lanes.receive().reward == 1).all()
    lanes.close()


def test_a_run_records_what_its_environment_comes_from():
    experiment = dataclasses.replace(small.catch(), env=HERE("tests.envs.by_hand:Walk"))
    found = circumstances.record(experiment)
    assert found["versions"]["gymnasium"] == bare.__version__
    assert "tests/envs/by_hand.py" in found["files"]


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (spaces.Text(5), "a Text, which is no array.*ObservationWrapper"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "a, a Sequence"),
    ],
)
def test_observations_without_a_counterpart_are_refused(space, sentence):
    with pytest.raises(ValueError, match=f"it shows {sentence}"):
        observation_adaptor(space, who="it")


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (spaces.Text(5), "a Text as action.*ActionWrapper"),
        (spaces.Dict({"a": spaces.Tuple([spaces.Text(5)])}), "a Text as action"),
        (spaces.Tuple([]), "an empty Tuple"),
        (spaces.Box(0, 3, (2,), np.int32), "a Box as action"),
        (spaces.Box(-np.inf, np.inf, (2,)), "actions without bounds"),
    ],
)
def test_actions_without_a_counterpart_are_refused(space, sentence):
    with pytest.raises(ValueError, match=f"it (.part 'a.0'. )?takes {sentence}"):
        action_adaptor(space, "it")


def test_numbers_of_64_bits_become_those_of_32():
    for dtype, ours in {"int64": "int32", "int8": "int8", "float16": "float16"}.items():
        spec, observe = observation_adaptor(spaces.Box(0, 9, (3,), np.dtype(dtype)), who="it")
        assert spec == ArraySpec((3,), ours)
        assert observe(np.ones((2, 3), dtype)).dtype == ours
    spec, to_env = action_adaptor(spaces.Box(np.float32([[0, -4]]), np.float32([[1, 4]])), "it")
    assert spec == BoundedSpec(2)
    np.testing.assert_allclose(to_env(np.float32([[0.5, -9]])), [[[0.75, -4]]])


def test_names_that_nobody_registered_are_refused():
    with pytest.raises(
        ValueError, match="there is no .*Did you mean: `CartPole`.*gymnasium:PACKAGE:ID"
    ):
        HERE("CartPol-v1").make()
    with pytest.raises(ValueError, match="env.options: 'slippery' is not of the form"):
        HERE("FrozenLake-v1", options=("slippery",)).make()
    with pytest.raises(ValueError, match="cannot be made .*argument 'nope'.*look at env.options"):
        HERE("CartPole-v1", options=("nope=1",)).make()


def test_what_a_package_lacks_is_said_with_the_remedy(monkeypatch):
    def lacks():
        raise ModuleNotFoundError("No module named 'imageio'")

    monkeypatch.setattr(by_hand, "lacks", lacks, raising=False)
    with pytest.raises(ValueError, match="No module named 'imageio'.*install that"):
        HERE("tests.envs.by_hand:lacks").make()


def test_only_a_name_that_is_written_down_imports_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_walk.py").write_text("from tests.envs.by_hand import Walk\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'my_walk' is not imported, and what is read from a file"):
        HERE("my_walk:Walk").make()
    config = names.named("gymnasium:my_walk:Walk")
    assert config == gymnasium.Config("my_walk:Walk") and "my_walk" in sys.modules
    assert config.make().spec.action == MultiDiscreteSpec((3, 2))
    assert sources_of(config)[1:] == ["gymnasium", "my_walk"]
    monkeypatch.delitem(sys.modules, "my_walk")
    with pytest.raises(ConfigError, match="cannot import 'my_wlk'"):
        flags.load_environment("gymnasium:my_wlk:Walk")


def test_it_is_named_like_the_others():
    experiment = flags.load_experiment("drama_catch")
    found = with_settings(experiment, ["env=gymnasium:CartPole-v1", "env.processes=false"]).env
    assert found == HERE("CartPole-v1")
    assert flags.load_environment("gymnasium:CartPole-v1") == gymnasium.Config("CartPole-v1")
