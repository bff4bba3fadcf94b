"""The doctor on environments of the host: whether lanes can be repeated, and keep to themselves.

`R` rows of lanes [2, 2], flattened to `L` = 4 where rows are recorded.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mbrl_jax import legal
from mbrl_jax.envs.doctor.rows import (
    Finding,
    Played,
    Rows,
    as_vectors,
    check_seen_last,
    check_shapes,
    error,
    observation_bytes,
    ok,
    reason,
    warning,
)
from mbrl_jax.envs.spec import action_tree
from mbrl_jax.types import (
    DiscreteSpec,
    EnvSpec,
    HostEnvironment,
    HostEnvironments,
    MultiDiscreteSpec,
    PyTree,
    Timestep,
)

SHAPE = (2, 2)  # lanes [S, N]
REPEATED = 200  # rows that are played again
MAX_BYTES = 2**28  # of observations that are kept


class _Broken(Exception):
    """What makes it useless to go on."""

    def __init__(self, findings: list[Finding]):
        super().__init__(findings)
        self.findings = findings


class _Rollout(NamedTuple):
    rows: Timestep  # [R, L]
    kept: bool  # rows that were handed out were never written to again


def play(env: HostEnvironments, steps: int, seed: int) -> Played:
    """Open lanes and step them: [rows, 4 lanes]."""
    steps = min(steps, max(MAX_BYTES // (4 * observation_bytes(env.spec)), 2))
    short = min(steps, REPEATED)
    seeds = np.random.default_rng(seed).integers(0, 2**31, (2, *SHAPE), dtype=np.int32)
    try:
        played = _rollout(env, seeds[0], seed, steps)
        again = _rollout(env, seeds[0], seed, short)
        others = _rollout(env, seeds[1], seed, short)
        findings = [
            ok("dtypes", "rows have the shapes and dtypes of the spec"),
            *_check_kept(played),
            *_check_repeated(played.rows, again.rows, others.rows),
            *_check_lanes(played.rows),
            *_check_some_reset(env, seeds[0], seed),
            *check_seen_last(Rows(env.spec, played.rows, None)),
        ]
        with contextlib.closing(env.open(seeds[0], evaluation=True)) as lanes:
            _require_shapes(env.spec, lanes.reset(None))
    except _Broken as broken:
        return Played(broken.findings, None)
    except Exception as caught:  # whatever a user's own code may raise
        return Played([error("lanes", f"they fail while they run: {reason(caught)}")], None)
    return Played(findings, played.rows)


def _require_reset(lanes: HostEnvironment) -> None:
    """The loops call `reset(None)` for all lanes and `reset(lanes)` for some."""
    try:
        inspect.signature(lanes.reset).bind(None)
    except TypeError:
        raise _Broken(
            [
                error(
                    "lanes",
                    "reset does not take one argument: it is called as reset(None), which begins "
                    "new episodes in all lanes, and as reset(lanes) with booleans [S, N], which "
                    "begins them there alone",
                )
            ]
        ) from None
    except ValueError:  # a function that says nothing of its arguments
        pass


def _rollout(env: HostEnvironments, seeds: np.ndarray, seed: int, steps: int) -> _Rollout:
    """Random play in lanes of their own."""
    choose = _actions(env.spec, seed)
    with contextlib.closing(env.open(seeds, evaluation=False)) as lanes:
        _require_reset(lanes)
        handed = [lanes.reset(None)]
        _require_shapes(env.spec, handed[0])
        copies = [_flat(handed[0])]
        for _ in range(steps):
            row = _step(lanes, choose(handed[-1]))
            _require_shapes(env.spec, row)
            handed = [*handed[-1:], row]  # the newest two, as they were handed out
            copies.append(_flat(row))
    kept = _same(_flat(handed[0]), copies[-2])
    return _Rollout(jax.tree.map(lambda *x: np.stack(x), *copies), kept)


def _step(lanes: HostEnvironment, actions: PyTree) -> Timestep:
    lanes.send(actions)
    return lanes.receive()


def _actions(spec: EnvSpec, seed: int) -> Callable[[Timestep], PyTree]:
    """Draws uniform actions [S, N], among those that a row [S, N] allows."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(action_tree(spec.action))

    def draw(leaf, mask):
        if mask is not None:
            return legal.draw(leaf, rng, mask)
        if isinstance(leaf, DiscreteSpec):
            return rng.integers(0, leaf.num_actions, SHAPE, dtype=np.int32)
        if isinstance(leaf, MultiDiscreteSpec):
            shape = (*SHAPE, len(leaf.num_actions))
            return rng.integers(0, leaf.num_actions, shape, dtype=np.int32)
        return rng.uniform(-1, 1, (*SHAPE, leaf.size)).astype(np.float32)

    def choose(row):
        masks = legal.of_parts(spec.action, legal.of(row))
        return jax.tree.unflatten(structure, map(draw, leaves, masks))

    return choose


def _require_shapes(spec: EnvSpec, row: Timestep) -> None:
    if found := check_shapes(spec, SHAPE, row):
        raise _Broken(found)


def _flat(row: Timestep) -> Timestep:
    """A copy with lanes [L]."""
    count = SHAPE[0] * SHAPE[1]
    return jax.tree.map(lambda x: np.array(x).reshape((count, *np.shape(x)[2:])), row)


def _same(one: Timestep, other: Timestep) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _check_kept(played: _Rollout) -> list[Finding]:
    if played.kept:
        return []
    return [
        error(
            "lanes",
            "a row that was handed out changed with the next step: it shares its memory with the "
            "environment; return a copy",
        )
    ]


def _check_repeated(rows: Timestep, again: Timestep, others: Timestep) -> list[Finding]:
    """The same seeds, and other ones, with the same actions."""
    begun = jax.tree.map(lambda x: x[: len(again.reward)], rows)
    if not _same(begun, again):
        return [
            error(
                "determinism",
                "lanes of the same seeds and actions gave other rows at a second time: seed every "
                "generator from the lane's seed",
            )
        ]
    if _same(begun, others):
        return [
            warning(
                "determinism",
                f"lanes of other seeds gave the same {len(again.reward)} rows under the same "
                "actions: where something should be random, use the lane's seed",
            )
        ]
    return [ok("determinism", "the same seeds give the same rows, other seeds other ones")]


def _check_lanes(rows: Timestep) -> list[Finding]:
    """Lanes with seeds and actions of their own."""
    observation = as_vectors(rows.observation, 2)
    if (observation == observation[:1, :1]).all():  # told elsewhere
        return []
    if all((np.asarray(x) == np.asarray(x)[:, :1]).all() for x in jax.tree.leaves(rows)):
        return [
            error(
                "lanes",
                "all lanes show the same although their seeds and actions differ: each needs a "
                "state of its own",
            )
        ]
    return [ok("lanes", "they differ from each other")]


def _check_some_reset(env: HostEnvironments, seeds: np.ndarray, seed: int) -> list[Finding]:
    """`reset` of some lanes leaves the others where they are."""
    choose, chosen = _actions(env.spec, seed), np.array([[True, False], [False, False]])
    with contextlib.closing(env.open(seeds, evaluation=False)) as lanes:
        before = _flat(_step(lanes, choose(lanes.reset(None))))
        after = lanes.reset(chosen)
        _require_shapes(env.spec, after)
        after = _flat(after)
    stayed = ~chosen.reshape(-1)
    keep = lambda rows: jax.tree.map(lambda x: x[stayed], rows)  # noqa: E731
    if not after.is_first[0] or not _same(keep(before), keep(after)):
        return [
            error(
                "lanes",
                "reset(lanes) of one lane did not give it a first row and leave the others as they "
                "were: begin new episodes in the chosen lanes only",
            )
        ]
    return []
