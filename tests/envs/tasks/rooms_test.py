"""Rooms against a walk in plain Python; names of tasks."""

import numpy as np
import pytest

from launch import flags
from mbrl_jax import envs
from mbrl_jax.envs import doctor
from mbrl_jax.envs.tasks import known_tasks, repeat_previous, rooms
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.experiment import with_settings
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec
from tests.envs.tasks.play import play

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIGS = (
    rooms.Config(size=3, objects=2, colours=3, max_steps=60),
    rooms.Config("FourRooms", size=2, objects=3, colours=2, max_steps=80),
)
STEPS = {"stay": (0, 0), "up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class Walk:
    """One episode, from what is hidden at its start."""

    def __init__(self, config, house):
        self.config, self.room, self.steps = config, int(house.room), 0
        self.row, self.column = map(int, house.place)
        self.objects = [
            {divmod(int(p), config.size): int(c) for p, c in zip(*pair, strict=True)}
            for pair in zip(house.places, house.colours, strict=True)
        ]
        self.touched = {self.here()}

    def here(self):
        return self.room, self.row, self.column

    def picture(self):
        planes = np.zeros((self.config.size,) * 2 + (1 + self.config.colours,), bool)
        planes[self.row, self.column, 0] = True
        for (row, column), colour in self.objects[self.room].items():
            planes[row, column, 1 + colour] = True
        return planes

    def step(self, action):
        down, right = list(STEPS.values())[action]
        size, row, column = self.config.size, self.row + down, self.column + right
        through = row == size // 2 and not 0 <= column < size
        room = self.room + right
        if through and 0 <= room < self.config.rooms:
            self.room, self.column = room, column % size
        elif 0 <= row < size and 0 <= column < size:
            self.row, self.column = row, column
        self.steps += 1
        fresh = self.here() not in self.touched
        self.touched.add(self.here())
        reward = fresh and (self.row, self.column) in self.objects[self.room]
        return self.picture(), float(reward), self.steps == self.config.max_steps


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda c: c.name)
def played(request):
    return request.param, *play(request.param, 2 * request.param.max_steps + 5, lanes=4)


def test_rows_are_those_of_a_walk(played):
    config, states, rows, actions = played
    seen, earned = set(), 0
    for lane in range(4):
        for t in range(len(actions[lane]) + 1):
            house = type(states.inner)(*(x[lane, t] for x in states.inner))
            if t == 0 or rows.is_last[lane, t - 1]:
                walk = Walk(config, house)
                wanted = walk.picture(), 0.0, False
                assert rows.is_first[lane, t]
            else:
                wanted = walk.step(actions[lane, t - 1])
                assert not rows.is_first[lane, t]
            np.testing.assert_array_equal(rows.observation[lane, t], wanted[0])
            assert (rows.reward[lane, t], rows.is_last[lane, t]) == wanted[1:]
            assert walk.here() == (house.room, *house.place)
            seen.add(walk.room)
            earned += wanted[1]
    assert not rows.is_terminal.any()
    assert seen == set(range(config.rooms)) and earned > 10


def test_houses_differ_and_keep_what_is_in_them(played):
    config, states, rows, _ = played
    places, first = states.inner.places, rows.is_first
    assert (np.diff(np.sort(places), axis=-1) > 0).all()  # no two objects in one place
    kept = (places[:, 1:] == places[:, :-1]).all((-1, -2))
    assert kept[~first[:, 1:]].all() and not kept[first[:, 1:]].all()
    assert set(states.inner.colours.ravel()) == set(range(config.colours))


def test_the_doctor_finds_nothing():
    findings = doctor.check(CONFIGS[0], steps=400)
    assert [f for f in findings if f.severity != "ok"] == []


def test_the_shape_is_told():
    spec = rooms.Config().make().spec
    assert spec == EnvSpec(ArraySpec((7, 7, 5), "bool"), DiscreteSpec(5))


def test_too_many_objects_are_refused():
    with pytest.raises(ValueError, match="objects is 5, and a room of size 2 has 4 places"):
        rooms.Config(size=2, objects=5).make()


# ------------------------------------------------------------------------------------------- names


def test_tasks_go_by_their_names():
    hard = repeat_previous.Config("RepeatPreviousHard")
    assert envs.named("tasks:RepeatPreviousHard") == envs.named("RepeatPreviousHard") == hard
    assert [envs.named(name).name for name in known_tasks()] == known_tasks()
    experiment = flags.load_experiment("drama_catch")
    found = with_settings(experiment, ["env=tasks:TwoRooms", "env.objects=2"]).env
    assert found == rooms.Config("TwoRooms", objects=2)


def test_names_like_those_of_tasks_are_told():
    with pytest.raises(ConfigError, match="'TwoRoom'; those like it are TwoRooms"):
        envs.named("tasks:TwoRoom")
    assert "RepeatPreviousHard" in envs.nearest("RepeatPreviousHrd")
