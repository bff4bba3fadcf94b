"""Rooms in a row, each seen only from inside: what was in the one that was left?

After the Two, Four and Ten Rooms with which S4WM is judged (arXiv 2307.02064; specification
world_models.md section 3.3): rooms hold coloured objects, which are placed anew in every episode
and then stay where they are, and a world model has to draw again what it saw when it comes back to
a room. The idea alone is the paper's, not its pictures, sizes and the walk that collects its data:

- the picture of a room is a grid [size, size, 1 + colours] of booleans: the agent, then one plane
  for each colour. Rooms look alike but for their objects;
- actions are stay, up, down, left, right. Walls hold; doors are in the middle of the right and the
  left wall (row size // 2) and lead to the middle of the next room's;
- the first touch of an object earns 1 in every episode, and later ones nothing, though the object
  stays: who forgets goes there again. This reward is not S4WM's, whose tasks have none;
- the episode ends by a time limit.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import Array, DiscreteSpec, Environment, Key, bounded

SIZES = {"TwoRooms": 2, "FourRooms": 4, "TenRooms": 10}  # rooms by name
STAY, UP, DOWN, LEFT, RIGHT = range(5)
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])  # of row and column


@dataclasses.dataclass(frozen=True)
class Config:
    """How many rooms, and what is in them."""

    name: Literal["TwoRooms", "FourRooms", "TenRooms"] = "TwoRooms"
    size: int = bounded(7, low=2)  # of the square floor of a room
    objects: int = bounded(3, low=1)  # in each room
    colours: int = bounded(4, low=1)
    max_steps: int = bounded(200, low=1)  # time limit

    @property
    def rooms(self) -> int:
        """How many."""
        return SIZES[self.name]

    def validate(self) -> None:
        """Raise ValueError where a room has no place for its objects."""
        if self.objects > self.size**2:
            raise ValueError(
                f"objects is {self.objects}, and a room of size {self.size} has "
                f"{self.size**2} places"
            )

    def make(self) -> Environment:
        """Build the environment."""
        self.validate()
        return make(self)


class House(NamedTuple):
    """What is hidden."""

    places: Array  # [rooms, objects] int32: row · size + column
    colours: Array  # [rooms, objects] int32
    touched: Array  # [rooms, objects] bool
    room: Array  # [] int32, of the agent
    place: Array  # [2] int32 row and column, of the agent
    steps: Array  # [] int32


def draw(config: Config, key: Key) -> House:
    """A house, with the agent anywhere in any room; what lies under it counts as touched."""
    keys = jax.random.split(key, 4)
    shape = config.rooms, config.objects
    one_room = lambda key: jax.random.permutation(key, config.size**2)[: config.objects]  # noqa: E731
    house = House(
        jax.vmap(one_room)(jax.random.split(keys[0], config.rooms)),
        jax.random.randint(keys[1], shape, 0, config.colours),
        jnp.zeros(shape, bool),
        jax.random.randint(keys[2], (), 0, config.rooms),
        jax.random.randint(keys[3], (2,), 0, config.size),
        jnp.zeros((), jnp.int32),
    )
    return house._replace(touched=_under(config, house))


def picture(config: Config, house: House) -> Array:
    """The room that the agent is in: bool [size, size, 1 + colours]."""
    planes = jnp.zeros((config.size**2, 1 + config.colours), bool)
    planes = planes.at[house.places[house.room], 1 + house.colours[house.room]].set(True)
    planes = planes.at[house.place[0] * config.size + house.place[1], 0].set(True)
    return planes.reshape(config.size, config.size, -1)


def move(config: Config, house: House, action: Array) -> House:
    """The agent one step on: to a neighbouring place, through a door, or nowhere."""
    row, column = house.place + jnp.asarray(MOVES)[action]
    last = config.size - 1
    at_door = row == config.size // 2
    onward = at_door & (column > last) & (house.room < config.rooms - 1)
    back = at_door & (column < 0) & (house.room > 0)
    room = house.room + onward - back
    column = jnp.where(onward, 0, jnp.where(back, last, jnp.clip(column, 0, last)))
    place = jnp.stack([jnp.clip(row, 0, last), column])
    return house._replace(room=room, place=place, steps=house.steps + 1)


def make(config: Config) -> Environment:
    """The task, with five actions."""

    def reset_inner(key: Key):
        house = draw(config, key)
        return house, picture(config, house)

    def step_inner(key: Key, house: House, action: Array):
        del key
        house = move(config, house, action)
        found = _under(config, house) & ~house.touched
        house = house._replace(touched=house.touched | found)
        over = house.steps >= config.max_steps
        return house, picture(config, house), found.sum(), jnp.zeros((), bool), over

    return make_environment(DiscreteSpec(len(MOVES)), reset_inner, step_inner)


def _under(config: Config, house: House) -> Array:
    """Which objects the agent stands on: bool [rooms, objects]."""
    here = house.places == house.place[0] * config.size + house.place[1]
    return here & (jnp.arange(config.rooms) == house.room)[:, None]
