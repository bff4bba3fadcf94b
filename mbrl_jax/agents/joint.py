"""One gradient through both: the behaviour's loss shapes the representation beside the model's own.

DreamerV3's replayed values and TD-MPC2's critics are of this kind. The gradient of

  world_model.loss(θ) + behaviour.representation_loss(φ; entries of θ, model of θ)

is taken once for (θ, φ); each learner then makes its own optimiser step. What a behaviour trains
beside (TD-MPC2's policy) is its `update`, on the detached rows of the same batch.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mbrl_jax import optim
from mbrl_jax.acting import Config as ActingConfig
from mbrl_jax.agents.apart import WANTS
from mbrl_jax.agents.parts import (
    Parts,
    bind_parts,
    draw_starts,
    draw_windows,
    keep_model,
    learn_model,
    make_parts,
)
from mbrl_jax.keys import named
from mbrl_jax.replay import latents, ring
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    Behaviour,
    BoundModel,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    Trajectory,
    Windows,
    WorldModel,
    bind,
    bounded,
    part,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """How world model and behaviour share one gradient."""

    # M rows that the behaviour's own update gets; 0: all of the batch
    num_starts: int = bounded(0, low=0)
    # global norm of both gradients together; 0: each learner clips its own
    clip_norm: float = bounded(0.0, low=0)
    context: Literal["empty", "stored"] = switch(
        "empty",
        published="stored",
        better="empty",
        why="what is known before a window: nothing, or the latent that the replay keeps with its "
        "first row, which the update that saw the row last has renewed (DreamerV3); for memories "
        "that are longer than a window, at the price of a latent beside each row",
    )
    acting: ActingConfig = ActingConfig()
    annotate: Any = part("mbrl_jax.agents", None)  # a config that makes a `parts.Annotate`

    def check_batch(self, rows: int) -> None:
        """Raise ValueError where a batch of so many rows (B · L) has too few starts."""
        if self.num_starts > rows:
            raise ValueError(
                f"agent.num_starts={self.num_starts} exceeds the {rows} rows of a batch "
                "(replay.batch_size · replay.length); lower it or enlarge the batch"
            )

    def streams(self) -> dict[str, Windows]:
        """Nothing beside the windows that the model trains on."""
        return {}

    def make_replay(self, replay: Any, num_envs: int, spec: EnvSpec) -> Replay:
        """The replay that a config of one makes, with latents beside its rows where they are kept.

        Raises ValueError where it has no ring of rows.
        """
        del spec
        made = replay.make(num_envs, ())
        if self.context == "empty":
            return made
        return latents.Config(ring.all_streams(replay, ())["model"]).make(made)

    def make(
        self, spec: EnvSpec, world_model: WorldModel, behaviour: Behaviour, replay: Replay
    ) -> Agent:
        """Compose the agent. Raises ValueError for parts without a gradient to share."""
        _check(world_model, behaviour)
        stored = self.context == "stored"
        if stored and not world_model.begins_windows:
            raise ValueError(
                "agent.context=stored begins windows with latents of the replay, and the loss of "
                "this model does not read them: use model=rssm, or agent.context=empty"
            )
        if stored and self.acting.latent == "prior":
            raise ValueError(
                "agent.context=stored keeps what is known with a row, and acting.latent=prior acts "
                "on what was expected of it: use agent.acting.latent=posterior"
            )
        parts = make_parts(self, spec, world_model, behaviour, replay, keeps_latents=stored)
        learns = {"all": _learn, "model": learn_model}
        if behaviour.update is not None:
            learns["behaviour"] = _learn_behaviour
        return bind_parts(parts, learns)


def _check(world_model: WorldModel, behaviour: Behaviour) -> None:
    if behaviour.learns_from != "entries":
        raise ValueError(
            f"this behaviour learns from {behaviour.learns_from} and has no loss that shapes the "
            f"representation: use {WANTS[behaviour.learns_from]}"
        )
    if behaviour.representation_loss is None or behaviour.apply is None:
        raise ValueError('a behaviour that learns from "entries" needs representation_loss, apply')
    if world_model.loss is None or world_model.apply is None:
        raise ValueError(
            "agent=joint takes the gradient of the world model's loss, and this model has none "
            "(it is fitted in closed form): use agent=branched"
        )


def _learn(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """One joint gradient, each learner's step, then what the behaviour trains apart."""
    replay, batch, indices = draw_windows(parts, state, key, replay)
    world_model, behaviour = parts.world_model, parts.behaviour
    model_loss, shaping = world_model.loss, behaviour.representation_loss
    assert model_loss is not None and world_model.apply is not None
    assert shaping is not None and behaviour.apply is not None

    def total(params):
        of_model, of_behaviour = params
        loss, (entries, stats, metrics) = model_loss(
            of_model, state.world_model.stats, named(key, "model"), batch
        )
        model = bind(world_model, state.world_model._replace(params=of_model))
        more, (behaviour_stats, behaviour_metrics) = shaping(
            of_behaviour, state.behaviour.stats, named(key, "behaviour"), model, entries, batch
        )
        return loss + more, (stats, behaviour_stats, entries, metrics | behaviour_metrics)

    params = (state.world_model.params, state.behaviour.params)
    grads, (stats, behaviour_stats, entries, metrics) = jax.grad(total, has_aux=True)(params)
    if parts.config.clip_norm:
        clip = optim.clip_by_global_norm(parts.config.clip_norm)
        grads, _ = clip.update(grads, clip.init(params))
    trained, norm = world_model.apply(state.world_model, grads[0], stats)
    learned, behaviour_norm = behaviour.apply(state.behaviour, grads[1], behaviour_stats)
    one = jnp.ones(())
    metrics |= {
        "model/gradient_norm": (norm, one),
        "behaviour/gradient_norm": (behaviour_norm, one),
    }
    if behaviour.update is not None:
        model = bind(world_model, trained)
        entries = jax.lax.stop_gradient(entries)
        learned, more = _update_apart(parts, learned, key, model, entries, batch, iteration)
        metrics |= more
    state, counters = state._replace(world_model=trained, behaviour=learned), replay.counters
    if parts.keeps_latents:
        rows = jnp.arange(batch.timestep.reward.shape[1] - 1)
        seen = jax.vmap(jax.vmap(world_model.latent_at, (None, 0)), (0, None))(entries, rows)
        counters = parts.replay.write_back(counters, indices, jax.lax.stop_gradient(seen))
    return state, counters, metrics


def _learn_behaviour(
    parts: Parts, state: AgentState, key: Key, replay: ReplayState, iteration: Array
) -> tuple[AgentState, PyTree, Metrics]:
    """Only what the behaviour trains apart; the shared gradient belongs to "all"."""
    kept = keep_model(parts, state, key, replay)
    model = bind(parts.world_model, state.world_model)
    learned, metrics = _update_apart(
        parts, state.behaviour, key, model, kept.entries, kept.batch, iteration
    )
    return state._replace(behaviour=learned), kept.replay.counters, metrics


def _update_apart(
    parts: Parts,
    state: LearnerState,
    key: Key,
    model: BoundModel,
    entries: PyTree,
    batch: Trajectory,
    iteration: Array,
) -> tuple[LearnerState, Metrics]:
    assert parts.behaviour.update is not None
    windows, rows = batch.timestep.reward.shape
    num_starts = parts.config.num_starts or windows * (rows - 1)
    starts = draw_starts(parts.world_model, named(key, "starts"), entries, batch, num_starts)
    return parts.behaviour.update(state, named(key, "apart"), model, starts, batch, iteration)
