"""S4D core: the diagonal S4 layer (Gu et al., arXiv 2206.11893), as in S4WM (arXiv 2307.02064).

Facts: specification world_models.md section 3. S4WM's own kernel, which is not diagonal, is that of
`cores.dplr`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mbrl_jax import ssm
from mbrl_jax.cores import stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.ssm import hippo
from mbrl_jax.types import Array, Key, SequenceCore, bounded

DT_RANGE = (1e-3, 1e-1)


@dataclasses.dataclass(frozen=True)
class Config:
    """S4D's sizes by default: 64 states a channel, kept as 32 halves of conjugate pairs."""

    width: int = bounded(512, low=1)
    layers: int = bounded(4, low=1)
    state_size: int = bounded(64, low=2)  # N of the real system
    init: Literal["lin", "inv", "legs"] = "lin"
    rule: Literal["zoh", "bilinear"] = "zoh"
    chunk_size: int = bounded(16, low=1)
    # of `ssm.s4d`: "auto" chooses by backend
    method: Literal["auto", "chunked", "chunked_sequential", "recurrent"] = "auto"

    @property
    def pairs(self) -> int:
        """Complex states of a channel."""
        return self.state_size // 2

    def validate(self) -> None:
        """Raise ValueError for an odd state_size."""
        require_pairs(self.state_size)

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


def require_pairs(state_size: int) -> None:
    """Raise ValueError for an odd state_size."""
    if state_size % 2:
        raise ValueError(
            f"state_size {state_size} is no positive multiple of 2, "
            "but states come in conjugate pairs"
        )


# ---------------------------------------------------------------------------------- initial poles


@functools.cache
def initial_poles(init: str, state_size: int) -> np.ndarray:
    """Poles with Im ≥ 0 of one channel [state_size / 2], complex128 (S4D, section 4).

    "lin": -1/2 + iπn; "inv": -1/2 + i (N/π)(N/(2n + 1) - 1); "legs": `ssm.hippo.hippo_legs`.
    """
    n = np.arange(state_size // 2)
    if init == "lin":
        return -0.5 + 1j * np.pi * n
    if init == "inv":
        return -0.5 + 1j * state_size / np.pi * (state_size / (2 * n + 1) - 1)
    return hippo.hippo_legs(state_size)[0]


def log_dt_init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Logarithms of step sizes, uniform over those of `DT_RANGE`."""
    low, high = (math.log(bound) for bound in DT_RANGE)
    return jax.random.uniform(key, shape, dtype, low, high)


# ------------------------------------------------------------------------------------------ layer


class StateSpaceMixer(nn.Module):
    """A kernel of `ssm`, GELU, then GLU: W₁ y · sigmoid(W₂ y).

    Kinds of layers set `kernel_step` and `kernel_stream` and define `setup` and `_system`.
    """

    config: Any

    def _system(self):
        raise NotImplementedError

    def _options(self) -> dict:
        """What the kernel wants to know beside arrays."""
        return {"rule": self.config.rule}

    def _mix(self, y):
        value, gate = jnp.split(self.out_proj(nn.gelu(y)), 2, axis=-1)
        return value * nn.sigmoid(gate)

    def step(self, carry, u):
        state, y = self.kernel_step(carry, u, *self._system(), **self._options())
        return state, self._mix(y)

    def unroll(self, carry, us, is_first):
        c = self.config
        y, last, entries = self.kernel_stream(
            us,
            *self._system(),
            reset=is_first,
            initial_state=carry,
            **self._options(),
            chunk_size=c.chunk_size,
            method=c.method,
        )
        return last, self._mix(y), entries


class S4Mixer(StateSpaceMixer):
    """The S4D layer. B is 1: only the product of B and C matters."""

    kernel_step = staticmethod(ssm.s4d_step)
    kernel_stream = staticmethod(ssm.s4d_stream)

    def setup(self):
        c = self.config
        poles = initial_poles(c.init, c.state_size)
        shape = (c.width, c.pairs)
        self.log_dt = self.param("log_dt", log_dt_init, (c.width,))
        self.log_decay = self.param("log_decay", constant(np.log(-poles.real)), shape)
        self.frequency = self.param("frequency", constant(poles.imag), shape)
        # A complex standard normal: half of the variance in either part.
        self.c = self.param("c", nn.initializers.normal(0.5**0.5), (2, *shape))
        self.skip = self.param("skip", nn.initializers.normal(1.0), (c.width,))
        self.out_proj = nn.Dense(2 * c.width, kernel_init=uniform_fan_in(c.width))

    def _system(self):
        """dt, A, B, C, D of the kernel; exp keeps Re A below 0."""
        A = jax.lax.complex(-jnp.exp(self.log_decay), self.frequency)
        return jnp.exp(self.log_dt), A, jnp.ones(A.shape), jax.lax.complex(*self.c), self.skip


def constant(values: np.ndarray) -> Callable:
    """An initialiser that repeats `values` over axes that they lack, or of size 1."""

    def init(key, shape, dtype=jnp.float32):
        del key
        return jnp.broadcast_to(jnp.asarray(values, dtype), shape)

    return init


def initial_carry(config: Any) -> ssm.ComplexPair:
    """Zeros [pairs, width]."""
    zeros = jnp.zeros((config.pairs, config.width))
    return ssm.ComplexPair(zeros, zeros)


def mixer(config: Config) -> stack.Mixer:
    """The S4D layer."""
    return stack.Mixer(S4Mixer(config), functools.partial(initial_carry, config), ssm.s4d_state_at)
