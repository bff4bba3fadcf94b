"""Cart-pole swing-up as in PETS (arXiv 1805.12114): a heavy cart swings a pole up and holds it.

Written from the facts of github.com/kchua/handful-of-trials (77fd880; `dmbrl/env/cartpole.py` and
the MuJoCo model beside it): two capsules of density 1000, no contacts, damping 1 of both joints, a
force of 100 u on the cart with u in [-3, 3], Runge-Kutta of order 4 with steps of 0.02, two for
each action. The observation is (x, θ, x', θ'), θ = 0 hanging and never wrapped; the reward
`rules.cartpole_swingup_reward` of the row that follows. Position and speed begin as N(0, 0.1)
(hanging), no state is terminal, and an episode has 200 steps.

Between the ends of the rail it is MuJoCo's motion to rounding (a test steps both). At its ends, |x|
= 2.5, it is not: MuJoCo's soft stops are a wall here, at which the cart stops dead.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import rules
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import Array, BoundedSpec, Environment, Key, bounded

SIZES = {"CartpoleSwingup": 200}  # steps of an episode by name

GRAVITY, DAMPING, GEAR, DENSITY = 9.81, 1.0, 100.0, 1000.0
STEP, FRAME_SKIP, RAIL, START_STD = 0.02, 2, 2.5, 0.1  # seconds, steps, metres, metres or radians
CART_RADIUS, CART_LENGTH = 0.1, 0.2  # of a capsule's cylinder
POLE_RADIUS, POLE_END = 0.049, (0.001, -0.6)  # where the hanging pole ends, (x, z)


def _capsule(radius: float, length: float) -> tuple[float, float]:
    """Mass, and moment of inertia across the axis, of a cylinder between two half balls."""
    cylinder = DENSITY * math.pi * radius**2 * length
    balls = DENSITY * 4.0 / 3.0 * math.pi * radius**3
    inertia = cylinder * (radius**2 / 4.0 + length**2 / 12.0)
    inertia += balls * (0.4 * radius**2 + length**2 / 4.0 + 0.375 * radius * length)
    return cylinder + balls, inertia


CART_MASS, _ = _capsule(CART_RADIUS, CART_LENGTH)
POLE_LENGTH = math.hypot(*POLE_END)
POLE_MASS, POLE_INERTIA = _capsule(POLE_RADIUS, POLE_LENGTH)
CENTRE = POLE_LENGTH / 2.0  # from the hinge to the pole's centre of mass
TILT = math.atan2(-POLE_END[0], -POLE_END[1])  # the published pole hangs a little askew


@dataclasses.dataclass(frozen=True)
class Config:
    """The task; None keeps the published length."""

    name: Literal["CartpoleSwingup"] = "CartpoleSwingup"
    max_steps: int | None = bounded(None, low=1)  # time limit

    def make(self) -> Environment:
        """Build the environment."""
        return make(self)


class State(NamedTuple):
    """Where it stands."""

    motion: Array  # [4] x, θ, x', θ'
    steps: Array  # [] int32


def acceleration(motion: Array, force: Array) -> Array:
    """(x', θ', x'', θ'') `[4]` of a motion `[4]` under a force `[]` on the cart, in newton.

    (M + m) x'' - m l cos φ θ'' + m l sin φ θ'² = F - d x'
    -m l cos φ x'' + (I + m l²) θ'' = -m g l sin φ - d θ',   φ = θ + tilt
    """
    _, angle, speed, spin = motion
    lever = POLE_MASS * CENTRE
    sin, cos = jnp.sin(angle + TILT), jnp.cos(angle + TILT)
    both, turning, mixed = CART_MASS + POLE_MASS, POLE_INERTIA + lever * CENTRE, -lever * cos
    push = force - DAMPING * speed - lever * sin * spin**2
    torque = -lever * GRAVITY * sin - DAMPING * spin
    determinant = both * turning - mixed**2
    along = (turning * push - mixed * torque) / determinant
    around = (both * torque - mixed * push) / determinant
    return jnp.stack([speed, spin, along, around])


def advance(motion: Array, action: Array) -> Array:
    """The motion `[4]` after an action `[1]` in [-1, 1] was held for two steps."""
    force = GEAR * rules.CARTPOLE_SWINGUP_CONTROL * jnp.clip(action[0], -1.0, 1.0)

    def step(motion, _):
        k1 = acceleration(motion, force)
        k2 = acceleration(motion + STEP / 2.0 * k1, force)
        k3 = acceleration(motion + STEP / 2.0 * k2, force)
        k4 = acceleration(motion + STEP * k3, force)
        moved = motion + STEP / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        x, out = jnp.clip(moved[0], -RAIL, RAIL), jnp.abs(moved[0]) > RAIL
        speed = jnp.where(out & (moved[0] * moved[2] > 0), 0.0, moved[2])
        return moved.at[0].set(x).at[2].set(speed), None

    return jax.lax.scan(step, motion, length=FRAME_SKIP)[0]


def make(config: Config) -> Environment:
    """The task, with an observation float32 [4] and an action [1]."""
    limit = config.max_steps or SIZES[config.name]

    def reset_inner(key: Key):
        motion = START_STD * jax.random.normal(key, (4,))
        return State(motion, jnp.zeros((), jnp.int32)), motion

    def step_inner(key: Key, state: State, action: Array):
        del key
        motion = advance(state.motion, action)
        reward = rules.cartpole_swingup_reward(state.motion, action, motion)
        state = State(motion, state.steps + 1)
        return state, motion, reward, jnp.zeros((), bool), state.steps >= limit

    return make_environment(BoundedSpec(1), reset_inner, step_inner)
