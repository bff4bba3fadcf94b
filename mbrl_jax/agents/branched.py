"""Dyna: short rollouts of the policy, branched off replayed rows, feed a buffer of transitions.

The behaviour learns from that buffer, mixed with real rows. Reference: Janner et al. 2019, "When to
Trust Your Model" (MBPO), https://arxiv.org/abs/1906.08253
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mbrl_jax import returns
from mbrl_jax.acting import Config as ActingConfig
from mbrl_jax.agents.apart import WANTS
from mbrl_jax.agents.parts import (
    Parts,
    bind_parts,
    learn_model,
    make_parts,
    observe_contexts,
    train_model,
)
from mbrl_jax.envs.spec import require_separate_seam
from mbrl_jax.imagination import imagine_rollout
from mbrl_jax.keys import named
from mbrl_jax.replay import dyna
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    Behaviour,
    BoundModel,
    EnvSpec,
    Key,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Starts,
    Transition,
    Windows,
    WorldModel,
    bind,
    bounded,
    part,
)


@dataclasses.dataclass(frozen=True)
class Growth:
    """Branches grow in a straight line between two iterations (MBPO, section 5 and appendix)."""

    first: int = bounded(1, low=1)  # steps until iteration `start`
    start: int = bounded(0, low=0)
    stop: int = bounded(1, low=1)  # from here on branches have their whole length

    def validate(self) -> None:
        """Raise ValueError for an empty stretch."""
        if self.start >= self.stop:
            raise ValueError(f"start={self.start} must lie before stop={self.stop}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Dyna in one place: branches, their lengths, and the buffer that they feed."""

    num_starts: int = bounded(64, low=1)  # M replayed rows that an update branches off from
    branch_length: int = bounded(1, low=1)  # k steps of each branch, at the most
    # None: always branch_length. Steps beyond the length of the moment are imagined but not valid.
    growth: Growth | None = None
    buffer: dyna.Config = dyna.Config()
    # rows that are seen before a branch; the last one is its start
    context_length: int = bounded(1, low=1)
    acting: ActingConfig = ActingConfig()
    annotate: Any = part("mbrl_jax.agents", None)  # a config that makes a `parts.Annotate`

    def validate(self) -> None:
        """Raise ValueError for a growth that begins behind its end."""
        if self.growth is not None and self.growth.first > self.branch_length:
            raise ValueError("growth.first must not exceed branch_length")

    def check_batch(self, rows: int) -> None:
        """Nothing: starts are windows of their own."""
        del rows

    def streams(self) -> dict[str, Windows]:
        """What it draws from the replay beside the windows that the model trains on."""
        streams = {"imagine": Windows(self.num_starts, self.context_length)}
        if self.buffer.num_real_windows:
            streams["transition"] = Windows(self.buffer.num_real_windows, 2)
        return streams

    def make_replay(self, replay: Any, num_envs: int, spec: EnvSpec) -> Replay:
        """The replay that a config of one makes, inside the buffer of imagined rows."""
        real = replay.make(num_envs, tuple(self.streams().items()))
        rows = self.num_starts * self.branch_length
        whole = max(self.buffer.capacity // rows, 1) * rows  # an append never wraps
        buffer = dataclasses.replace(self.buffer, rows_per_update=rows, capacity=whole)
        return buffer.make(real, spec)

    def make(
        self, spec: EnvSpec, world_model: WorldModel, behaviour: Behaviour, replay: Replay
    ) -> Agent:
        """Compose the agent. Raises ValueError for parts that cannot learn from branches."""
        self.validate()
        _check(spec, world_model, behaviour)
        parts = make_parts(self, spec, world_model, behaviour, replay)
        return bind_parts(
            parts, {"all": _learn, "model": learn_model, "behaviour": _learn_behaviour}
        )


def _check(spec: EnvSpec, world_model: WorldModel, behaviour: Behaviour) -> None:
    require_separate_seam(spec, "agent=branched")
    if behaviour.learns_from != "transitions":
        raise ValueError(
            f"this behaviour learns from {behaviour.learns_from} and would ignore the buffer of "
            f"agent=branched: use {WANTS[behaviour.learns_from]}, or a behaviour that learns from "
            "transitions, such as behaviour=sac"
        )
    if world_model.decode is None:
        raise ValueError(
            "agent=branched stores imagined observations, and this world model decodes none: use "
            "one that does, such as model=ensemble, or agent=joint"
        )
    if behaviour.reobserves and not world_model.markov:
        raise ValueError(
            "this behaviour observes stored rows as if an episode began there, which a world model "
            "with a memory does not mean: use a Markov one, such as model=ensemble"
        )


def _learn(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Train the model, branch off with it, train the behaviour."""
    trained = train_model(parts, state, key, replay)
    trained_state = state._replace(world_model=trained.world_model)
    state, counters, metrics = _learn_behaviour(
        parts, trained_state, key, trained.replay, iteration
    )
    return state, counters, trained.metrics | metrics


def _learn_behaviour(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Branch short rollouts off replayed rows into the model buffer; learn from both."""
    assert parts.behaviour.update is not None and parts.replay.extend is not None
    model = bind(parts.world_model, state.world_model)
    counters, contexts, _ = parts.replay.sample(replay, named(key, "contexts"), stream="imagine")
    starts = observe_contexts(parts, model, named(key, "observe"), contexts)
    rows = branch(parts, state, named(key, "branch"), model, starts, iteration)
    counters = parts.replay.extend(counters, rows)

    replay = replay._replace(counters=counters)
    counters, transitions, _ = parts.replay.sample(
        replay, named(key, "transitions"), stream="behaviour"
    )
    behaviour, metrics = parts.behaviour.update(
        state.behaviour, named(key, "behaviour"), model, starts, transitions, iteration
    )
    return state._replace(behaviour=behaviour), counters, metrics


def length_at(config: Config, iteration: Array) -> Array | None:
    """Steps [] float32 of a branch at an iteration; None where it never changes."""
    if config.growth is None:
        return None
    growth = config.growth
    share = (iteration.astype(jnp.float32) - growth.start) / (growth.stop - growth.start)
    longer = (config.branch_length - growth.first) * jnp.clip(share, 0.0, 1.0)
    return jnp.floor(growth.first + longer)


def branch(
    parts: Parts,
    state: AgentState,
    key: Key,
    model: BoundModel,
    starts: Starts,
    iteration: Array,
) -> Transition:
    """Roll the current policy `branch_length` steps; transitions [M · branch_length].

    A step counts (valid = 1) while no termination was predicted before it (arXiv 1906.08253,
    algorithm 2), and while branches are long enough (`Growth`).
    """
    horizon, behaviour = parts.config.branch_length, parts.behaviour
    act = behaviour.act if behaviour.dream is None else behaviour.dream

    def policy(policy_key, carry, latent):
        return act(state.behaviour, policy_key, carry, latent, model, explore=True)

    def extract(latent):
        assert model.decode is not None
        return model.decode(latent), model.predict(latent)

    length = length_at(parts.config, iteration)

    def rollout(rollout_key, latent, weight):
        (observations, prediction), actions = imagine_rollout(
            model, policy, rollout_key, latent, horizon, extract, behaviour.initial_carry()
        )
        discount = (prediction.discount[1:] > 0.5).astype(jnp.float32)
        reached = returns.survival(discount, weight)
        if length is not None:
            reached = jnp.where(jnp.arange(horizon) < length, reached, 0.0)
        before, after = (
            jax.tree.map(lambda x: x[:-1], observations),
            jax.tree.map(lambda x: x[1:], observations),
        )
        return Transition(before, actions, prediction.reward[1:], after, discount, reached)

    keys = jax.random.split(key, starts.weight.shape[0])
    rows = jax.vmap(rollout)(keys, starts.latent, starts.weight)
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), rows)
