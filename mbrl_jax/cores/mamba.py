"""Mamba-1 core (arXiv 2312.00752); specification section 3.3."""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax import ssm
from mbrl_jax.cores import stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, PyTree, SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """Published sizes by default."""

    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=1)
    state_size: int = bounded(16, low=1)  # N
    expand: int = bounded(2, low=1)  # inner width = expand · width
    conv_width: int = bounded(4, low=1)
    chunk_size: int = bounded(16, low=1)
    # of `ssm.selective_scan`: "auto" chooses by backend
    method: Literal["auto", "associative", "recurrent"] = "auto"

    @property
    def inner(self) -> int:
        """Channels of the scan."""
        return self.expand * self.width

    @property
    def dt_rank(self) -> int:
        """Rank of the step-size projection."""
        return math.ceil(self.width / 16)

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


class Carry(NamedTuple):
    """What one layer carries."""

    history: Array  # [W - 1, inner] last inputs of the convolution, oldest first
    state: Array  # [N, inner]


class Entries(NamedTuple):
    """What rebuilds the carry of any row of one layer."""

    conv: PyTree
    scan: PyTree


class MambaMixer(nn.Module):
    """in_proj → [x | z]; conv and SiLU on x; x_proj → [dt | B | C]; scan; gate; out_proj."""

    config: Config

    def setup(self):
        c = self.config
        taps = uniform_fan_in(c.conv_width)
        self.in_proj = nn.Dense(2 * c.inner, False, kernel_init=uniform_fan_in(c.width))
        self.conv_kernel = self.param("conv_kernel", taps, (c.conv_width, c.inner))
        self.conv_bias = self.param("conv_bias", taps, (c.inner,))
        self.x_proj = nn.Dense(
            c.dt_rank + 2 * c.state_size, False, kernel_init=uniform_fan_in(c.inner)
        )
        self.dt_proj = nn.Dense(
            c.inner, kernel_init=uniform_fan_in(c.dt_rank), bias_init=stack.dt_bias_init()
        )
        self.a_log = self.param("a_log", _a_log_init, (c.inner, c.state_size))
        self.skip = self.param("skip", nn.initializers.ones, (c.inner,))
        self.out_proj = nn.Dense(c.width, False, kernel_init=uniform_fan_in(c.inner * c.layers))

    def _select(self, x):
        """[..., inner] -> dt [..., inner], B [..., N], C [..., N]: what the input selects."""
        c = self.config
        dt, b, c_out = jnp.split(self.x_proj(x), [c.dt_rank, c.dt_rank + c.state_size], axis=-1)
        return jax.nn.softplus(self.dt_proj(dt).astype(jnp.float32)), b, c_out

    def step(self, carry, u):
        x, z = jnp.split(self.in_proj(u), 2, axis=-1)
        history, x = ssm.causal_conv_step(carry.history, x, self.conv_kernel, self.conv_bias)
        x = nn.silu(x)
        dt, b, c = self._select(x)
        a = -jnp.exp(self.a_log)
        state, y = ssm.selective_scan_step(carry.state, x, dt, a, b, c, self.skip)
        return Carry(history, state), self.out_proj(y * nn.silu(z))

    def unroll(self, carry, us, is_first):
        history, state = (None, None) if carry is None else carry
        x, z = jnp.split(self.in_proj(us), 2, axis=-1)
        x, conv = ssm.causal_conv_stream(x, self.conv_kernel, self.conv_bias, history, is_first)
        x = nn.silu(x)
        dt, b, c = self._select(x)
        y, final, scan = ssm.selective_scan_stream(
            x,
            dt,
            -jnp.exp(self.a_log),
            b,
            c,
            self.skip,
            reset=is_first,
            initial_state=state,
            chunk_size=self.config.chunk_size,
            method=self.config.method,
        )
        last = Carry(ssm.conv_history_at(conv, us.shape[0] - 1), final)
        return last, self.out_proj(y * nn.silu(z)), Entries(conv, scan)


def _a_log_init(key, shape, dtype=jnp.float32):
    del key  # S4D-real: A = -(1 … N) for every channel
    return jnp.log(jnp.broadcast_to(jnp.arange(1, shape[1] + 1, dtype=dtype), shape))


def _initial_carry(config: Config) -> Carry:
    return Carry(
        jnp.zeros((config.conv_width - 1, config.inner)),
        jnp.zeros((config.state_size, config.inner)),
    )


def _carry_at(entries: Entries, t: Array) -> Carry:
    return Carry(ssm.conv_history_at(entries.conv, t), ssm.scan_state_at(entries.scan, t))


def mixer(config: Config) -> stack.Mixer:
    """The Mamba-1 layer."""
    return stack.Mixer(MambaMixer(config), functools.partial(_initial_carry, config), _carry_at)
