"""Optimisers: LaProp, clipping and warm-up on top of optax."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.types import Array, PyTree, bounded, number, switch

FLAT_AT_MOST = 2**20  # numbers that one vector holds for the optimiser


class LaPropState(NamedTuple):
    """State of `laprop`."""

    count: Array  # type: ignore[assignment]  # [] int32
    mu: PyTree  # momentum of the normalised gradients; the learning rate is inside
    nu: PyTree  # second moment of the raw gradients
    mu_correction: Array  # [] learning-rate-weighted bias correction of mu


def laprop(
    learning_rate: float | Array | Callable, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-20
) -> optax.GradientTransformation:
    """LaProp (arXiv 2002.04839): normalise by the second moment first, then take momentum.

    With k counted from 1 and ηₖ the learning rate:
      ν ← β₂ν + (1-β₂)g²;  n = g / (√(ν/(1-β₂ᵏ)) + ε);  μ ← β₁μ + (1-β₁)ηₖn;
      c ← β₁c + (1-β₁)ηₖ;  Δp = -ηₖ μ/c.
    The learning rate inside μ matters while it changes (warm-up). ε stands outside the root.
    Moments are float32 whatever the parameters are: 1e-20 would vanish in float16.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return LaPropState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros,
            nu=jax.tree.map(jnp.zeros_like, zeros),  # its own buffers: shared ones break donation
            mu_correction=jnp.zeros([], jnp.float32),
        )

    def update(grads, state, params=None):
        del params
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = state.count + 1
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        nu_correction = _share_seen(b2, count)

        def momentum(m, v, g):
            return b1 * m + (1 - b1) * rate * g / (jnp.sqrt(v / nu_correction) + eps)

        mu = jax.tree.map(momentum, state.mu, nu, grads)
        mu_correction = b1 * state.mu_correction + (1 - b1) * rate
        # A learning rate of exactly 0 makes the correction 0; the step is 0 then, not NaN.
        scale = jnp.where(mu_correction > 0, rate / jnp.maximum(mu_correction, 1e-38), 0.0)
        updates = jax.tree.map(lambda m, g: (-scale * m).astype(g.dtype), mu, grads)
        return updates, LaPropState(count, mu, nu, mu_correction)

    return optax.GradientTransformation(init, update)


def _share_seen(decay: float, count: Array) -> Array:
    """1 - βᵏ [] of k = `count` steps.

    Not as it is written: in float32 β itself is rounded, which for β = 0.999 costs 2e-5 of the
    first steps, and 1.5e-3 for 0.99999.
    """
    return -jnp.expm1(count.astype(jnp.float32) * (math.log(decay) if decay else -math.inf))


@dataclasses.dataclass(frozen=True)
class Config:
    """Clip, then LaProp or Adam with linear warm-up to a constant rate."""

    name: Literal["laprop", "adam"] = "laprop"
    learning_rate: float = number(4e-5, low=0)
    clip_norm: float = number(1000.0, above=0)
    warmup: int = bounded(1000, low=0)  # update k uses rate · min(1, k / warmup), k from 1
    b1: float = bounded(0.9, low=0, below=1)
    b2: float = bounded(0.999, low=0, below=1)
    eps: float = bounded(1e-20, above=0)
    weight_decay: float = switch(
        0.0,
        published=0.0,
        better=0.0,
        number=True,
        low=0,
        high=1,
        why="share of every parameter that a step takes away, whatever the learning rate; a later "
        "version of the code has 1e-4: against slow growth of weights in long runs",
    )
    # each tensor's gradient to so many times the norm of the tensor itself; 0: not
    clip_ratio: float = bounded(0.0, low=0)

    def make(self, steps_of_update: int = 1) -> optax.GradientTransformation:
        """Build the optax transformation for updates of so many optimiser steps.

        All steps of an update have the same learning rate: the warm-up counts updates.
        """

        def warming(count: Array) -> Array:
            update = count // steps_of_update + 1
            return self.learning_rate * jnp.minimum(1.0, update / self.warmup)

        rate = warming if self.warmup else self.learning_rate
        rule = laprop if self.name == "laprop" else optax.adam
        chain = optax.chain(
            clip_by_global_norm(self.clip_norm),
            rule(rate, b1=self.b1, b2=self.b2, eps=self.eps),
            decay_weights(self.weight_decay),
        )
        chain = flat_if_small(chain)
        if self.clip_ratio:  # outside of the one vector, where tensors are still apart
            chain = optax.chain(clip_by_ratio(self.clip_ratio), chain)
        return in_float32(chain)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with gradients, parameters and state of at least float32; steps as gradients are.

    In float16 an eps of 1e-8 is 0, and a square of 300 is infinite.
    """

    def init(params):
        return inner.init(_widened(params))

    def update(grads, state, params=None):
        steps, state = inner.update(_widened(grads), state, _widened(params))
        return jax.tree.map(lambda step, g: step.astype(g.dtype), steps, grads), state

    return optax.GradientTransformation(init, update)


def _widened(tree: PyTree) -> PyTree:
    """Numbers of 16 bits as float32."""
    is_short = lambda x: jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4  # noqa: E731
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_short(x) else x, tree)


def decay_weights(share: float | Array) -> optax.GradientTransformation:
    """Take `share` of every parameter away in each step: p ← p + Δp - share·p.

    Unlike AdamW's (arXiv 1711.05101) it is not multiplied by the learning rate: LaProp's own form.
    """
    if isinstance(share, float) and not share:
        return optax.identity()

    def update(updates, state, params=None):
        return jax.tree.map(lambda u, p: u - share * p, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def apply_gradients(
    optimiser: optax.GradientTransformation, grads: PyTree, opt: PyTree, params: PyTree
) -> tuple[PyTree, PyTree, Array]:
    """One optimiser step. Returns (params, optimiser state, norm [] of the raw gradients)."""
    updates, opt = optimiser.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, global_norm(grads)


def flat_if_small(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.flatten` for at most `FLAT_AT_MOST` numbers in all.

    One vector instead of dozens of small leaves makes a small program; of millions of numbers the
    copies would cost more than the update itself.
    """
    flat = optax.flatten(inner)

    def chosen(tree):
        size = sum(leaf.size for leaf in jax.tree.leaves(tree))
        return flat if size <= FLAT_AT_MOST else inner

    def update(updates, state, params=None):
        return chosen(updates).update(updates, state, params)

    return optax.GradientTransformation(lambda params: chosen(params).init(params), update)


def gathered(scalars: list[Array]) -> Array:
    """Scalars as one vector [n], sorted: what reduces it is computed once.

    XLA would turn the reduction of a plain stack into a chain of n scalar operations, and copy that
    chain into each of the n fusions that use the result, which compile for long. A sort ends
    fusion.
    """
    return jnp.sort(jnp.stack(scalars))


def global_norm(tree: PyTree) -> Array:
    """Euclidean norm [] of all leaves together."""
    tree = _widened(tree)
    return jnp.sqrt(gathered([jnp.square(x).sum() for x in jax.tree.leaves(tree)]).sum())


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients down to a global norm of `max_norm` where it is exceeded."""

    def update(updates, state, params=None):
        del params
        scale = max_norm / jnp.maximum(global_norm(updates), max_norm)
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def clip_by_ratio(most: float, least_norm: float = 1e-3) -> optax.GradientTransformation:
    """Adaptive gradient clipping tensor by tensor: ‖g‖ ≤ most · max(least_norm, ‖p‖).

    As DreamerV3's code has it; arXiv 2102.06171 takes norms of rows instead.
    """

    def update(updates, state, params=None):
        def one(g, p):
            bound = most * jnp.maximum(least_norm, jnp.linalg.norm(p.ravel()))
            return g / jnp.maximum(1.0, jnp.linalg.norm(g.ravel()) / bound)

        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def moving_average(target: PyTree, source: PyTree, rate: float) -> PyTree:
    """(1 - rate) · target + rate · source, leaf by leaf."""
    return jax.tree.map(lambda t, s: (1.0 - rate) * t + rate * s, target, source)
