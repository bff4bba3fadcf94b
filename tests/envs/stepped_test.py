"""JAX environments in lanes: each with its own randomness, and single ones begin anew."""

import jax
import numpy as np

from mbrl_jax.envs import gymnax, stepped

ENV = gymnax.Config("Catch-bsuite").make()
SEEDS = np.arange(12).reshape(2, 6)


def _play(lane_seeds, steps):
    """Rows [T, S, N] of lanes that never move the paddle."""
    lanes = stepped.on_host(ENV).open(lane_seeds, evaluation=True)
    rows = [lanes.reset()]
    for _ in range(steps):
        lanes.send(np.ones(lane_seeds.shape, np.int32))
        rows.append(lanes.receive())
    return jax.tree.map(lambda *x: np.stack(x), *rows), lanes


def test_lanes_keep_the_time_convention():
    rows, _ = _play(SEEDS, 20)
    first = np.flatnonzero(rows.is_first[:, 0, 0])
    # Nine steps, the last of which is seen; the next row begins an episode with reward 0.
    np.testing.assert_array_equal(first, [0, 10, 20])
    assert rows.is_last[9].all() and rows.is_terminal[9].all()
    assert (np.abs(rows.reward[9]) == 1).all() and (rows.reward[10] == 0).all()


def test_a_lane_depends_on_its_seed_alone():
    rows, _ = _play(SEEDS, 20)
    alone, _ = _play(SEEDS[1:, 2:4], 20)
    wanted = jax.tree.map(lambda x: x[:, 1:, 2:4], rows)
    jax.tree.map(np.testing.assert_array_equal, alone, wanted)
    begun = rows.observation[[0, 10]].reshape(2, 12, -1)
    # Lanes and episodes differ: balls fall in other columns.
    assert len(np.unique(begun[0], axis=0)) > 1 and (begun[0] != begun[1]).any()


def test_chosen_lanes_begin_anew_and_the_others_go_on():
    rows, lanes = _play(SEEDS, 4)
    before = jax.tree.map(lambda x: x[-1], rows)
    chosen = np.zeros(SEEDS.shape, bool)
    chosen[0, 1] = chosen[1, 5] = True
    now = lanes.reset(chosen)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[~chosen], b[~chosen]), now, before)
    np.testing.assert_array_equal(now.is_first, chosen)
    ends = []
    for _ in range(9):
        lanes.send(np.ones(SEEDS.shape, np.int32))
        ends.append(lanes.receive().is_last)
    ends = np.stack(ends)
    np.testing.assert_array_equal(ends.argmax(0)[~chosen], 4)  # four steps were behind them
    np.testing.assert_array_equal(ends.argmax(0)[chosen], 8)
