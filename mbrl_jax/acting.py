"""What an agent remembers of its episode, and the latent that it acts on.

The memory is the latent of the newest row, or, where only some rows are remembered, those rows:
they are then seen anew for every action, from an empty state and with fresh samples, as the
published Drama does with 16 of them. Actions may be mixed with random ones.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import legal
from mbrl_jax.envs.spec import example_row, random_action, zero_action
from mbrl_jax.keys import named
from mbrl_jax.types import (
    ActionSpec,
    Agent,
    AgentCarry,
    Array,
    BoundModel,
    EnvSpec,
    Key,
    PyTree,
    Step,
    Timestep,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """How an agent sees while it acts."""

    latent: Literal["posterior", "prior"] = switch(
        "posterior",
        published="prior",
        better="posterior",
        price="+0.01 ± 0.03",
        why="act on what was just seen, or on what the row before let expect of it; then the first "
        "action of an episode is random",
    )
    rows: int = switch(
        0,
        published=16,
        better=0,
        low=0,
        price="-0.00 ± 0.01",
        why="rows of the episode that are seen anew for each action; 0 remembers all of it, in the "
        "core's state, and costs one step",
    )
    boundaries: Literal["reset", "ignored"] = switch(
        "reset",
        published="reset",
        better="reset",
        why="where an episode begins, the rows that are seen anew: those of the one before are "
        "forgotten, or stay among them; ignored is STORM's, and its first actions are not random",
    )

    def validate(self) -> None:
        """Raise ValueError for boundaries that only remembered rows can ignore."""
        if self.boundaries == "ignored" and not self.rows:
            raise ValueError(
                "boundaries=ignored keeps rows of the episode before, and rows=0 remembers none: "
                "use rows=16, or boundaries=reset"
            )


class Window(NamedTuple):
    """The newest rows of an episode; the newest of all has no action yet."""

    rows: Step  # [C]
    count: Array  # type: ignore[assignment]  # [] int32 of those that are there, from the front


def empty(config: Config, spec: EnvSpec, initial_latent: PyTree) -> PyTree:
    """The memory before anything was seen."""
    if not config.rows:
        return initial_latent
    row = example_row(spec)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (config.rows,) + jnp.shape(x)), row)
    return Window(rows, jnp.zeros((), jnp.int32))


def begins(config: Config, memory: PyTree, timestep: Timestep) -> Array:
    """Whether [] nothing is remembered before this row: then nothing is expected of it either."""
    if config.boundaries == "reset":
        return timestep.is_first
    return memory.count == 0


def see(
    config: Config,
    spec: EnvSpec,
    model: BoundModel,
    key: Key,
    memory: PyTree,
    prev_action: PyTree,
    timestep: Timestep,
) -> tuple[PyTree, PyTree]:
    """Take in one row: (memory, latent to act on).

    With `latent="prior"` the latent means nothing where nothing leads: see `begins`.
    """
    watch = _see_rows if config.rows else _see_step
    return watch(config, spec, model, key, memory, prev_action, timestep)


def _see_step(config, spec, model, key, latent, prev_action, timestep):
    del spec
    seen = model.observe(named(key, "observe"), latent, timestep, prev_action)
    if config.latent == "posterior":
        return seen, seen
    return seen, model.imagine(named(key, "expect"), latent, prev_action)


def _see_rows(config, spec, model, key, window, prev_action, timestep):
    rows, count = window
    newest = jnp.maximum(count - 1, 0)
    rows = rows._replace(action=_put(rows.action, prev_action, newest))
    if config.latent == "prior":
        before = _latent_of(spec, model, named(key, "observe"), rows, newest)
        latent = model.imagine(named(key, "expect"), before, prev_action)
    kept = jnp.where(begins(config, window, timestep), 0, count)
    window = _push(rows, kept, timestep, prev_action)
    if config.latent == "posterior":
        last = window.count - 1
        latent = _latent_of(spec, model, named(key, "observe"), window.rows, last)
    return window, latent


def _push(rows: Step, count: Array, timestep: Timestep, action: PyTree) -> Window:
    """Add a row behind `count` others; the oldest of a full window is forgotten."""
    full = count == rows.timestep.reward.shape[0]
    rows = jax.tree.map(lambda x: jnp.where(full, jnp.roll(x, -1, axis=0), x), rows)
    place = count - full
    return Window(_put(rows, Step(timestep, action), place), place + 1)


def _put(tree: PyTree, row: PyTree, place: Array) -> PyTree:
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), place, 0),
        tree,
        row,
    )


def _latent_of(spec: EnvSpec, model: BoundModel, key: Key, rows: Step, t: Array) -> PyTree:
    """The latent of row t, seen from an empty state at row 0; what stands behind t is not read."""
    return model.latent_at(observe_from_nothing(spec, model, key, rows), t)


def observe_from_nothing(spec: EnvSpec, model: BoundModel, key: Key, rows: Step) -> PyTree:
    """Entries of rows [T], before the first of which nothing is known."""
    first = rows.timestep.is_first.at[0].set(True)
    rows = rows._replace(timestep=rows.timestep._replace(is_first=first))
    return model.observe_sequence(key, model.initial_latent(), zero_action(spec.action), rows)


# -------------------------------------------------------------------------------- random actions


def mix_random(
    spec: ActionSpec,
    key: Key,
    carry: AgentCarry,
    action: PyTree,
    share: Array | float,
    mask: Array | None = None,
) -> tuple[AgentCarry, PyTree]:
    """A uniform action with probability `share`; the carry keeps what is executed.

    Args:
      spec: of the actions.
      key: consumed.
      carry: of the agent, after it chose.
      action: that it chose.
      share: probability of a random action.
      mask: [A] of the actions that are allowed here; None: all are.
    """
    is_random = jax.random.uniform(named(key, "share")) < share
    uniform = random_action(spec, named(key, "action"), mask)
    action = jax.tree.map(lambda r, a: jnp.where(is_random, r, a), uniform, action)
    return carry._replace(prev_action=action), action


def with_random_actions(agent: Agent, spec: ActionSpec, share: float) -> Agent:
    """An agent each of whose actions is a uniform one with probability `share`."""
    if not share:
        return agent

    def act(state, key, carry, timestep, explore):
        carry, action = agent.act(state, key, carry, timestep, explore=explore)
        mask = legal.of(timestep)
        return mix_random(spec, named(key, "random"), carry, action, share, mask)

    return agent._replace(act=act)
