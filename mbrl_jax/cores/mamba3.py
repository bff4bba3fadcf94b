"""Mamba-3 core (arXiv 2603.15569), single input and single output.

Its state turns: parts of B and C are rotated by angles that depend on the input and add up, so that
it counts where Mamba-2 can only fade (parity, sums modulo a number). Inputs enter by a trapezoid
instead of a convolution (`ssm.trapezoid`). A reset empties four things: the angles, the state, and
B and x of the last row.

Facts beyond the paper are those of the authors' code (github.com/state-spaces/mamba,
modules/mamba3.py).
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.cores import stack
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.ssm import chunking, trapezoid
from mbrl_jax.ssm.trapezoid import TrapezoidEntries, TrapezoidState
from mbrl_jax.types import Array, SequenceCore, bounded, number

TURN = 2.0 * jnp.pi
SLOWEST = 1e-4  # of -A


@dataclasses.dataclass(frozen=True)
class Config(stack.HeadSizes):
    """Published numbers by default, but for sizes: those are of Drama's core."""

    width: int = bounded(512, low=1)
    layers: int = bounded(2, low=1)
    state_size: int = bounded(16, low=4)  # N; published: 128
    expand: int = bounded(2, low=1)  # inner width = expand · width
    head_size: int = bounded(64, low=1)  # P
    chunk_size: int = bounded(32, low=1)  # published: 64
    # -A of a raw number x: 1 + x where x ≥ 0 and 1 / (1 - x) below (since June 2026), or softplus
    # (March 2026), with which rates ran off to 0 at high learning rates
    rate: Literal["heavy_tail", "softplus"] = "heavy_tail"
    # share of the states that turn, in pairs
    turning: float = bounded(0.5, above=0, high=1)
    step_range: tuple[float, float] = bounded((1e-3, 1e-1), above=0)  # of dt at first
    eps: float = number(1e-5, "of the norms of B and C", above=0)
    # of `ssm.ssd`: "auto" chooses by backend
    method: Literal["auto", "chunked", "chunked_sequential", "recurrent"] = "auto"

    @property
    def pairs(self) -> int:
        """R, pairs of states that turn."""
        return max(1, int(self.state_size * self.turning) // 2)

    def make(self, in_size: int) -> SequenceCore:
        """Build the core for inputs [in_size]."""
        self.validate()
        return stack.make_core(mixer(self), self.width, self.layers, in_size)


class Carry(NamedTuple):
    """What one layer carries."""

    angle: Array  # [H, R] in [0, 2π)
    scan: TrapezoidState


class Entries(NamedTuple):
    """What rebuilds the carry of any row of one layer."""

    angle: Array  # [T, H, R]
    scan: TrapezoidEntries


class Rows(NamedTuple):
    """What the projection says of rows [...]."""

    z: Array  # [..., inner] gate
    v: Array  # [..., H, P]
    k: Array  # [..., H, N] not turned yet
    q: Array  # [..., H, N] not turned yet
    dt: Array  # [..., H]
    rate: Array  # [..., H]
    mix: Array  # [..., H]
    turn: Array  # [..., H, R] by which angles grow


class Mamba3Mixer(nn.Module):
    """in_proj → [z | x | B | C | dt | A | λ | angle]; rotation; trapezoid; gate; out_proj."""

    config: Config

    def setup(self):
        c = self.config
        outputs = 2 * c.inner + 2 * c.state_size + 3 * c.heads + c.pairs
        self.in_proj = nn.Dense(outputs, False, kernel_init=uniform_fan_in(c.width))
        self.dt_bias = self.param("dt_bias", stack.dt_bias_init(*c.step_range), (c.heads,))
        norm = functools.partial(nn.RMSNorm, epsilon=c.eps)
        self.norm_in, self.norm_out = norm(), norm()
        shape = (c.heads, c.state_size)
        self.bias_in = self.param("bias_in", nn.initializers.ones, shape)
        self.bias_out = self.param("bias_out", nn.initializers.ones, shape)
        self.skip = self.param("skip", nn.initializers.ones, (c.heads,))
        # Dividing by √layers keeps the residual stream's variance (GPT-2's rule, as in Mamba-2).
        self.out_proj = nn.Dense(c.width, False, kernel_init=uniform_fan_in(c.inner * c.layers))

    def _split(self, u):
        c = self.config
        sizes = (c.inner, c.inner, c.state_size, c.state_size, c.heads, c.heads, c.heads)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        z, x, k, q, dt, rate, mix, angle = jnp.split(self.in_proj(u), ends, axis=-1)
        dt = jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias)
        turn = jnp.pi * jnp.tanh(angle.astype(jnp.float32))[..., None, :] * dt[..., None]
        return Rows(
            z,
            v=x.reshape(x.shape[:-1] + (c.heads, c.head_size)),
            k=self.norm_in(k)[..., None, :] + self.bias_in,
            q=self.norm_out(q)[..., None, :] + self.bias_out,
            dt=dt,
            rate=jnp.maximum(_RATES[c.rate](rate.astype(jnp.float32)), SLOWEST),
            mix=jax.nn.sigmoid(mix.astype(jnp.float32)),
            turn=turn,
        )

    def _project(self, y, z):
        return self.out_proj(y.reshape(z.shape) * nn.silu(z))

    def step(self, carry, u):
        rows = self._split(u)
        angle = jnp.mod(carry.angle + rows.turn, TURN)
        arguments = rows.v, rows.dt, rows.rate, rows.mix, turned(rows.k, angle)
        scan, y = trapezoid.trapezoid_step(carry.scan, *arguments, turned(rows.q, angle), self.skip)
        return Carry(angle, scan), self._project(y, rows.z)

    def unroll(self, carry, us, is_first):
        angle, state = (None, None) if carry is None else carry
        rows = self._split(us)
        angles = angles_of(rows.turn, is_first, angle)
        y, last, entries = trapezoid.trapezoid_stream(
            rows.v,
            rows.dt,
            rows.rate,
            rows.mix,
            turned(rows.k, angles),
            turned(rows.q, angles),
            self.skip,
            reset=is_first,
            state=state,
            chunk_size=self.config.chunk_size,
            method=self.config.method,
        )
        return Carry(angles[-1], last), self._project(y, rows.z), Entries(angles, entries)


def turned(x: Array, angle: Array) -> Array:
    """The first 2 R of x [..., N], in pairs that stand R apart, turned by angles [..., R]."""
    pairs = angle.shape[-1]
    a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)


def angles_of(turn: Array, is_first: Array | None, before: Array | None) -> Array:
    """Angles [T, H, R]: sums of turns since the last reset, modulo 2π.

    Args:
      turn: [T, H, R].
      is_first: [T] bool; None: never.
      before: [H, R] angles of the row before, or None for zeros.
    """
    if is_first is None:
        is_first = jnp.zeros(turn.shape[:1], bool)
    if before is not None:
        turn = turn.at[0].add(jnp.where(is_first[0], 0.0, before))

    def after(first, second):
        (angle_1, reset_1), (angle_2, reset_2) = first, second
        # Chosen, not multiplied by 0: what was before a reset may be NaN.
        joined = jnp.where(reset_2[:, None, None], angle_2, jnp.mod(angle_1 + angle_2, TURN))
        return joined, reset_1 | reset_2

    sums, _ = chunking.associative_scan(after, (turn, is_first))
    return jnp.mod(sums, TURN)


def _heavy_tail(x: Array) -> Array:
    """1 + x where x ≥ 0, 1 / (1 - x) below."""
    return jnp.where(x >= 0, 1.0 + x, 1.0 / (1.0 - jnp.minimum(x, 0.0)))


_RATES = {"heavy_tail": _heavy_tail, "softplus": jax.nn.softplus}


def _initial_carry(config: Config) -> Carry:
    return Carry(
        jnp.zeros((config.heads, config.pairs)),
        trapezoid.initial_state(config.heads, config.head_size, config.state_size),
    )


def _carry_at(entries: Entries, t: Array) -> Carry:
    return Carry(entries.angle[t], trapezoid.trapezoid_state_at(entries.scan, t))


def mixer(config: Config) -> stack.Mixer:
    """The Mamba-3 layer."""
    return stack.Mixer(Mamba3Mixer(config), functools.partial(_initial_carry, config), _carry_at)
