"""Mamba-2 core (arXiv 2405.21060), Drama's default; specification section 3.2."""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax import ssm
from mbrl_jax.cores import stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, PyTree, SequenceCore, bounded


@dataclasses.dataclass(frozen=True)
class Config(stack.HeadSizes):
    """Published sizes by default."""

    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=1)
    state_size: int = bounded(16, low=1)  # N
    expand: int = bounded(2, low=1)  # inner width = expand · width
    head_size: int = bounded(64, low=1)  # P
    conv_width: int = bounded(4, low=1)
    chunk_size: int = bounded(32, low=1)
    # Where a head begins: A uniform, dt log-uniform; its state fades by exp(-A · dt) a row and
    # takes in dt times the input. To remember for long, take a small A rather than a small dt.
    decay_range: tuple[float, float] = bounded((1.0, 16.0), above=0)  # of A
    # of dt; what is below 1e-4 becomes that
    step_range: tuple[float, float] = bounded((1e-3, 1e-1), above=0)
    # of `ssm.ssd`: "auto" chooses by backend
    method: Literal["auto", "chunked", "chunked_sequential", "recurrent"] = "auto"

    @property
    def conv_channels(self) -> int:
        """x, B and C pass the convolution together (one group)."""
        return self.inner + 2 * self.state_size

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


class Carry(NamedTuple):
    """What one layer carries."""

    history: Array  # [W - 1, inner + 2N] last inputs of the convolution, oldest first
    state: Array  # [N, H, P]


class Entries(NamedTuple):
    """What rebuilds the carry of any row of one layer."""

    conv: PyTree
    ssd: PyTree


class Mamba2Mixer(nn.Module):
    """in_proj → [z | x | B | C | dt]; conv and SiLU on x, B, C; SSD; gate; RMSNorm; out_proj."""

    config: Config

    def setup(self):
        c = self.config
        taps = uniform_fan_in(c.conv_width)
        self.in_proj = nn.Dense(
            c.inner + c.conv_channels + c.heads, False, kernel_init=uniform_fan_in(c.width)
        )
        self.conv_kernel = self.param("conv_kernel", taps, (c.conv_width, c.conv_channels))
        self.conv_bias = self.param("conv_bias", taps, (c.conv_channels,))
        self.dt_bias = self.param("dt_bias", stack.dt_bias_init(*c.step_range), (c.heads,))
        self.a_log = self.param("a_log", _a_log_init(*c.decay_range), (c.heads,))
        self.skip = self.param("skip", nn.initializers.ones, (c.heads,))
        self.norm = nn.RMSNorm(epsilon=stack.BLOCK_EPS)
        # Dividing by √layers keeps the residual stream's variance (GPT-2's rule, as published).
        self.out_proj = nn.Dense(c.width, False, kernel_init=uniform_fan_in(c.inner * c.layers))

    def _split_in(self, u):
        c = self.config
        z, xbc, dt = jnp.split(self.in_proj(u), [c.inner, c.inner + c.conv_channels], axis=-1)
        return z, xbc, jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias)

    def _split_conv(self, xbc):
        """[..., inner + 2N] -> x [..., H, P], B [..., 1, N], C [..., 1, N]."""
        c = self.config
        x, b, c_out = jnp.split(nn.silu(xbc), [c.inner, c.inner + c.state_size], axis=-1)
        heads = x.reshape(x.shape[:-1] + (c.heads, c.head_size))
        return heads, b[..., None, :], c_out[..., None, :]

    def _project(self, y, z):
        y = y.reshape(z.shape) * nn.silu(z)  # the gate comes before the norm
        return self.out_proj(self.norm(y))

    def step(self, carry, u):
        z, xbc, dt = self._split_in(u)
        history, xbc = ssm.causal_conv_step(carry.history, xbc, self.conv_kernel, self.conv_bias)
        x, b, c = self._split_conv(xbc)
        state, y = ssm.ssd_step(carry.state, x, dt, -jnp.exp(self.a_log), b, c, self.skip)
        return Carry(history, state), self._project(y, z)

    def unroll(self, carry, us, is_first):
        history, state = (None, None) if carry is None else carry
        z, xbc, dt = self._split_in(us)
        xbc, conv = ssm.causal_conv_stream(xbc, self.conv_kernel, self.conv_bias, history, is_first)
        x, b, c = self._split_conv(xbc)
        y, final, entries = ssm.ssd_stream(
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
        return last, self._project(y, z), Entries(conv, entries)


def _a_log_init(low, high):
    def init(key, shape, dtype=jnp.float32):
        return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

    return init


def _initial_carry(config: Config) -> Carry:
    return Carry(
        jnp.zeros((config.conv_width - 1, config.conv_channels)),
        jnp.zeros((config.state_size, config.heads, config.head_size)),
    )


def _carry_at(entries: Entries, t: Array) -> Carry:
    return Carry(ssm.conv_history_at(entries.conv, t), ssm.ssd_state_at(entries.ssd, t))


def mixer(config: Config) -> stack.Mixer:
    """The Mamba-2 layer."""
    return stack.Mixer(Mamba2Mixer(config), functools.partial(_initial_carry, config), _carry_at)
