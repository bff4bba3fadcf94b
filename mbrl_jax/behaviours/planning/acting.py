"""Act by planning in the world model alone: no policy, no value, nothing of its own to learn.

Model predictive control: at each row a planner searches for the sequence of actions that the model
scores best, one action is taken, and the next row plans anew from what is left of the plan. Any
world model will do, and any kind of action: a planner's numbers become discrete actions by the
largest of them. Rewards behind the horizon count nothing.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from mbrl_jax import legal
from mbrl_jax.behaviours.planning import cem, plans
from mbrl_jax.envs.spec import action_of_vector, action_size, is_real
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Array,
    Behaviour,
    BoundModel,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Starts,
    bounded,
    cached_make,
    number,
    part,
)


@dataclasses.dataclass(frozen=True)
class Planning:
    """What plans, and how its plans are judged."""

    planner: Any = part("mbrl_jax.behaviours.planning", cem.Config())
    gamma: float = number(1.0, low=0, high=1)
    particles: int = bounded(1, low=1)  # imagined futures of each plan, averaged

    def make(self, spec: EnvSpec) -> Behaviour:
        """The record; see the module."""
        return make(self, spec)


@cached_make
def make(config: Planning, spec: EnvSpec) -> Behaviour:
    """Bind a planner to actions; raises ValueError where it cannot plan them."""
    planner = config.planner.make(action_size(spec.action))
    if planner.differentiates and not is_real(spec.action):
        raise ValueError(
            f"planner=gradient climbs by real-valued actions, and here are {spec.action}: use "
            "behaviour.planner=cem"
        )
    if legal.is_masked(spec):
        raise ValueError(
            "behaviour=planning does not know which actions a mask forbids: use "
            "behaviour=actor_critic"
        )
    return Behaviour(
        init=init,
        initial_carry=planner.initial,
        act=functools.partial(act, config, planner, spec),
        update=update,
    )


def init(key: Key, features: Array) -> LearnerState:
    """Nothing is learned."""
    del key, features
    return LearnerState({}, (), ())


def act(
    config: Planning,
    planner: plans.Planner,
    spec: EnvSpec,
    state: LearnerState,
    key: Key,
    carry: PyTree,
    latent: PyTree,
    model: BoundModel,
    *,
    explore: bool,
) -> tuple[PyTree, PyTree]:
    """Plan from the memory of the plan before, and take one action."""
    del state
    score = plans.scorer(spec.action, model, latent, config.gamma, particles=config.particles)
    nothing = jnp.zeros((0, planner.horizon, action_size(spec.action)))
    found = planner.plan(named(key, "plan"), carry, score, nothing)
    choose = planner.explore if explore else planner.action
    action = action_of_vector(spec.action, choose(named(key, "action"), found))
    return planner.shifted(named(key, "shift"), found), action


def update(
    state: LearnerState,
    key: Key,
    model: BoundModel,
    starts: Starts,
    batch: PyTree,
    iteration: Array,
) -> tuple[LearnerState, Metrics]:
    """The state as it is."""
    del key, model, starts, batch, iteration
    return state, {}
