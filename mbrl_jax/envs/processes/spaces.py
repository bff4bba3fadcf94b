"""Gymnasium's spaces as our specs, with the functions that carry batches over."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.types import (
    ActionSpec,
    ArraySpec,
    BoundedSpec,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    MultiDiscreteSpec,
    ObservationSpec,
    OneActionSpec,
)

_ENDLESS = 1e9  # bounds from here on say that there is none


class _Leaf(NamedTuple):
    """One array of an observation."""

    path: tuple[str | int, ...]
    spec: ArraySpec
    convert: Callable[[np.ndarray], np.ndarray]  # […, leaf] -> [n, *spec.shape]


def observation_adaptor(
    space: Any, leaves: Sequence[str] = (), *, who: str, flat: bool = False
) -> tuple[ObservationSpec, Callable]:
    """(our spec, function from what Gymnasium shows of n lanes to ours).

    Numbers of 64 bits become those of 32, a choice of n a one-hot vector. Dictionaries and tuples
    become one dictionary; the names of what is nested are joined by dots.

    Args:
      space: of one lane.
      leaves: to keep: one alone, several as one float32 vector; () keeps all, as a dictionary.
      who: the environment's name, for messages.
      flat: all leaves are one vector too.

    Raises ValueError for spaces that hold no arrays, and leaves that are not there.
    """
    found = dict(_walk(space, ()))
    if unknown := [name for name in leaves if name not in found]:
        there = "one only: leave env.leaves empty" if "" in found else ", ".join(found)
        raise ValueError(f"{who} has no observation {unknown[0]!r}; it has {there}")
    chosen = {name: _leaf(who, name, *found[name]) for name in leaves or found}
    if len(chosen) == 1 and (leaves or flat or "" in chosen):
        (leaf,) = chosen.values()
        return leaf.spec, lambda raw: leaf.convert(_look_up(raw, leaf.path))
    if leaves or flat:
        size = sum(math.prod(leaf.spec.shape) for leaf in chosen.values())

        def concatenated(raw):
            arrays = [leaf.convert(_look_up(raw, leaf.path)) for leaf in chosen.values()]
            return np.concatenate([np.float32(x.reshape(len(x), -1)) for x in arrays], axis=1)

        return ArraySpec((size,), "float32"), concatenated
    whole = DictSpec(tuple((name, chosen[name].spec) for name in sorted(chosen)))
    return whole, lambda raw: {n: x.convert(_look_up(raw, x.path)) for n, x in chosen.items()}


def _spaces() -> Any:
    from gymnasium import spaces

    return spaces


def _walk(space: Any, path: tuple[str | int, ...]):
    """(name, (path, space)) of every leaf."""
    spaces = _spaces()
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        for key, inner in items:
            yield from _walk(inner, (*path, key))
    else:
        yield _name(path), (path, space)


def _name(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _look_up(raw: Any, path: tuple[str | int, ...]) -> np.ndarray:
    return functools.reduce(operator.getitem, path, raw)


def _leaf(who: str, name: str, path: tuple[str | int, ...], space: Any) -> _Leaf:
    spaces = _spaces()
    if isinstance(space, spaces.Box):
        kind = {"f": "float32", "i": "int32", "u": "int32"}
        dtype = kind[space.dtype.kind] if space.dtype.itemsize > 2 else space.dtype.name
        spec = ArraySpec(space.shape or (1,), dtype)
        return _Leaf(path, spec, lambda x: x.reshape((-1, *spec.shape)).astype(dtype, copy=False))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts = np.reshape(space.n if isinstance(space, spaces.Discrete) else space.nvec, -1)
        starts = np.broadcast_to(np.reshape(space.start, -1), counts.shape)
        eyes = [np.eye(count, dtype=np.float32) for count in counts]

        def one_hot(x):
            choices = np.reshape(x, (-1, len(counts))) - starts
            return np.concatenate([e[choices[:, i]] for i, e in enumerate(eyes)], axis=1)

        return _Leaf(path, ArraySpec((int(counts.sum()),), "float32"), one_hot)
    if isinstance(space, spaces.MultiBinary):
        spec = ArraySpec(space.shape, "float32")
        return _Leaf(path, spec, lambda x: np.reshape(np.float32(x), (-1, *spec.shape)))
    raise ValueError(
        f"{who} shows {name + ', ' if name else ''}a {type(space).__name__}, which is no array of "
        "fixed shape: choose others with env.leaves, or wrap it with a gymnasium.ObservationWrapper"
    )


def action_adaptor(space: Any, who: str) -> tuple[ActionSpec, Callable]:
    """(our action spec, function from our actions [n, …] to Gymnasium's).

    Dictionaries and tuples become one dictionary, named as those of observations.

    Raises ValueError for actions that are neither choices nor bounded arrays, nor made of those.
    """
    spaces = _spaces()
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return _one_action(space, who)
    parts = {
        name: _one_action(leaf, f"{who} (part {name!r})") for name, (_, leaf) in _walk(space, ())
    }
    if not parts:
        raise ValueError(f"{who} takes an empty {type(space).__name__}: there is nothing to choose")

    def build(inner, path, actions):
        if isinstance(inner, spaces.Dict):
            return {key: build(x, (*path, key), actions) for key, x in inner.items()}
        if isinstance(inner, spaces.Tuple):
            return tuple(build(x, (*path, i), actions) for i, x in enumerate(inner))
        name = _name(path)
        return parts[name][1](actions[name])

    spec = DictActionSpec(tuple((name, leaf) for name, (leaf, _) in parts.items()))
    return spec, lambda actions: build(space, (), actions)


def _one_action(space: Any, who: str) -> tuple[OneActionSpec, Callable]:
    """`action_adaptor` of what is no dictionary."""
    spaces = _spaces()
    if isinstance(space, spaces.Discrete):
        return DiscreteSpec(int(space.n)), lambda x: np.asarray(x, np.int64) + space.start
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and len(space.shape) == 1:
        binary = isinstance(space, spaces.MultiBinary)
        counts = np.full(space.shape, 2) if binary else space.nvec
        starts = 0 if binary else space.start
        spec = MultiDiscreteSpec(tuple(map(int, counts)))
        return spec, lambda x: (np.asarray(x) + starts).astype(space.dtype)
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        raise ValueError(
            f"{who} takes a {type(space).__name__} as action ({space}): choices (Discrete, "
            "MultiDiscrete), a Box of real numbers, or a Dict or Tuple of these can be chosen; "
            "wrap it with a gymnasium.ActionWrapper"
        )
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    if max(np.abs(low).max(), np.abs(high).max()) >= _ENDLESS:
        raise ValueError(
            f"{who} takes actions without bounds, and ours lie in -1 … 1: choose another "
            "task, or give it bounds with a gymnasium.ActionWrapper"
        )
    middle, half = 0.5 * (low + high), 0.5 * (high - low)

    def rescale(actions):
        clipped = np.minimum(np.maximum(actions, -1.0), 1.0).reshape((-1, *space.shape))
        return (middle + half * clipped).astype(space.dtype, copy=False)

    return BoundedSpec(math.prod(space.shape)), rescale
