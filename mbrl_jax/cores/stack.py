"""The residual stack that every core shares: stem, pre-norm mixer blocks, final norm.

h₀ = SiLU(RMSNorm(W x + b));  rᵢ₊₁ = rᵢ + mixerᵢ(RMSNorm(rᵢ));  output = RMSNorm(r_layers)
(Drama, arXiv 2410.08893, section 2.1; specification section 3.1). A core is a choice of mixer.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax.networks.heads import RMS_EPS
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, Key, PyTree, SequenceCore

BLOCK_EPS = 1e-5


class HeadSizes:
    """What configs of Mamba-2 and Mamba-3 derive from their sizes, and check."""

    width: int
    expand: int
    head_size: int

    @property
    def inner(self) -> int:
        """Channels of the scan."""
        return self.expand * self.width

    @property
    def heads(self) -> int:
        """H."""
        return self.inner // self.head_size

    def validate(self) -> None:
        """Raise ValueError where sizes do not fit, or a range is none."""
        for name, value in vars(self).items():
            if name.endswith("_range") and value[0] > value[1]:
                low, high = value
                raise ValueError(f"{name} must be two numbers in order, not {low}, {high}")
        if self.inner % self.head_size:
            raise ValueError(
                f"the inner width {self.inner} (expand · width) is no multiple of head_size "
                f"{self.head_size}"
            )


class Mixer(NamedTuple):
    """One kind of layer: a flax module with `step` and `unroll`, and its parameter-free parts.

    `module.step(carry, u [D]) -> (carry, y [D])` and
    `module.unroll(carry | None, us [T, D], is_first [T]) -> (carry, ys [T, D], entries)`, where
    None stands for the initial carry and lets kernels skip work.
    """

    module: nn.Module
    initial_carry: Callable  # () -> carry
    carry_at: Callable  # (entries, t) -> carry after t + 1 steps


class Stack(nn.Module):
    """Stem, residual blocks around the mixers, final norm; single stream."""

    width: int
    in_size: int
    mixers: tuple[nn.Module, ...]

    def setup(self):
        self.stem = nn.Dense(self.width, kernel_init=uniform_fan_in(self.in_size))
        self.stem_norm = nn.RMSNorm(epsilon=RMS_EPS)
        self.norms = [nn.RMSNorm(epsilon=BLOCK_EPS) for _ in self.mixers]
        self.final_norm = nn.RMSNorm(epsilon=BLOCK_EPS)

    def embed(self, x):
        return nn.silu(self.stem_norm(self.stem(x)))

    def step(self, carry, x):
        residual: Array = self.embed(x)
        carries: list[PyTree] = []
        for layer_carry, norm, mixer in zip(carry, self.norms, self.mixers, strict=True):
            layer_carry, y = mixer.step(layer_carry, norm(residual))
            residual, carries = residual + y, carries + [layer_carry]
        return tuple(carries), self.final_norm(residual)

    def unroll(self, carry, xs, is_first):
        carry = (None,) * len(self.mixers) if carry is None else carry
        residual: Array = self.embed(xs)
        carries: list[PyTree] = []
        entries: list[PyTree] = []
        for layer_carry, norm, mixer in zip(carry, self.norms, self.mixers, strict=True):
            layer_carry, y, layer_entries = mixer.unroll(layer_carry, norm(residual), is_first)
            residual = residual + y
            carries, entries = carries + [layer_carry], entries + [layer_entries]
        return tuple(carries), self.final_norm(residual), tuple(entries)


def _init(stack: nn.Module, initial_carry: Callable, key: Key) -> PyTree:
    x = jnp.zeros((stack.in_size,))
    return stack.init(key, initial_carry(), x, method="step")["params"]


def _step(
    stack: nn.Module,
    initial_carry: Callable,
    params: PyTree,
    carry: PyTree,
    x: Array,
    is_first: Array,
) -> tuple[PyTree, Array]:
    """Consume x [D]; `is_first` [] empties the carry before, None means never."""
    if is_first is not None:
        carry = jax.tree.map(lambda c, i: jnp.where(is_first, i, c), carry, initial_carry())
    return stack.apply({"params": params}, carry, x, method="step")


def _unroll(
    stack: nn.Module, params: PyTree, carry: PyTree | None, xs: Array, is_first: Array
) -> tuple[PyTree, Array, PyTree]:
    """Consume xs [T, D] from `carry` (None: the initial one); resets act at their own row."""
    return stack.apply({"params": params}, carry, xs, is_first, method="unroll")


def _initial_carry(mixers: tuple[Mixer, ...]) -> PyTree:
    return tuple(mixer.initial_carry() for mixer in mixers)


def _carry_at(mixers: tuple[Mixer, ...], entries: PyTree, t: Array) -> PyTree:
    return tuple(m.carry_at(e, t) for m, e in zip(mixers, entries, strict=True))


def make_core(mixer: Mixer, width: int, layers: int, in_size: int) -> SequenceCore:
    """A `SequenceCore` of `layers` residual blocks around copies of one mixer."""
    return make_core_of((mixer,) * layers, width, in_size)


def make_core_of(mixers: tuple[Mixer, ...], width: int, in_size: int) -> SequenceCore:
    """A `SequenceCore` of one residual block for each of `mixers`, first to last."""
    stack = Stack(width, in_size, tuple(mixer.module.copy() for mixer in mixers))
    return core_of(stack, mixers, width)


def core_of(stack: nn.Module, mixers: tuple[Mixer, ...], width: int) -> SequenceCore:
    """A `SequenceCore` of a module with `in_size` and with the `step` and `unroll` of `Stack`.

    Its carry and its entries are tuples with one element for each of `mixers`, of which only the
    parts without parameters are used here.
    """
    initial_carry = functools.partial(_initial_carry, mixers)
    return SequenceCore(
        init=functools.partial(_init, stack, initial_carry),
        initial_carry=initial_carry,
        step=functools.partial(_step, stack, initial_carry),
        unroll=functools.partial(_unroll, stack),
        carry_at=functools.partial(_carry_at, mixers),
        width=width,
    )


def dt_bias_init(low: float = 1e-3, high: float = 1e-1) -> Callable:
    """Initialiser: inverse softplus of a step size drawn log-uniformly from [low, high] (Mamba)."""

    def init(key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        dt = jnp.exp(jax.random.uniform(key, shape, dtype, jnp.log(low), jnp.log(high)))
        dt = jnp.maximum(dt, 1e-4)
        return dt + jnp.log(-jnp.expm1(-dt))

    return init
