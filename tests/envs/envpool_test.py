"""EnvPool's tasks in our convention: shapes, flags, actions, lanes."""

import functools

import envpool as bare
import jax
import numpy as np
import pytest

from mbrl_jax import legal
from mbrl_jax.envs import envpool
from mbrl_jax.envs.spec import random_action
from mbrl_jax.types import ArraySpec, BoundedSpec, DictSpec, DiscreteSpec

STATES = {
    "CheetahRun-v1": (ArraySpec((17,), "float32"), BoundedSpec(6)),
    "WalkerWalk-v1": (ArraySpec((24,), "float32"), BoundedSpec(6)),  # with a leaf of rank 0
    "HalfCheetah-v5": (ArraySpec((17,), "float32"), BoundedSpec(6)),
    "MiniGrid-Empty-5x5-v0": (ArraySpec((244,), "float32"), DiscreteSpec(7)),
    "CartPole-v1": (ArraySpec((4,), "float32"), DiscreteSpec(2)),
}


def _open(config, shape=(2, 3)):
    """Lanes with seeds that depend on their place."""
    seeds = 10 + np.arange(shape[0])[:, None] * 100 + np.arange(shape[1])
    return config.make().open(seeds, evaluation=False)


def _random(spec, rng, shape):
    if isinstance(spec, DiscreteSpec):
        return rng.integers(0, spec.num_actions, shape)
    return rng.uniform(-1, 1, (*shape, spec.size)).astype(np.float32)


def _play(env, spec, steps, shape=(2, 3)):
    """Rows of random play, the first ones included."""
    rng, rows = np.random.default_rng(0), [env.reset()]
    for _ in range(steps):
        env.send(_random(spec.action, rng, shape))
        rows.append(env.receive())
    return rows


@pytest.mark.parametrize("name", STATES)
def test_rows_are_what_the_spec_says(name):
    config = envpool.Config(name)
    spec = config.make().spec
    assert (spec.observation, spec.action) == STATES[name] and spec.seam == "separate"
    for row in _play(_open(config), spec, 3):
        assert row.observation.shape == (2, 3, *spec.observation.shape)
        assert row.observation.dtype == spec.observation.dtype
        assert np.isfinite(row.observation).all()
        assert (row.reward.shape, row.reward.dtype) == ((2, 3), np.float32)
        for flag in row[2:5]:
            assert (flag.shape, flag.dtype) == ((2, 3), bool)


def test_dictionaries_are_flattened_in_their_order():
    pool = bare.make_gymnasium("CheetahRun-v1", num_envs=6, seed=[10, 11, 12, 110, 111, 112])
    raw, _ = pool.reset()
    found = _open(envpool.Config("CheetahRun-v1")).reset().observation
    wanted = np.concatenate([raw["position"], raw["velocity"]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(found.reshape(6, -1), wanted)


def test_leaves_can_be_chosen():
    config = envpool.Config("MiniGrid-Empty-5x5-v0", leaves=("image",))
    spec = config.make().spec
    assert spec.observation == ArraySpec((7, 7, 3), "uint8")
    assert _open(config).reset().observation.shape == (2, 3, 7, 7, 3)
    both = envpool.Config("MiniGrid-Empty-5x5-v0", leaves=("direction", "image")).make()
    assert both.spec.observation == ArraySpec((148,), "float32")
    with pytest.raises(ValueError, match="no observation 'picture'; it has direction, image"):
        envpool.Config("MiniGrid-Empty-5x5-v0", leaves=("picture",)).make()
    with pytest.raises(ValueError, match="one only: leave env.leaves empty"):
        envpool.Config("CartPole-v1", leaves=("position",)).make()


def test_a_time_limit_is_last_and_not_terminal_and_the_next_row_is_first():
    config = envpool.Config("Pendulum-v1")  # 200 steps, then cut
    rows = _play(_open(config), config.make().spec, 410)
    last = np.array([row.is_last.all() for row in rows])
    assert np.flatnonzero(last).tolist() == [200, 401]  # in all lanes: row 201 is a first one
    assert not any(row.is_terminal.any() for row in rows)
    firsts = [t for t, row in enumerate(rows) if row.is_first.any()]
    assert firsts == [0, 201, 402]
    assert all((rows[t].reward == 0).all() and rows[t].is_first.all() for t in firsts)
    assert (rows[200].reward != 0).all()


@pytest.mark.parametrize("name", ["CartpoleBalance-v1", "BallInCupCatch-v1"])
def test_a_first_row_holds_no_reward_of_the_episode_before(name):
    config = envpool.Config(name)  # DeepMind Control: cut after 1,000 steps
    env, spec = _open(config, (1, 2)), config.make().spec
    rows = [env.reset()]
    for _ in range(1_002):
        env.send(np.zeros((1, 2, spec.action.size), np.float32))
        rows.append(env.receive())
    firsts = np.stack([row.is_first for row in rows])
    rewards = np.stack([row.reward for row in rows])
    assert firsts.sum() == 4 and (rewards[firsts] == 0).all()
    assert rewards.dtype == np.float32
    assert name != "CartpoleBalance-v1" or (rewards[1_000] != 0).all()


def test_a_terminal_end_is_last_and_terminal():
    config = envpool.Config("CartPole-v1")
    rows = _play(_open(config), config.make().spec, 60)
    last = np.stack([row.is_last for row in rows])
    assert last.any()
    np.testing.assert_array_equal(last, np.stack([row.is_terminal for row in rows]))
    first = np.stack([row.is_first for row in rows])
    np.testing.assert_array_equal(first[1:], last[:-1])


def test_the_action_after_the_last_row_is_ignored():
    config = envpool.Config("CartPole-v1")
    left, right = _open(config), _open(config)
    rng = np.random.default_rng(0)
    a, b = left.reset(), right.reset()
    for _ in range(60):
        action = rng.integers(0, 2, (2, 3))
        left.send(action)
        right.send(np.where(b.is_last, 1 - action, action))
        a, b = left.receive(), right.receive()
        np.testing.assert_array_equal(a.observation, b.observation)


def test_actions_are_rescaled_to_the_bounds_and_clipped():
    adaptor = envpool.make_adaptor(envpool.Config("Pendulum-v1"))  # torques in -2 … 2
    actions = np.array([[-1.0], [0.0], [0.25], [7.0]], np.float32)
    np.testing.assert_allclose(adaptor.to_env(actions), [[-2.0], [0.0], [0.5], [2.0]])
    humanoid = envpool.make_adaptor(envpool.Config("Humanoid-v5"))  # -0.4 … 0.4
    full = humanoid.to_env(np.ones((2, 17), np.float32))
    np.testing.assert_allclose(full, 0.4, rtol=1e-6)
    assert full.dtype == np.float64


def test_lanes_differ_and_do_not_depend_on_their_number():
    config = envpool.Config("HalfCheetah-v5")
    spec = config.make().spec
    many, few = _open(config, (3, 2)), _open(config, (1, 2))
    a, b = many.reset(), few.reset()
    assert len(np.unique(a.observation.reshape(6, -1), axis=0)) == 6
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = _random(spec.action, rng, (3, 2))
        many.send(action)
        few.send(action[:1])
        a, b = many.receive(), few.receive()
        np.testing.assert_array_equal(a.observation[:1], b.observation)
        np.testing.assert_array_equal(a.reward[:1], b.reward)


REPEATED = {"CheetahRun-v1": 3, "Pendulum-v1": 7, "CartPole-v1": 2, "MiniGrid-Empty-5x5-v0": 2}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_actions_sum_rewards_and_stop_at_an_end(name):
    repeat = REPEATED[name]
    config = envpool.Config(name, action_repeat=repeat)
    spec, rng = config.make().spec, np.random.default_rng(0)
    assert spec == envpool.Config(name).make().spec
    env = _open(config)
    single = [_one_lane(name, seed) for seed in (10, 111)]  # lanes [0, 0] and [1, 1]
    rows = [env.reset(), *[lane.reset() for lane in single]]
    ends = 0
    for _ in range(340 if name == "CheetahRun-v1" else 90):
        action = _random(spec.action, rng, (2, 3))
        env.send(action)
        rows[0] = env.receive()
        for i, lane in enumerate(single):
            rows[i + 1] = _by_hand(lane, rows[i + 1], action[i : i + 1, i : i + 1], repeat)
            for x, y in zip(rows[0][:5], rows[i + 1][:5], strict=True):
                np.testing.assert_allclose(x[i, i], y[0, 0], rtol=1e-5, atol=1e-6)
            ends += int(rows[i + 1].is_last[0, 0])
    assert ends or name.startswith("MiniGrid")


def _one_lane(name, seed):
    return envpool.Config(name).make().open(np.array([[seed]]), evaluation=False)


def _by_hand(lane, before, action, repeat):
    """The row that `repeat` steps with one action lead to."""
    total = np.zeros((1, 1), np.float32)
    for _ in range(1 if before.is_last[0, 0] else repeat):
        lane.send(action)
        row = lane.receive()
        total = total + row.reward
        if row.is_last[0, 0]:
            break
    return row._replace(reward=total)


def test_some_lanes_can_begin_anew():
    config = envpool.Config("Pendulum-v1")
    env = _open(config)
    before = _play(env, config.make().spec, 10)[-1]
    chosen = np.array([[True, False, False], [False, False, True]])
    after = env.reset(chosen)
    np.testing.assert_array_equal(after.is_first, chosen)
    np.testing.assert_array_equal(after.observation[~chosen], before.observation[~chosen])
    np.testing.assert_array_equal(after.reward[~chosen], before.reward[~chosen])
    assert (after.observation[chosen] != before.observation[chosen]).any(axis=-1).all()
    assert (after.reward[chosen] == 0).all()
    env.send(np.zeros((2, 3, 1), np.float32))
    assert not env.receive().is_first.any()
    lasts = []
    for _ in range(200):
        env.send(np.zeros((2, 3, 1), np.float32))
        lasts.append(env.receive().is_last)
    # Of the 200 steps of an episode the others had made 10 before.
    first_last = np.argmax(np.stack(lasts), axis=0)
    np.testing.assert_array_equal(first_last, np.where(chosen, 198, 188))


def test_rows_that_were_returned_stay_as_they_are():
    config = envpool.Config("CheetahRun-v1")
    spec = config.make().spec
    env, rng = _open(config), np.random.default_rng(0)
    rows, copies = [env.reset()], []
    for _ in range(50):
        copies.append([np.array(x) for x in rows[-1][:5]])
        env.send(_random(spec.action, rng, (2, 3)))
        rows.append(env.receive())
    for row, copy in zip(rows, copies, strict=False):
        for x, y in zip(row[:5], copy, strict=True):
            np.testing.assert_array_equal(x, y)


def test_unknown_tasks_are_named_with_the_nearest_ones():
    with pytest.raises(ValueError, match="nearest EnvPool names are .*CheetahRun-v1"):
        envpool.Config("CheetahRunn-v1").make()
    with pytest.raises(ValueError, match="unknown environment 'Pong-v5'"):
        envpool.Config("Pong-v5").make()  # Atari games have options: envs.atari


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("TicTacToe-v1", "a game of 2 players"),  # PGX
        ("Chess-v1", "a game of 2 players"),
        ("SparrowMahjong-v1", "a game of 3 players"),
        ("IntersectionMultiAgent-v0", "a game of 2 players"),
        ("Play2048-v1", r"\(legal_action_mask\) beside its observation"),
    ],
)
def test_games_of_several_players_and_masks_beside_the_observation_are_refused(name, sentence):
    with pytest.raises(ValueError, match=f"{name} .*{sentence}"):
        envpool.Config(name).make()


def test_masked_tasks_have_a_dictionary_and_chance_takes_no_forbidden_action():
    with pytest.raises(ValueError, match="leave action_repeat=1"):
        envpool.Config("Game2048-v1", action_repeat=2).make()
    env = envpool.Config("Game2048-v1").make()  # Jumanji
    board, mask = ArraySpec((4, 4), "int32"), ArraySpec((4,), "bool")
    assert env.spec.observation == DictSpec((("action_mask", mask), ("board", board)))
    legal.require_mask(env.spec)
    lanes = legal.watched(env).open(np.arange(50)[None], evaluation=False)
    draw = jax.jit(jax.vmap(functools.partial(random_action, env.spec.action)))
    row, asked, ends = lanes.reset(None), 0, 0
    for t in range(200):  # 10,000 rows
        allowed = row.observation["action_mask"][0]
        action = np.asarray(draw(jax.random.split(jax.random.key(t), 50), allowed))
        wants = ~row.is_last[0]  # the last row of an episode allows nothing
        assert allowed[np.arange(50), action][wants].all()
        asked, ends = asked + (~allowed.all(-1) & wants).sum(), ends + row.is_last.sum()
        lanes.send(action[None])
        row = lanes.receive()
    assert asked > 2_000 and ends > 20
    again = lanes.reset(np.arange(50)[None] < 3)
    assert again.is_first[0, :3].all()
    np.testing.assert_array_equal(
        again.observation["board"][0, 3:], row.observation["board"][0, 3:]
    )


def test_actions_that_are_no_single_choice_or_vector_are_refused():
    described = {"action": bare.make_spec("CartPole-v1").action_array_spec["action"]}
    with pytest.raises(ValueError, match="actions that are not supported"):
        envpool.action_adaptor("Two", described | {"other": described["action"]})
