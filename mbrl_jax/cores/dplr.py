"""S4 core (Gu et al., arXiv 2111.00396): the sequence model of S4WM (arXiv 2307.02064).

    r ← r + GLU(GELU(S4(norm(r))))  `layers_per_block` times, then  r ← r + W₂ GELU(W₁ norm(r))

Facts: specification world_models.md section 3. Unlike there, norms are the RMS norms of every core,
stem and last norm too; Re Λ stays below 0 by an exponential and not by a clip; C is learnt itself
and not C (1 - Āᴸ), with which a kernel is that of one length L; states are halves of conjugate
pairs; nothing is dropped out; all parameters have one learning rate. `cores.s4` is the diagonal
kind, at less than the cost of this one.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mbrl_jax import ssm
from mbrl_jax.cores import memoryless, s4, stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.ssm import hippo
from mbrl_jax.types import SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """S4WM's width and blocks by default, and S4's 64 states a channel (as 32 pairs)."""

    width: int = bounded(512, low=1)
    layers: int = bounded(6, low=1)  # of S4; 3 blocks of 2
    # before each feed-forward layer; one ends the last block too where that is shorter
    layers_per_block: int = bounded(2, low=1)
    expand: int = bounded(2, low=1)  # inner width of a feed-forward layer = expand · width
    state_size: int = bounded(64, low=2)  # of the real system of a channel: 2N
    chunk_size: int = bounded(16, low=1)
    # of `ssm.dplr`: "auto" chooses by backend
    method: Literal["auto", "chunked", "recurrent"] = "auto"

    @property
    def pairs(self) -> int:
        """Complex states of a channel."""
        return self.state_size // 2

    def validate(self) -> None:
        """Raise ValueError for an odd state_size."""
        s4.require_pairs(self.state_size)

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        feed_forward = memoryless.mixer_of(self.width, self.expand, nn.gelu)
        mixers: list[stack.Mixer] = []
        for i in range(1, self.layers + 1):
            mixers.append(mixer(self))
            if i % self.layers_per_block == 0 or i == self.layers:
                mixers.append(feed_forward)
        return stack.make_core_of(tuple(mixers), self.width, in_size)


@functools.cache
def _legs(state_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return hippo.dplr_legs(state_size)


class DPLRMixer(s4.StateSpaceMixer):
    """The S4 layer; every channel starts as HiPPO-LegS."""

    kernel_step = staticmethod(ssm.dplr_step)
    kernel_stream = staticmethod(ssm.dplr_stream)

    def setup(self):
        c = self.config
        poles, P, B = _legs(c.state_size)
        shape = (c.width, c.pairs)
        self.log_dt = self.param("log_dt", s4.log_dt_init, (c.width,))
        self.log_decay = self.param("log_decay", s4.constant(np.log(-poles.real)), shape)
        self.frequency = self.param("frequency", s4.constant(poles.imag), shape)
        # Real and imaginary parts along the first axis.
        self.p = self.param("p", s4.constant(_parts(P)), (2, *shape))
        self.b = self.param("b", s4.constant(_parts(B)), (2, *shape))
        # A complex standard normal: half of the variance in either part.
        self.c = self.param("c", nn.initializers.normal(0.5**0.5), (2, *shape))
        self.skip = self.param("skip", nn.initializers.ones, (c.width,))
        self.out_proj = nn.Dense(2 * c.width, kernel_init=uniform_fan_in(c.width))

    def _options(self) -> dict:
        return {}

    def _system(self):
        """dt, A, P, B, C, D of the kernel; exp keeps Re A below 0."""
        A = jax.lax.complex(-jnp.exp(self.log_decay), self.frequency)
        P, B, C = (jax.lax.complex(*parts) for parts in (self.p, self.b, self.c))
        return jnp.exp(self.log_dt), A, P, B, C, self.skip


def _parts(values: np.ndarray) -> np.ndarray:
    """[2, 1, N] of complex values [N]."""
    return np.stack([values.real, values.imag])[:, None]


def mixer(config: Config) -> stack.Mixer:
    """The S4 layer."""
    start = functools.partial(s4.initial_carry, config)
    return stack.Mixer(DPLRMixer(config), start, ssm.dplr_state_at)
