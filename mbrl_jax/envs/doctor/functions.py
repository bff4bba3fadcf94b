"""The doctor on JAX environments: whether they can be traced, mapped and repeated; their ends.

`R` rows of `L` lanes. What a reset and a step may depend on are their arguments alone, so that the
same arguments are tried again, in another company, and after another trace.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import legal
from mbrl_jax.envs.doctor.rows import (
    Finding,
    Played,
    as_vectors,
    check_shapes,
    error,
    observation_bytes,
    ok,
    reason,
    warning,
)
from mbrl_jax.envs.spec import random_action, zero_action
from mbrl_jax.keys import at, named
from mbrl_jax.types import DiscreteSpec, Environment, EnvSpec, Key, PyTree, Timestep

LANES = 8
MAX_BYTES = 2**28  # of observations that are kept
_KEYS = 3  # with which an end is repeated
_ACTIONS = 8  # that are compared
_TOLERANCE = 1e-3  # between one lane alone and among others, relative


class Ending(NamedTuple):
    """The step of one lane that ended an episode last."""

    state: PyTree  # before it
    action: PyTree
    observation: PyTree  # before it
    found: jax.Array  # [] bool: there was one


def play(env: Environment, steps: int, seed: int) -> Played:
    """Trace the environment, then play it: [rows, 8 lanes]."""
    found = check_traced(env)
    if found:
        return Played(found, None)
    findings = [ok("jit and vmap", "reset and step can be traced, mapped and looped over")]
    steps = min(steps, max(MAX_BYTES // (LANES * observation_bytes(env.spec)), 2))
    key = jax.random.key(seed)
    try:
        rows, endings = _rollout(env, steps)(key)
        second = _rollout(env, steps)
        (again, _), (others, _) = second(key), second(jax.random.key(seed + 1))
        findings += [
            *_check_repeated(rows, again, others),
            *_check_alone(env, key),
            *_check_ends(env, key, endings, rows),
            *_check_actions(env, key, endings),
        ]
    except Exception as caught:  # whatever a user's own code may raise
        return Played([error("jit and vmap", f"it fails while it runs: {reason(caught)}")], None)
    return Played(findings, rows)


# ------------------------------------------------------------------------------------------ traces


def check_traced(env: Environment) -> list[Finding]:
    """Errors where reset or step cannot be traced, or do not keep shapes and dtypes."""
    key, action = jax.random.key(0), zero_action(env.spec.action)
    advice = (
        "under jit values are not known, so use jnp.where and jax.lax in place of if, while, int() "
        "and NumPy"
    )
    try:
        state, timestep = jax.eval_shape(env.reset, key)
    except Exception as caught:  # whatever a user's own code may raise
        return [error("jit and vmap", f"reset cannot be traced ({reason(caught)}): {advice}")]
    if found := check_shapes(env.spec, (), timestep):
        return found
    try:
        after, timestep = jax.eval_shape(env.step, state, key, action)
    except Exception as caught:
        return [error("jit and vmap", f"step cannot be traced ({reason(caught)}): {advice}")]
    if found := check_shapes(env.spec, (), timestep):
        return found
    if changed := _changed(state, after):
        return [
            error(
                "jit and vmap",
                f"a step changes the shapes or dtypes of the state ({changed}): a loop cannot "
                "carry it; cast what step returns to what reset returns",
            )
        ]
    return []


def _changed(before: PyTree, after: PyTree) -> str:
    """Where two trees of shapes differ, in words; "" where they do not."""
    (old, tree), (new, other) = (jax.tree.flatten_with_path(t) for t in (before, after))
    if str(tree) != str(other):
        return "its structure is another one"
    text = lambda x: f"{x.dtype} {x.shape}"  # noqa: E731
    return "; ".join(
        f"{jax.tree_util.keystr(path) or 'state'}: {text(a)} -> {text(b)}"
        for (path, a), (_, b) in zip(old, new, strict=True)
        if text(a) != text(b)
    )


# ----------------------------------------------------------------------------------------- rollout


def _rollout(env: Environment, steps: int) -> Callable[[Key], tuple[Timestep, Ending]]:
    """A function of a key that plays at random: (rows [R, L] on the host, endings [L]).

    What another call gives is traced anew.
    """

    def lane(key):
        state, first = env.reset(named(key, "reset"))
        nothing = zero_action(env.spec.action)
        ending = Ending(state, nothing, first.observation, jnp.zeros((), bool))

        def body(carry, t):
            state, seen, ending = carry
            mask = legal.mask_in(seen)
            action = random_action(env.spec.action, at(key, "action", t), mask)
            after, timestep = env.step(state, at(key, "env", t), action)
            here = Ending(state, action, seen, jnp.ones((), bool))
            choose = lambda new, old: jnp.where(timestep.is_last, new, old)  # noqa: E731
            ending = jax.tree.map(choose, here, ending)
            return (after, timestep.observation, ending), timestep

        carry = (state, first.observation, ending)
        (_, _, ending), rows = jax.lax.scan(body, carry, jnp.arange(steps))
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rows)
        return rows, ending

    @jax.jit
    def lanes(key):
        return jax.vmap(lane, out_axes=(1, 0))(jax.random.split(key, LANES))

    def run(key):
        rows, endings = lanes(key)
        return jax.device_get(rows), endings

    return run


def _equal(one: PyTree, other: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _check_repeated(rows: Timestep, again: Timestep, others: Timestep) -> list[Finding]:
    """The same keys, and other ones."""
    if not _equal(rows, again):
        return [
            error(
                "determinism",
                "the same keys and actions gave other rows at a second time: draw all that is "
                "random from the key, and keep nothing in Python variables or NumPy's generator",
            )
        ]
    first = [as_vectors(r.observation, 2)[0] for r in (rows, others)]
    if (first[0] == first[0][:1]).all() and _equal(*first):
        return [
            ok("determinism", "the same keys give the same rows; every episode begins alike"),
        ]
    return [ok("determinism", "the same keys give the same rows, other keys other beginnings")]


def _check_alone(env: Environment, key: Key) -> list[Finding]:
    """One lane by itself, and among others: a step of each."""
    keys = jax.random.split(named(key, "alone"), LANES)

    def two_rows(key):
        state, first = env.reset(key)
        action = random_action(env.spec.action, key, legal.of(first))
        return first, env.step(state, key, action)[1]

    together = jax.device_get(jax.jit(jax.vmap(two_rows))(keys))
    alone = jax.jit(two_rows)
    for i in range(LANES):
        lane = jax.tree.map(lambda x, i=i: x[i], together)
        for a, b in zip(jax.tree.leaves(lane), jax.tree.leaves(alone(keys[i])), strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            if not np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                return [
                    error(
                        "jit and vmap",
                        f"lane {i} among {LANES} differs from the same lane alone: lanes must not "
                        "see each other (look at callbacks to NumPy)",
                    )
                ]
    return []


# -------------------------------------------------------------------------------------------- ends


def _check_ends(env: Environment, key: Key, endings: Ending, rows: Timestep) -> list[Finding]:
    """Whether last observations belong to the episode that ends, and what follows them."""
    usable = np.flatnonzero(np.asarray(endings.found))
    if not len(usable) or env.spec.seam == "merged":
        return []
    endings = jax.tree.map(lambda x: x[usable], endings)
    keys = jax.random.split(named(key, "ends"), _KEYS)

    def end(key, ending):
        state, timestep = env.step(ending.state, key, ending.action)
        follow = lambda action: env.step(state, key, action)[1]  # noqa: E731
        actions = _some_actions(env.spec, key)
        return timestep, jax.vmap(follow)(actions)

    each = jax.vmap(jax.vmap(end, (None, 0)), (0, None))
    last, follows = jax.device_get(jax.jit(each)(keys, endings))  # [K, L], [K, L, A]
    before = as_vectors(jax.device_get(endings.observation), 1)
    return [*_check_following(follows, last.is_last), *_check_last(last, before, rows)]


def _check_following(follows: Timestep, is_last: np.ndarray) -> list[Finding]:
    """The row after a last one: the same first row whatever the action."""
    if not is_last.any():
        return []
    after = jax.tree.map(lambda x: x[is_last], follows)
    if not _equal(after, jax.tree.map(lambda x: np.repeat(x[:, :1], x.shape[1], 1), after)):
        return [
            error(
                "end flags",
                "the row after a last one depends on the action: that step ignores its action and "
                "only begins an episode",
            )
        ]
    return []


def _check_last(last: Timestep, before: np.ndarray, rows: Timestep) -> list[Finding]:
    """Ends [K keys, L lanes] with the same keys: what a reset made depends on the key alone."""
    lanes = last.is_last.all(0)
    shown, before = as_vectors(last.observation, 2)[:, lanes], before[lanes]
    told_apart = len(before) > 1 and not (before == before[:1]).all()
    if not told_apart or not (shown == shown[:, :1]).all():
        seen = "come of the states before them" if told_apart else "were too few and alike to judge"
        return [ok("last observation", f"last observations {seen}")]
    if not (shown == shown[:1]).all():
        return [
            error(
                "last observation",
                "the last observation depends on the key and not on the state before it: it was "
                "made by a reset; return the observation that ended the episode (the step after "
                "it resets by itself)",
            )
        ]
    if (shown[0, 0] == as_vectors(rows.observation, 2)[rows.is_first]).all():
        return [
            warning(
                "last observation",
                "every episode ends with the very observation that it began with: where an "
                "environment resets itself, return the observation that ended the episode",
            )
        ]
    return [ok("last observation", "every episode ends with the same observation, not a first one")]


# ----------------------------------------------------------------------------------------- actions


def _some_actions(spec: EnvSpec, key: Key) -> PyTree:
    """Different actions [A]."""
    if isinstance(spec.action, DiscreteSpec):
        return jnp.arange(min(spec.action.num_actions, _ACTIONS), dtype=jnp.int32)
    keys = jax.random.split(named(key, "actions"), _ACTIONS)
    return jax.vmap(lambda k: random_action(spec.action, k))(keys)


def _check_actions(env: Environment, key: Key, endings: Ending) -> list[Finding]:
    """Whether an action changes anything, at first states and at those before an end."""
    keys = jax.random.split(named(key, "reset"), LANES)

    def outcomes(state, key):
        return jax.vmap(lambda action: env.step(state, key, action)[1])(
            _some_actions(env.spec, key)
        )

    def both(ending, key):
        return outcomes(env.reset(key)[0], key), outcomes(ending.state, key)

    rows = jax.device_get(jax.jit(jax.vmap(both))(endings, keys))  # 2 × [L, A]
    if len(jax.tree.leaves(rows)[0][0]) < 2:
        return []
    if _equal(rows, jax.tree.map(lambda x: np.repeat(x[:, :1], x.shape[1], 1), rows)):
        return [
            warning(
                "action",
                "no action changed the row that followed, neither at the beginning nor before the "
                "end of an episode: see whether the actions arrive",
            )
        ]
    return [ok("action", "actions change what follows")]
