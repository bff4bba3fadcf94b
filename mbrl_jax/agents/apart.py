"""Two parts that train apart: first the world model, then the behaviour that imagines in it.

Dreamer and Drama are of this kind: starts of imagination come from replayed rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax

from mbrl_jax.acting import Config as ActingConfig
from mbrl_jax.agents.parts import (
    Parts,
    bind_parts,
    draw_starts,
    keep_model,
    learn_model,
    make_parts,
    observe_contexts,
    train_model,
)
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    Behaviour,
    EnvSpec,
    Key,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Windows,
    WorldModel,
    bind,
    bounded,
    part,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """How world model and behaviour meet."""

    num_starts: int = bounded(1024, low=1)  # M imagination starts of one update
    starts: Literal["trained", "contexts"] = switch(
        "trained",
        published="contexts",
        better="trained",
        price="-0.01 ± 0.02",
        why="imagine from rows of the windows that the model was just trained on, or behind "
        "windows drawn for it (agent.context_length rows each), which are encoded anew: at the "
        "published size that is two thirds of a behaviour update",
    )
    # rows of each window behind which imagination starts, "contexts" alone
    context_length: int = bounded(1, low=1)
    acting: ActingConfig = ActingConfig()
    annotate: Any = part("mbrl_jax.agents", None)  # a config that makes a `parts.Annotate`

    def check_batch(self, rows: int) -> None:
        """Raise ValueError where a batch of so many rows (B · L) has too few starts."""
        if self.starts == "trained" and self.num_starts > rows:
            raise ValueError(
                f"agent.num_starts={self.num_starts} exceeds the {rows} rows of a batch "
                "(replay.batch_size · replay.length); lower it or enlarge the batch"
            )

    def streams(self) -> dict[str, Windows]:
        """What it draws from the replay beside the windows that the model trains on."""
        if self.starts == "trained":
            return {}
        return {"imagine": Windows(self.num_starts, self.context_length)}

    def make_replay(self, replay: Any, num_envs: int, spec: EnvSpec) -> Replay:
        """The replay that a config of one makes, with the streams of this agent."""
        del spec
        return replay.make(num_envs, tuple(self.streams().items()))

    def make(
        self, spec: EnvSpec, world_model: WorldModel, behaviour: Behaviour, replay: Replay
    ) -> Agent:
        """Compose the agent. Raises ValueError for a behaviour that learns from something else."""
        if behaviour.learns_from != "starts" or behaviour.update is None:
            raise ValueError(
                f"this behaviour learns from {behaviour.learns_from}, and agent=apart gives it "
                f"starts to imagine from: use {WANTS[behaviour.learns_from]}"
            )
        parts = make_parts(self, spec, world_model, behaviour, replay)
        learn = _learn_from_entries if self.starts == "trained" else _learn_from_contexts
        return bind_parts(
            parts,
            {
                "all": functools.partial(learn, train_model),
                "model": learn_model,
                "behaviour": functools.partial(learn, keep_model),
            },
        )


# What gives a behaviour the data that it learns from.
WANTS = {
    "starts": "agent=apart",
    "transitions": "agent=branched, with a Markov world model such as model=ensemble",
    "entries": "agent=joint",
}


def _learn_from_entries(
    model_half: Callable,
    parts: Parts,
    state: AgentState,
    key: Key,
    replay: ReplayState,
    iteration: Array,
) -> tuple[AgentState, PyTree, Metrics]:
    """Imagination starts from rows of the very windows that the model was trained on."""
    assert parts.behaviour.update is not None
    trained = model_half(parts, state, key, replay)
    starts = draw_starts(
        parts.world_model,
        named(key, "starts"),
        trained.entries,
        trained.batch,
        parts.config.num_starts,
    )
    behaviour, metrics = parts.behaviour.update(
        state.behaviour,
        named(key, "behaviour"),
        bind(parts.world_model, trained.world_model),
        starts,
        trained.batch,
        iteration,
    )
    state = state._replace(world_model=trained.world_model, behaviour=behaviour)
    return state, trained.replay.counters, trained.metrics | metrics


def _learn_from_contexts(
    model_half: Callable,
    parts: Parts,
    state: AgentState,
    key: Key,
    replay: ReplayState,
    iteration: Array,
) -> tuple[AgentState, PyTree, Metrics]:
    """Imagination starts behind contexts of their own, as the published Drama does.

    The first imagined action follows the state that is expected after the last row of a context.
    """
    assert parts.behaviour.update is not None
    trained = model_half(parts, state, key, replay)
    model = bind(parts.world_model, trained.world_model)
    counters, contexts, _ = parts.replay.sample(
        trained.replay, named(key, "contexts"), stream="imagine"
    )
    starts = observe_contexts(parts, model, named(key, "observe"), contexts)
    keys = jax.random.split(named(key, "expect"), parts.config.num_starts)
    last_actions = jax.tree.map(lambda x: x[:, -1], contexts.action)
    starts = starts._replace(latent=jax.vmap(model.imagine)(keys, starts.latent, last_actions))
    behaviour, metrics = parts.behaviour.update(
        state.behaviour, named(key, "behaviour"), model, starts, trained.batch, iteration
    )
    state = state._replace(world_model=trained.world_model, behaviour=behaviour)
    return state, counters, trained.metrics | metrics
