"""R2I's world model (Recall to Imagine, arXiv 2403.04253): Drama's form, S5, DreamerV3's loss.

The posterior sees the frame alone, so that latents, states of the core and priors of a window come
in parallel. All nets read the core's output and the latent of a frame, and the policy sees the
core's state besides: without it, what is remembered would have to pass through the output.

Not as published: a core here is pre-norm with a stem and no projection behind it, resets act at
their own row (`boundaries=early` has them where the published scan puts them, one too soon, but for
the last action of an episode, which it hides), and Re A stays negative.
"""

import dataclasses
from typing import Any, Literal

from mbrl_jax import optim
from mbrl_jax.cores import s5
from mbrl_jax.types import EnvSpec, WorldModel, bounded, number, part, switch
from mbrl_jax.world_models import drama
from mbrl_jax.world_models.drama.model import make


@dataclasses.dataclass(frozen=True)
class Config(drama.Config):
    """R2I's numbers, of its settings for tasks of vectors and small images."""

    core: Any = part("mbrl_jax.cores", s5.Config(width=1024, layers=4, state_size=256))
    posterior_layers: int = bounded(1, low=0)
    prior_layers: int = bounded(1, low=0)
    head_width: int = bounded(1024, low=1)
    zero_reward_output: bool = True
    reads: Literal["apart", "both"] = "both"
    features_hold: Literal["output", "state"] = "state"
    free_nats_of: Literal["batch", "row"] = "row"
    dynamics_scale: float = number(0.5, low=0)
    boundaries: Literal["reset", "ignored", "early"] = switch(
        "reset",
        published="early",
        better="reset",
        why="where episodes meet inside a window: empty the core's state at the first row, or a "
        "row too soon, as the published scan does: two rows of the episode before then lead to it",
    )
    optimiser: optim.Config = optim.Config("adam", 1e-4, 1000.0, warmup=0, eps=1e-8)

    def make(self, spec: EnvSpec) -> WorldModel:
        """Build the record for one environment."""
        return make(self, spec)
