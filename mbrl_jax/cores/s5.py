"""S5 core (Smith et al., arXiv 2208.04933), the sequence model of R2I (arXiv 2403.04253).

Facts: specification world_models.md section 4. Unlike there, resets act at their own row, the
block is pre-norm like every core's, and Re A stays negative.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mbrl_jax import ssm
from mbrl_jax.cores import s4, stack
from mbrl_jax.networks.initializers import TRUNCATED_STD, uniform_fan_in
from mbrl_jax.ssm import hippo
from mbrl_jax.types import SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """R2I's defaults for blocks, states and layers; states are halves of conjugate pairs."""

    width: int = bounded(512, low=1)
    layers: int = bounded(4, low=1)
    state_size: int = bounded(128, low=2)  # of the real system: P = state_size / 2
    blocks: int = bounded(8, low=1)  # HiPPO systems side by side that the states start as
    rule: Literal["zoh", "bilinear"] = "zoh"
    chunk_size: int = bounded(16, low=1)  # of method "chunked"
    # of `ssm.s5`: "auto" chooses by backend
    method: Literal["auto", "associative", "chunked", "recurrent"] = "auto"

    @property
    def pairs(self) -> int:
        """P, the complex states."""
        return self.state_size // 2

    def validate(self) -> None:
        """Raise ValueError where the blocks do not fit."""
        if self.state_size % (2 * self.blocks):
            raise ValueError(
                f"state_size {self.state_size} is no positive multiple of 2 · blocks "
                f"= {2 * self.blocks}"
            )

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


@functools.cache
def _hippo_block(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [b / 2] and eigenvectors [b, b / 2] of one block of b = state_size / blocks."""
    return hippo.hippo_legs(config.state_size // config.blocks)


class S5Mixer(s4.StateSpaceMixer):
    """The S5 layer."""

    kernel_step = staticmethod(ssm.s5_step)
    kernel_stream = staticmethod(ssm.s5_stream)

    def setup(self):
        c = self.config
        poles = np.tile(_hippo_block(c)[0], c.blocks)
        self.log_dt = self.param("log_dt", s4.log_dt_init, (c.pairs,))
        self.log_decay = self.param("log_decay", s4.constant(np.log(-poles.real)), poles.shape)
        self.frequency = self.param("frequency", s4.constant(poles.imag), poles.shape)
        # Real and imaginary parts along the first axis.
        self.b = self.param("b", functools.partial(_b_init, c), (2, c.pairs, c.width))
        self.c = self.param("c", functools.partial(_c_init, c), (2, c.width, c.pairs))
        self.skip = self.param("skip", nn.initializers.normal(1.0), (c.width,))
        self.out_proj = nn.Dense(2 * c.width, kernel_init=uniform_fan_in(c.width))

    def _system(self):
        """dt, A, B, C, D of the kernel; exp keeps Re A below 0."""
        A = jax.lax.complex(-jnp.exp(self.log_decay), self.frequency)
        B, C = jax.lax.complex(*self.b), jax.lax.complex(*self.c)
        return jnp.exp(self.log_dt), A, B, C, self.skip


def _b_init(config: Config, key, shape, dtype=jnp.float32):
    """V⁻¹ B [2, P, W] for a real B of variance 1 / state_size; V of all blocks is unitary."""
    inverse = _hippo_block(config)[1].conj().T  # [b / 2, b]
    block = inverse.shape[1]
    B = _lecun_normal(key, (config.state_size, config.width), config.state_size, dtype)
    B = B.reshape(config.blocks, block, config.width)
    parts = [jnp.asarray(part, dtype) @ B for part in (inverse.real, inverse.imag)]
    return jnp.stack(parts).reshape(shape)


def _c_init(config: Config, key, shape, dtype=jnp.float32):
    """C V [2, W, P] for a complex C whose parts have variance 1 / state_size."""
    vectors = _hippo_block(config)[1]  # [b, b / 2]
    real, imag = (jnp.asarray(part, dtype) for part in (vectors.real, vectors.imag))
    C = _lecun_normal(key, (2, config.width, config.state_size), config.state_size, dtype)
    C = C.reshape(2, config.width, config.blocks, len(vectors))
    parts = (C[0] @ real - C[1] @ imag, C[0] @ imag + C[1] @ real)
    return jnp.stack(parts).reshape(shape)


def _lecun_normal(key, shape, fan_in: int, dtype) -> jax.Array:
    normal = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    return normal / (TRUNCATED_STD * fan_in**0.5)


def _initial_carry(config: Config) -> ssm.ComplexPair:
    zeros = jnp.zeros((config.pairs,))
    return ssm.ComplexPair(zeros, zeros)


def mixer(config: Config) -> stack.Mixer:
    """The S5 layer."""
    return stack.Mixer(S5Mixer(config), functools.partial(_initial_carry, config), ssm.s5_state_at)
