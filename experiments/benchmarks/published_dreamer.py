"""DreamerV3's whole joint update for vectors: this project against plain PyTorch on one thread.

    taskset -c 0 python -m experiments.benchmarks.published dreamer

writes `published_dreamer.csv`. The model has the size of the preset "12m" for vectors, the batch is
the published one: 16 windows of 64 rows, every one of which is a start, and 15 imagined steps. Both
sides start from the same weights and see the same windows. See `published` for how.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.behaviours import dreamer
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.types import (
    Array,
    ArraySpec,
    Behaviour,
    DiscreteSpec,
    EnvSpec,
    LearnerState,
    Timestep,
    Trajectory,
    WorldModel,
    bind,
)
from mbrl_jax.world_models import rssm


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is trained."""

    model: rssm.Config = rssm.Config()
    behaviour: dreamer.Config = dreamer.Config()
    windows: int = 16
    rows: int = 65  # of a window; the last is no start
    observation: int = 24
    num_actions: int = 6

    @property
    def spec(self) -> EnvSpec:
        """A vector, and discrete actions."""
        vector = ArraySpec((self.observation,), "float32")
        return EnvSpec(vector, DiscreteSpec(self.num_actions))


def small_sizes() -> Sizes:
    """Every part, small enough for tests."""
    dense = {"width": 6, "layers": 2, "form": "dreamerv3"}
    sizes: dict[str, Any] = {"groups": 3, "classes": 4, "num_bins": 9}
    model = rssm.Config(
        deter=8,
        hidden=5,
        blocks=2,
        head_width=7,
        encoder=encoders.Dense(**dense),
        decoder=decoders.Dense(**dense),
        **sizes,
    )
    behaviour = dreamer.Config(horizon=3, actor_width=6, critic_width=6, layers=2, num_bins=9)
    return Sizes(model, behaviour, windows=2, rows=5, observation=3, num_actions=3)


class Problem(NamedTuple):
    """Fresh learners and the windows that both sides work on."""

    sizes: Sizes
    model: WorldModel
    behaviour: Behaviour
    model_state: LearnerState
    behaviour_state: LearnerState
    batch: Trajectory  # [B, L+1]
    key: Array


def make_problem(sizes: Sizes) -> Problem:
    """Random windows; a row in a hundred is terminal, and none begins an episode."""
    keys = jax.random.split(jax.random.key(0), 7)
    model, behaviour = sizes.model.make(sizes.spec), sizes.behaviour.make(sizes.spec)
    shape = (sizes.windows, sizes.rows)
    timestep = Timestep(
        jax.random.normal(keys[0], (*shape, sizes.observation)),
        jax.random.normal(keys[1], shape),
        is_first=jnp.zeros(shape, bool),
        is_last=jnp.zeros(shape, bool),
        is_terminal=jax.random.uniform(keys[2], shape) < 0.01,
    )
    action = jax.random.randint(keys[3], shape, 0, sizes.num_actions)
    features = sizes.model.deter + sizes.model.groups * sizes.model.classes
    return Problem(
        sizes,
        model,
        behaviour,
        model_state=jax.jit(model.init)(keys[4]),
        behaviour_state=jax.jit(behaviour.init)(keys[5], jnp.zeros(features)),
        batch=Trajectory(timestep, action),
        key=keys[6],
    )


def joint_update(
    problem: Problem,
    model_state: LearnerState,
    behaviour_state: LearnerState,
    key: Array,
    batch: Trajectory,
) -> tuple[LearnerState, LearnerState]:
    """One gradient of both losses and a step of either optimiser, as `agents.joint` has it."""
    p = problem
    model_loss, shaping = p.model.loss, p.behaviour.representation_loss
    assert model_loss is not None and p.model.apply is not None
    assert shaping is not None and p.behaviour.apply is not None
    model_key, behaviour_key = jax.random.split(key)

    def total(params):
        of_model, of_behaviour = params
        loss, (entries, stats, _) = model_loss(of_model, model_state.stats, model_key, batch)
        model = bind(p.model, model_state._replace(params=of_model))
        more, (behaviour_stats, _) = shaping(
            of_behaviour, behaviour_state.stats, behaviour_key, model, entries, batch
        )
        return loss + more, (stats, behaviour_stats)

    params = (model_state.params, behaviour_state.params)
    grads, (stats, behaviour_stats) = jax.grad(total, has_aux=True)(params)
    model_state, _ = p.model.apply(model_state, grads[0], stats)
    behaviour_state, _ = p.behaviour.apply(behaviour_state, grads[1], behaviour_stats)
    return model_state, behaviour_state


def program(problem: Problem) -> tuple[Any, tuple]:
    """The update and its arguments."""
    p = problem
    return functools.partial(joint_update, p), (p.model_state, p.behaviour_state, p.key, p.batch)


def work(sizes: Sizes) -> int:
    """Floating-point operations of an update, counted as `published` does."""
    m, b = sizes.model, sizes.behaviour
    latent, features = m.groups * m.classes, m.deter + m.groups * m.classes
    block = m.deter // m.blocks
    heard = (m.deter + latent + sizes.num_actions) * m.hidden
    cell = 2 * (heard + m.deter * (block + 3 * m.hidden) + 3 * m.deter * block)
    encoder = _mlp(sizes.observation, m.encoder.width, m.encoder.layers)
    decoder = _mlp(features, m.decoder.width, m.decoder.layers, sizes.observation)
    posterior = _mlp(m.deter + m.encoder.width, m.hidden, m.posterior_layers, latent)
    prior = _mlp(m.deter, m.hidden, m.prior_layers, latent)
    heads = _mlp(features, m.head_width, m.head_layers, m.num_bins)
    heads += _mlp(features, m.head_width, m.head_layers, 1)
    actor = _mlp(features, b.actor_width, b.layers, sizes.num_actions)
    critic = _mlp(features, b.critic_width, b.layers, b.num_bins)
    rows = sizes.windows * sizes.rows
    starts = sizes.windows * (sizes.rows - 1)
    imagined = starts * b.horizon
    seen = 3 * rows * (encoder + cell + posterior + prior + heads + decoder)
    dreamed = imagined * (cell + prior + heads + actor)
    learned = 3 * imagined * actor + 4 * (imagined + starts) * critic + 4 * starts * critic
    return seen + dreamed + learned


def _mlp(inputs: int, width: int, layers: int, outputs: int | None = None) -> int:
    sizes = [inputs, *[width] * layers, *([] if outputs is None else [outputs])]
    return sum(2 * before * after for before, after in zip(sizes, sizes[1:], strict=False))
