"""S4WM's world model (arXiv 2307.02064): Drama's form with S4 between the latents of single frames.

g_t from (z_{t-1}, a_{t-1});  h_t = S4 of g_≤t;  p(z_t | h_t);  q(z_t | o_t);  o_t, r_t and
terminal_t from (h_t, z_t). The KL is balanced, four fifths of it for the prior. `core=gru` and
`core=transformer` are the two backbones that the paper compares with.

The authors' code is not public: facts are the paper's and those of an unofficial variant for depth
images (specification world_models.md, section 3), whose sizes these are. Not as there: resets act
inside a window, the first row of one is drawn too, and rewards and ends are learned, as the paper
does where there are any.
"""

import dataclasses
from typing import Any, Literal

from mbrl_jax import optim
from mbrl_jax.cores import dplr
from mbrl_jax.types import EnvSpec, WorldModel, bounded, number, part
from mbrl_jax.world_models import drama
from mbrl_jax.world_models.drama.model import make


@dataclasses.dataclass(frozen=True)
class Config(drama.Config):
    """The paper's latents, the variant's sizes."""

    core: Any = part("mbrl_jax.cores", dplr.Config())
    prior_layers: int = bounded(1, low=0)
    head_width: int = bounded(512, low=1)
    zero_reward_output: bool = True
    reads: Literal["apart", "both"] = "both"
    free_nats_of: Literal["batch", "row"] = "row"
    dynamics_scale: float = number(0.8, low=0)
    representation_scale: float = number(0.2, low=0)
    optimiser: optim.Config = optim.Config("adam", 1e-4, 1000.0, warmup=1000, eps=1e-8)

    def make(self, spec: EnvSpec) -> WorldModel:
        """Build the record for one environment."""
        return make(self, spec)
