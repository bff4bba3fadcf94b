"""A world model that keeps its best snapshot, and stops to learn when none is better for long.

Every `period` updates the mean of a metric over them (an error on rows that were not trained on)
is compared with the best so far. What is observed, imagined and predicted is always the best
snapshot's; within the first period, when there is none, the newest parameters'. After `patience`
periods without a gain the snapshot becomes the state, and nothing changes from then on: losses are
still reported, of the snapshot. Each seed stops by itself.

Published ensembles stop so (MBPO, MOPO: no member better by 1 % for five epochs), except that each
member there goes back to a best of its own; here all of them are one snapshot.

Entries of a loss are those of the parameters that are being trained. Until a seed has stopped they
differ from the snapshot's, unless latents do not depend on parameters (`WorldModel.markov`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    PyTree,
    Trajectory,
    WorldModel,
    bounded,
    cached_make,
    number,
    part,
)
from mbrl_jax.world_models import ensemble
from mbrl_jax.world_models.combinators.wrapping import with_learning

READERS = ("observe", "observe_sequence", "imagine", "predict", "features", "decode")


@dataclasses.dataclass(frozen=True)
class Config:
    """The wrapped model, and when it stops."""

    model: Any = part("mbrl_jax.world_models", ensemble.Config())
    metric: str = "model/holdout_mse"  # of the model's loss; the lower the better
    # updates whose mean is one score; published: an epoch of the data
    period: int = bounded(100, low=1)
    patience: int = bounded(5, low=1)  # periods without a gain, after which learning stops
    margin: float = number(0.01, "share of the best score by which a better one is lower", low=0)

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record; see the module."""
        return make(self, spec)


class Stopping(NamedTuple):
    """Stats of the wrapped model, and what decides when to stop."""

    inner: PyTree  # stats of the wrapped model
    best_params: PyTree
    best_stats: PyTree
    best_score: Array  # [] infinite until the first period is over
    total: Array  # [] of the metric in this period
    count: Array  # type: ignore[assignment]  # [] of the metric in this period
    updates: Array  # [] int32: updates in this period
    waited: Array  # [] int32: periods since the best score
    stopped: Array  # [] bool


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module to a config and an environment."""
    model = config.model.make(spec)
    readers = {
        name: functools.partial(_on_best, f)
        for name in READERS
        if (f := getattr(model, name)) is not None
    }
    return with_learning(
        model,
        init=functools.partial(init, model),
        loss=functools.partial(loss, config, model),
        apply=functools.partial(apply, config, model),
        update=functools.partial(update, config, model),
        updates={name: functools.partial(_unless_stopped, f) for name, f in model.updates.items()},
        **readers,
    )


def init(model: WorldModel, key: Key) -> LearnerState:
    """The wrapped model's state, with a snapshot of itself."""
    inner = model.init(key)
    best_params, best_stats = jax.tree.map(jnp.copy, (inner.params, inner.stats))
    stats = Stopping(
        inner=inner.stats,
        best_params=best_params,
        best_stats=best_stats,
        best_score=jnp.full((), jnp.inf),
        total=jnp.zeros(()),
        count=jnp.zeros(()),
        updates=jnp.zeros((), jnp.int32),
        waited=jnp.zeros((), jnp.int32),
        stopped=jnp.zeros((), bool),
    )
    return LearnerState(inner.params, stats, inner.opt)


def best(state: LearnerState) -> LearnerState:
    """The snapshot as a state of the wrapped model, without an optimiser."""
    return LearnerState(state.stats.best_params, state.stats.best_stats, opt=())


# ------------------------------------------------------------------------------------- learning


def loss(
    config: Config,
    model: WorldModel,
    params: PyTree,
    stats: Stopping,
    key: Key,
    batch: Trajectory,
) -> tuple[Array, tuple[PyTree, Stopping, Metrics]]:
    """The wrapped model's loss; its metric is added to those of this period."""
    assert model.loss is not None
    total, (entries, inner, metrics) = model.loss(params, stats.inner, key, batch)
    return total, (entries, measure(config, stats, inner, metrics), metrics | report(stats))


def apply(
    config: Config, model: WorldModel, state: LearnerState, grads: PyTree, stats: Stopping
) -> tuple[LearnerState, Array]:
    """The wrapped model's step, unless this seed has stopped; (state, norm `[]` of `grads`)."""
    assert model.apply is not None
    inner, norm = model.apply(unwrapped(state), grads, stats.inner)
    return decide(config, state, inner, stats), norm


def update(
    config: Config, model: WorldModel, state: LearnerState, key: Key, batch: Trajectory
) -> tuple[LearnerState, PyTree, Metrics]:
    """The same around an update that is not derived."""
    inner, entries, metrics = model.update(unwrapped(state), key, batch)
    stats = measure(config, state.stats, inner.stats, metrics)
    return decide(config, state, inner, stats), entries, metrics | report(state.stats)


def unwrapped(state: LearnerState) -> LearnerState:
    """The state of the wrapped model that is being trained."""
    return state._replace(stats=state.stats.inner)


def measure(config: Config, stats: Stopping, inner: PyTree, metrics: Metrics) -> Stopping:
    """Stats with one more update in this period; `inner` are the wrapped model's new ones."""
    if config.metric not in metrics:
        raise ValueError(
            f"the world model has no metric {config.metric!r} to stop by; it has "
            f"{', '.join(sorted(metrics))}"
        )
    total, count = metrics[config.metric]
    total, count = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (total, count))
    return stats._replace(
        inner=inner,
        total=stats.total + total,
        count=stats.count + count,
        updates=stats.updates + 1,
    )


def decide(
    config: Config, state: LearnerState, inner: LearnerState, stats: Stopping
) -> LearnerState:
    """The state after an update that led to `inner`: with a new snapshot, or stopped.

    Args:
      config: says when.
      state: before the update; it stays where it has stopped.
      inner: the wrapped model's state after the update.
      stats: of before, with the update measured.
    """
    judged = jnp.isfinite(stats.best_score)
    ended = stats.updates >= config.period
    known = ended & (stats.count > 0)
    score = stats.total / jnp.where(stats.count > 0, stats.count, 1.0)
    # Infinite before the first score; an error that is not a number is never better.
    least = jnp.where(judged, stats.best_score, 0.0)
    limit = jnp.where(judged, least - config.margin * jnp.abs(least), jnp.inf)
    better = known & (score < limit)
    waited = jnp.where(better, 0, stats.waited + known.astype(jnp.int32))
    stopped = waited >= config.patience
    snapshot = _where(
        better | ~judged, (inner.params, inner.stats), (stats.best_params, stats.best_stats)
    )
    current = _where(stopped, snapshot, (inner.params, inner.stats))
    stats = Stopping(
        inner=current[1],
        best_params=snapshot[0],
        best_stats=snapshot[1],
        best_score=jnp.where(better, score, stats.best_score),
        total=jnp.where(ended, 0.0, stats.total),
        count=jnp.where(ended, 0.0, stats.count),
        updates=jnp.where(ended, 0, stats.updates),
        waited=waited,
        stopped=stopped,
    )
    return _where(state.stats.stopped, state, LearnerState(current[0], stats, inner.opt))


def report(stats: Stopping) -> Metrics:
    """Whether a seed has stopped, and its best score as soon as there is one."""
    judged = jnp.isfinite(stats.best_score)
    return {
        "model/stopped": (stats.stopped.astype(jnp.float32), jnp.ones(())),
        "model/best_score": (
            jnp.where(judged, stats.best_score, 0.0),
            judged.astype(jnp.float32),
        ),
    }


def _unless_stopped(update, state: LearnerState, key: Key, batch: Trajectory):
    """A further update of the wrapped model; it changes nothing where the seed has stopped."""
    inner, metrics = update(unwrapped(state), key, batch)
    changed = state._replace(
        params=inner.params, stats=state.stats._replace(inner=inner.stats), opt=inner.opt
    )
    return _where(state.stats.stopped, state, changed), metrics


def _on_best(function, state: LearnerState, *args, **named):
    return function(best(state), *args, **named)


def _where(condition: Array, chosen: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)
