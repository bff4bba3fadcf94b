"""Drama's sizes and weights, and the switches to what its published code does."""

import dataclasses
from typing import Any, Literal

from mbrl_jax import optim
from mbrl_jax.cores import mamba2
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.types import (
    EnvSpec,
    WorldModel,
    bounded,
    number,
    part,
    switch,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes and weights by default (specification sections 2 to 4)."""

    core: Any = part("mbrl_jax.cores", mamba2.Config())
    encoder: Any = part("mbrl_jax.networks.encoders", encoders.Image64())
    decoder: Any = part("mbrl_jax.networks.decoders", decoders.Image64())
    groups: int = bounded(32, low=1)
    classes: int = bounded(32, low=1)
    prior_layers: int = bounded(0, low=0)
    head_layers: int = bounded(1, low=0)
    head_width: int = bounded(256, low=1)
    num_bins: int = bounded(255, low=2)
    # "bernoulli" for binary observations, "sigmoid" squared error for images in [0, 1],
    # "squared" for unbounded vectors.
    reconstruction: Literal["bernoulli", "sigmoid", "squared"] = "sigmoid"
    zero_reward_output: bool = False
    unimix: float = number(0.01, low=0, high=1)
    # Nats below which the batch mean of a KL term has no gradient. On small tasks a step carries
    # less than one nat given the past, and 1 would switch the prior off.
    free_nats: float = number(1.0, low=0)
    dynamics_scale: float = number(1.0, low=0)
    representation_scale: float = number(0.1, low=0)
    reward_scale: float = number(1.0, low=0)  # larger where rewards are rare
    boundaries: Literal["reset", "ignored"] = switch(
        "reset",
        published="ignored",
        better="reset",
        why="where episodes meet inside a window: empty the core's state and mask the KL, or train "
        "across the seam; reset wherever episodes are short",
    )
    dropped_groups: float = switch(
        0.0,
        published=0.0,
        better=0.0,
        number=True,
        low=0,
        high=1,
        why="share of the one-hot groups that the core does not hear in imagination; an integer "
        "buffer of the published code loses about 0.22: try it where scores do not match",
    )
    optimiser: optim.Config = optim.Config()

    def make(self, spec: EnvSpec) -> WorldModel:
        """Build the record for one environment."""
        from mbrl_jax.world_models.drama.model import make

        return make(self, spec)


Config.__module__ = __package__  # "drama" on the command line, and so in config.json
