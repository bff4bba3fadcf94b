"""Atari: what a step and a reset really are, on the games themselves."""

import dataclasses

import envpool as bare
import numpy as np
import pytest

from mbrl_jax.envs import atari, envpool
from mbrl_jax.experiment import config as configs
from mbrl_jax.types import ArraySpec

SEPARATE = atari.Protocol(seam="separate")


def _lanes(name, protocol=SEPARATE, seeds=((3,),), evaluation=False):
    return atari.Config(name, protocol).make().open(np.array(seeds), evaluation=evaluation)


def _pool(name, protocol=SEPARATE, seed=3, **options):
    """EnvPool alone with the adaptor's options, some of them replaced."""
    adaptor = envpool_adaptor(name, protocol)
    made = {**adaptor.options, **options}
    return bare.make_gymnasium(adaptor.task, num_envs=1, seed=[seed], **made)


def envpool_adaptor(name, protocol):
    return atari.make_adaptor(atari.Config(name, protocol))


def _play(env, actions):
    """Rows [T + 1] of one lane, as a record of arrays."""
    rows = [env.reset()]
    for action in actions:
        env.send(np.array([[action]]))
        rows.append(env.receive())
    columns = zip(*(row[:5] for row in rows), strict=True)
    return [np.stack([np.asarray(x)[0, 0] for x in column]) for column in columns]


def _actions(count, number, seed=0):
    return np.random.default_rng(seed).integers(0, count, number)


def test_the_26_games_are_there_by_name():
    games = {task for task in envpool.known_tasks() if envpool.is_atari(task)}
    assert len(atari.ATARI_100K) == len(set(atari.ATARI_100K)) == 26
    assert {f"{name}-v5" for name in atari.ATARI_100K} <= games and len(games) == 104
    for name in atari.ATARI_100K:
        spec = atari.Config(f"{name}-v5").make().spec
        assert spec.observation == ArraySpec((64, 64, 3), "uint8") and spec.seam == "merged"
        assert 3 <= spec.action.num_actions <= 18
    assert atari.Config("Tetris-v5").make().spec.action.num_actions == 5  # none of the 26


def test_an_unknown_game_is_named_with_the_nearest_ones():
    with pytest.raises(ValueError, match="the nearest EnvPool names are Pong-v5"):
        atari.Config("Pongg-v5").make()
    with pytest.raises(ValueError, match="nearest EnvPool names are .*Breakout-v5"):
        atari.Config("Breakout").make()
    with pytest.raises(ValueError, match="unknown environment 'CartPole-v1'"):
        atari.Config("CartPole-v1").make()


@pytest.mark.parametrize("name", ["Pong-v5", "Breakout-v5", "Seaquest-v5"])
def test_a_step_is_four_raw_frames_and_shows_the_maximum_of_the_last_two(name):
    size = {"img_height": 210, "img_width": 160}  # as the emulator draws: nothing is resized
    step, frame = _pool(name, **size), _pool(name, **size, frame_skip=1)
    (shown, info), (raw, raw_info) = step.reset(), frame.reset()
    np.testing.assert_array_equal(shown, raw)
    for action in _actions(4, 60):
        action, reward, raws = np.array([action], np.int32), 0.0, []
        shown, gained, *_, info = step.step(action)
        for _ in range(4):
            raw, one, *_, raw_info = frame.step(action)
            raws.append(raw)
            reward += one
        np.testing.assert_array_equal(info["ram"], raw_info["ram"])  # the same frame of the game
        np.testing.assert_array_equal(shown, np.maximum(raws[-1], raws[-2]))
        assert gained == reward


def test_what_is_shown_is_the_resized_maximum_channels_last():
    actions = _actions(4, 30)
    observations = _play(_lanes("Breakout-v5"), actions)[0]
    assert observations.shape == (31, 64, 64, 3) and observations.dtype == np.uint8
    large = _pool("Breakout-v5", img_height=210, img_width=160)
    shown = [large.reset()[0]] + [large.step(np.array([a], np.int32))[0] for a in actions]
    # Area interpolation keeps the mean of an image; rounding moves a pixel by half at most.
    means = np.stack(shown)[:, 0].mean(axis=(2, 3))
    np.testing.assert_allclose(observations.mean(axis=(1, 2)), means, atol=0.5)
    assert observations.std() > 10


def _breakout(protocol=SEPARATE, number=900, **more):
    return _play(_lanes("Breakout-v5", protocol, **more), _actions(4, number))


def test_lives_are_full_after_a_reset_and_each_lost_one_is_terminal():
    _, _, is_first, is_last, is_terminal = _breakout()
    starts, ends = np.flatnonzero(is_first), np.flatnonzero(is_last)
    assert len(ends) >= 3
    for start, end in zip(starts, ends, strict=False):
        # Five lives: four are lost while the game goes on, the fifth ends it.
        assert is_terminal[start : end + 1].sum() == 5 and is_terminal[end]


def test_the_first_frame_after_a_reset_is_of_the_new_episode_alone():
    observations, rewards, is_first, is_last, _ = _breakout()
    firsts = np.flatnonzero(is_first)
    assert len(firsts) >= 3
    for t in firsts[1:]:
        # Without sticky actions and random starts every episode begins with the same frame.
        np.testing.assert_array_equal(observations[t], observations[0])
        assert (np.maximum(observations[t - 1], observations[0]) != observations[0]).any()
        assert rewards[t] == 0 and is_last[t - 1]


def test_a_lost_life_ends_no_evaluation_episode():
    protocol = dataclasses.replace(atari.PROTOCOLS["dqn"], noops=1)
    evaluated = _breakout(protocol, evaluation=True, number=600)
    lives = evaluated[3].sum()
    trained = _breakout(protocol, number=600)
    assert 2 <= lives < trained[3].sum() / 2  # five lives an episode
    np.testing.assert_array_equal(evaluated[3], evaluated[4])  # the game's end, nothing else
    assert set(np.unique(trained[1])) <= {-1.0, 0.0, 1.0}


def test_evaluation_sees_raw_rewards():
    name, protocol = "Seaquest-v5", atari.PROTOCOLS["dqn"]
    actions = _actions(18, 400)
    assert _play(_lanes(name, protocol), actions)[1].max() == 1.0
    assert _play(_lanes(name, protocol, evaluation=True), actions)[1].max() == 20.0


def test_the_merged_seam_is_the_separate_one_without_last_frames():
    wanted = []
    env = _lanes("Breakout-v5")
    actions = _actions(4, 500)
    row = env.reset()
    for action in actions:
        env.send(np.array([[action]]))
        row = env.receive()
        if row.is_last.any():
            env.send(np.zeros((1, 1), np.int32))
            first = env.receive()
            row = first._replace(reward=row.reward, is_terminal=row.is_terminal)
        wanted.append(row)
    columns = _play(_lanes("Breakout-v5", atari.Protocol()), actions)
    for found, column in zip(columns, zip(*(row[:5] for row in wanted), strict=True), strict=True):
        np.testing.assert_array_equal(found[1:], np.stack([x[0, 0] for x in column]))
    _, _, is_first, is_last, is_terminal = columns
    assert not is_last.any() and (is_first & is_terminal).sum() >= 2


def test_lanes_differ_and_lane_i_does_not_depend_on_their_number():
    protocol = dataclasses.replace(SEPARATE, noops=30, sticky=0.25)
    seeds = np.array([[11, 12], [9_001, 9_002], [5, 6]])
    many, few = (
        _lanes("Pong-v5", protocol, seeds),
        _lanes("Pong-v5", protocol, seeds[:1]),
    )
    a, b = many.reset(), few.reset()
    for action in _actions(6, 60):
        many.send(np.full((3, 2), action))
        few.send(np.full((1, 2), action))
        a, b = many.receive(), few.receive()
        np.testing.assert_array_equal(a.observation[:1], b.observation)
    flat = a.observation.reshape(6, -1)
    assert len(np.unique(flat, axis=0)) == 6


def test_protocols_have_names_and_single_fields_can_be_changed():
    named = atari.Config("Pong-v5", "dqn")
    assert named.protocol == atari.PROTOCOLS["dqn"]
    assert named.make().spec.observation == ArraySpec((84, 84, 4), "uint8")
    drama = configs.override(atari.Config("Pong-v5"), ["protocol=dreamerv3", "protocol.sticky=0.1"])
    assert drama.protocol == dataclasses.replace(atari.PROTOCOLS["dreamerv3"], sticky=0.1)
    assert configs.from_json(configs.to_json(drama)) == drama
    full = dataclasses.replace(SEPARATE, all_actions=True)
    assert atari.Config("Pong-v5", full).make().spec.action.num_actions == 18
    with pytest.raises(ValueError, match="unknown protocol 'dqm'; there are drama, dreamerv3, dqn"):
        atari.Config("Pong-v5", "dqm")


def test_no_noops_would_crash_envpool_and_are_refused():
    config = atari.Config("Pong-v5", dataclasses.replace(SEPARATE, noops=0))
    with pytest.raises(configs.ConfigError, match="protocol.noops=0 is out of range: at least 1"):
        configs.validate(config)
    with pytest.raises(ValueError, match="use noops=1"):
        config.make()
