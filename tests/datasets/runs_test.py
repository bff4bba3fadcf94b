"""Rows of a run are read back from its log: every seed and lane, in order, with marked seams."""

import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import datasets
from mbrl_jax.replay import ring
from mbrl_jax.runs import checkpoint
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec, PyTree, Step, Timestep

SPEC = EnvSpec(ArraySpec((1,), "float32"), BoundedSpec(1), extras=("cost",))
SEEDS, LANES, CAPACITY, LENGTH = 2, 3, 20, 4  # episodes have LENGTH rows


class _State(NamedTuple):
    """As much of a TrainState as a save looks at."""

    replay: PyTree


def _row(seed, index):
    """Row `index` of each lane [N]: the observation tells seed, lane and index."""
    lane = jnp.arange(LANES)
    number = (1000.0 * seed + 100 * lane + index).astype(jnp.float32)
    age = jnp.full(LANES, index % LENGTH)
    first, last = age == 0, age == LENGTH - 1
    reward = jnp.where(first, 0.0, number)
    extras = {"cost": jnp.where(first, 0.0, 1.0)}
    timestep = Timestep(number[:, None], reward, first, last, last & (lane == 1), extras)
    return Step(timestep, jnp.full((LANES, 1), 0.25), {"log_prob": number})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run with saves at rows 8 and 29: the ring has lost the rows 0 … 8."""
    path = tmp_path_factory.mktemp("run")
    replay = ring.Config(capacity=CAPACITY, length=3).make(LANES)
    example = jax.tree.map(lambda x: x[0], _row(0, 0))
    state = jax.vmap(lambda seed: replay.init(example))(jnp.arange(SEEDS))
    rows_of = jax.vmap(_row, (0, None))
    add = jax.jit(lambda state, index: jax.vmap(replay.add)(state, rows_of(jnp.arange(2), index)))
    with checkpoint.Saver(path, SEEDS, replay.rows, every=8) as saver:
        for index in range(29):
            state = add(state, index)
            if index + 1 in (8, 16, 24, 29):
                taken = saver.take(_State(state))
                saver.save(index + 1, taken, state, {"rows": index + 1, "score": None})
    return path


def _numbers(rows):
    return np.asarray(rows.timestep.observation)[:, 0].astype(int).tolist()


def _lane(seed, lane, first, last):
    return [1000 * seed + 100 * lane + index for index in range(first, last)]


def test_all_seeds_and_lanes_come_in_order_with_their_seams(workdir):
    rows = datasets.load(datasets.Config(str(workdir)), SPEC)
    first = _numbers(rows)[0]  # the log may hold some rows more than the ring
    assert 8 <= first <= 9
    # Row 28 begins an episode of which nothing more is there.
    lanes = [_lane(s, n, first, 28) for s in range(SEEDS) for n in range(LANES)]
    assert _numbers(rows) == sum(lanes, [])
    timestep, length = rows.timestep, 28 - first
    starts = np.arange(len(timestep.reward)) % length == 0
    assert timestep.is_first[starts].all() and timestep.is_last[np.roll(starts, -1)].all()
    np.testing.assert_array_equal(timestep.is_first[1:], timestep.is_last[:-1])
    inside = ~timestep.is_first
    np.testing.assert_array_equal(timestep.reward[inside], timestep.observation[inside, 0])
    assert not timestep.reward[timestep.is_first].any()
    np.testing.assert_array_equal(timestep.extras["cost"], inside)
    assert set(timestep.observation[timestep.is_terminal, 0] // 100 % 10) == {1}
    assert rows.extras == {}


def test_one_seed_an_older_checkpoint_and_the_oldest_rows(workdir):
    config = datasets.Config(str(workdir), seed_index=1, checkpoint="24", num_rows=6)
    rows = datasets.load(config, SPEC)
    first = _numbers(rows)[0] % 100
    # Of seven and more rows six are taken, and an episode that is cut to a single row goes.
    last = first + 6 - (1 if (first + 5) % LENGTH == 0 else 0)
    assert _numbers(rows) == sum((_lane(1, lane, first, last) for lane in range(LANES)), [])
    assert rows.timestep.is_last[-1] and not rows.timestep.is_terminal[-1]


@pytest.mark.parametrize(
    "settings, spec, said",
    [
        ({"seed_index": 2}, SPEC, "seeds 0 … 1"),
        ({"checkpoint": "17"}, SPEC, "newest, or one of 29, 24"),
        ({}, EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1)), r"\(1,\)"),
        ({}, EnvSpec(SPEC.observation, BoundedSpec(1), extras=("success",)), "extras.success"),
    ],
)
def test_what_a_run_does_not_hold_is_told(workdir, settings, spec, said):
    with pytest.raises(ValueError, match=said):
        datasets.load(datasets.Config(str(workdir), **settings), spec)


def test_damage_is_told(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    config = datasets.Config(str(copy))
    segment = sorted((copy / "replay").iterdir())[-1]
    segment.write_bytes(segment.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{segment.name} is damaged"):
        datasets.load(config, SPEC)
    segment.unlink()
    with pytest.raises(ValueError, match=f"{segment.name} is not there"):
        datasets.load(config, SPEC)
    (copy / "checkpoints" / "29" / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="29 cannot be used"):
        datasets.load(config, SPEC)
