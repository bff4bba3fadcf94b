"""A world model whose rewards are lowered where it is uncertain: r̃ = r - λ u (MOPO).

`u` is what the wrapped model reports in `Prediction.extras`; rows that were really seen have
u = 0, so that only imagined ones are penalised. Nothing else changes: the model learns as before.

Reference: Yu et al. 2020 (MOPO), https://arxiv.org/abs/2005.13239; default as in its code.
"""

import dataclasses
import functools
import math
from typing import Any

import jax

from mbrl_jax.types import (
    EnvSpec,
    LearnerState,
    Prediction,
    PyTree,
    WorldModel,
    cached_make,
    number,
    part,
)
from mbrl_jax.world_models import ensemble


@dataclasses.dataclass(frozen=True)
class Config:
    """The wrapped model, and how much its uncertainty costs."""

    model: Any = part("mbrl_jax.world_models", ensemble.Config())
    penalty: float = number(1.0, "reward that one unit of uncertainty costs", low=-math.inf)
    # a name in the model's `Prediction.extras`; of an ensemble those in `uncertainty.NAMES` and
    # "disagreement". MOPO: the largest norm of a member's deviations
    uncertainty: str = "max_std"

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record. Raises ValueError where the model reports no such uncertainty."""
        return make(self, spec)


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module to a config and an environment."""
    model = config.model.make(spec)
    reported = jax.eval_shape(
        lambda key: model.predict(model.init(key), model.initial_latent()).extras, jax.random.key(0)
    )
    scalars = [name for name, value in reported.items() if value.shape == ()]
    if config.uncertainty not in scalars:
        raise ValueError(
            f"uncertainty={config.uncertainty} is nothing that this world model reports with a "
            f"prediction; it reports {', '.join(scalars) or 'nothing'}"
        )
    return model._replace(predict=functools.partial(predict, config, model))


def predict(config: Config, model: WorldModel, state: LearnerState, latent: PyTree) -> Prediction:
    """What arrived with this latent, the reward less the penalty; "penalty" is an extra."""
    inner = model.predict(state, latent)
    penalty = config.penalty * inner.extras[config.uncertainty]
    return inner._replace(reward=inner.reward - penalty, extras=inner.extras | {"penalty": penalty})
