"""How an actor chooses, by the kind of action: from the numbers of its net to a distribution.

What is drawn is a *choice*, of which the log-probability is known; the environment and the model
get the action that is made of it. Discrete choices are actions; where some are not allowed, their
distribution is one over the others (`legal`). A bounded normal's choice may lie outside of [-1, 1]
and is clipped; a tanh-normal's is the number before tanh. Parts of a dictionary of actions are
drawn independently of each other, from numbers of one net.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import distributions, legal
from mbrl_jax.behaviours import tanh_normal
from mbrl_jax.types import (
    ActionSpec,
    Array,
    BoundedSpec,
    DictActionSpec,
    DiscreteSpec,
    Key,
    MultiDiscreteSpec,
    PyTree,
)

Real = Literal["bounded_normal", "tanh_normal"]  # of real-valued actions
MIN_STD, MAX_STD = 0.1, 1.0  # of a bounded normal, as in DreamerV3
LOG_STD_RANGE = -5.0, 2.0  # of a tanh-normal


class Choices(NamedTuple):
    """Functions of one kind of action; distributions and choices may have leading axes [...]."""

    size: int  # numbers that the actor's net gives
    # (raw [..., size]) -> distribution; of discrete choices (raw, mask [..., options] or None)
    read: Callable[..., PyTree]
    sample: Callable[[Key, PyTree], PyTree]  # (key, distribution) -> choice; single stream
    mode: Callable[[PyTree], PyTree]  # (distribution) -> choice
    log_prob: Callable[[PyTree, PyTree], Array]  # (distribution, choice) -> [...]
    # (distribution, choice) -> [...]: its gradient is that of the entropy
    entropy: Callable[[PyTree, PyTree], Array]
    action: Callable[[PyTree], PyTree] = lambda choice: choice  # what the environment gets
    options: int = 0  # of its discrete choices: the size of a mask


def choices_of(spec: ActionSpec, real: Real = "bounded_normal") -> Choices:
    """The functions for an environment's actions; `real` says which for bounded ones."""
    if isinstance(spec, DiscreteSpec):
        return _discrete(spec.num_actions)
    if isinstance(spec, MultiDiscreteSpec):
        return _multi_discrete(spec.num_actions)
    if isinstance(spec, DictActionSpec):
        return _product({name: choices_of(leaf, real) for name, leaf in spec.leaves})
    assert isinstance(spec, BoundedSpec)
    return (_bounded_normal if real == "bounded_normal" else _tanh_normal)(spec.size)


# -------------------------------------------------------------------------------------- discrete


def log_prob_of(log_probs: Array, actions: Array) -> Array:
    """Log-probability [...] of actions [...] among [..., A]."""
    return jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]


def _discrete(num_actions: int) -> Choices:
    """The distribution is its log-probabilities [..., A]."""
    return Choices(
        num_actions,
        read=lambda raw, mask=None: jax.nn.log_softmax(legal.restrict(raw, mask)),
        sample=jax.random.categorical,
        mode=lambda log_probs: jnp.argmax(log_probs, axis=-1).astype(jnp.int32),
        log_prob=log_prob_of,
        entropy=lambda log_probs, _: distributions.categorical_entropy(log_probs),
        options=num_actions,
    )


def _multi_discrete(num_actions: tuple[int, ...]) -> Choices:
    """A tuple of log-probabilities [..., Aᵢ], independent of each other; choices [..., k]."""
    bounds = [sum(num_actions[:i]) for i in range(1, len(num_actions))]

    def read(raw, mask=None):
        pieces = jnp.split(legal.restrict(raw, mask), bounds, axis=-1)
        return tuple(map(jax.nn.log_softmax, pieces))

    def sample(key, parts):
        keys = jax.random.split(key, len(parts))
        return jnp.stack([jax.random.categorical(*one) for one in zip(keys, parts, strict=True)])

    def log_prob(parts, choice):
        each = [log_prob_of(log_probs, choice[..., i]) for i, log_probs in enumerate(parts)]
        return jnp.stack(each).sum(axis=0)

    def entropy(parts, _):
        return jnp.stack(list(map(distributions.categorical_entropy, parts))).sum(axis=0)

    return Choices(
        sum(num_actions),
        read,
        sample,
        mode=lambda parts: jnp.stack([jnp.argmax(p, -1) for p in parts], -1).astype(jnp.int32),
        log_prob=log_prob,
        entropy=entropy,
        options=sum(num_actions),
    )


# ---------------------------------------------------------------------------------- real-valued


class Normal(NamedTuple):
    """Independent normals."""

    mean: Array  # [..., A]
    log_std: Array  # [..., A]


def _sample(key: Key, normal: Normal) -> Array:
    noise = jax.random.normal(key, normal.mean.shape, normal.mean.dtype)
    return normal.mean + jnp.exp(normal.log_std) * noise


def _log_prob(normal: Normal, choice: Array) -> Array:
    """Log-density [...] of choices [..., A]."""
    noise = (choice - normal.mean) * jnp.exp(-normal.log_std)
    return (-0.5 * (noise * noise + math.log(2.0 * math.pi)) - normal.log_std).sum(axis=-1)


def _bounded_normal(size: int) -> Choices:
    """DreamerV3's: mean tanh(m), deviation 0.1 to 1; the action is the choice, clipped.

    Gradients of the action pass straight through, beyond the bounds too: what lies there could not
    come back otherwise.
    """

    def read(raw):
        mean, spread = jnp.split(raw, 2, axis=-1)
        std = MIN_STD + (MAX_STD - MIN_STD) * jax.nn.sigmoid(spread + 2.0)
        return Normal(jnp.tanh(mean), jnp.log(std))

    def entropy(normal, _):
        return (0.5 * math.log(2.0 * math.pi * math.e) + normal.log_std).sum(axis=-1)

    clip = lambda x: jnp.clip(x, -1.0, 1.0) + (x - jax.lax.stop_gradient(x))  # noqa: E731
    mode = lambda normal: normal.mean  # noqa: E731
    return Choices(2 * size, read, _sample, mode, _log_prob, entropy, clip)


def _tanh_normal(size: int) -> Choices:
    """The action is tanh of the choice; densities are of the action.

    Its entropy has no closed form: it is the negative log-density of the choice, drawn anew from
    the same noise, so that the gradient is an unbiased estimate of the entropy's.
    """

    def read(raw):
        return Normal(*tanh_normal.read(raw, *LOG_STD_RANGE))

    def log_prob(normal, choice):
        return _log_prob(normal, choice) - tanh_normal.log_det(choice).sum(axis=-1)

    def entropy(normal, choice):
        noise = jax.lax.stop_gradient((choice - normal.mean) * jnp.exp(-normal.log_std))
        return -log_prob(normal, normal.mean + jnp.exp(normal.log_std) * noise)

    mode = lambda normal: normal.mean  # noqa: E731
    return Choices(2 * size, read, _sample, mode, log_prob, entropy, jnp.tanh)


# ---------------------------------------------------------------------------------- dictionaries


def _product(parts: dict[str, Choices]) -> Choices:
    """Distributions, choices and actions by name; their numbers stand one behind the other.

    The parts are independent: log-probabilities and entropies are sums.
    """

    def cut(x, sizes):
        pieces = jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=-1)
        return dict(zip(parts, pieces, strict=True))

    def read(raw, mask=None):
        pieces = cut(raw, [part.size for part in parts.values()])
        if mask is None:
            return {name: part.read(pieces[name]) for name, part in parts.items()}
        masks = cut(mask, [part.options for part in parts.values()])
        return {
            name: part.read(pieces[name], *([masks[name]] if part.options else []))
            for name, part in parts.items()
        }

    def sample(key, distribution):
        keys = jax.random.split(key, len(parts))
        return {
            name: part.sample(k, distribution[name])
            for k, (name, part) in zip(keys, parts.items(), strict=True)
        }

    def log_prob(distribution, choice):
        each = [part.log_prob(distribution[n], choice[n]) for n, part in parts.items()]
        return jnp.stack(each).sum(axis=0)

    def entropy(distribution, choice):
        each = [part.entropy(distribution[n], choice[n]) for n, part in parts.items()]
        return jnp.stack(each).sum(axis=0)

    return Choices(
        sum(part.size for part in parts.values()),
        read,
        sample,
        mode=lambda distribution: {n: part.mode(distribution[n]) for n, part in parts.items()},
        log_prob=log_prob,
        entropy=entropy,
        action=lambda choice: {n: part.action(choice[n]) for n, part in parts.items()},
        options=sum(part.options for part in parts.values()),
    )
