"""What rows of an environment, once played, show of it: flags, rewards, observations, lengths.

`R` rows of `L` lanes; NumPy arrays [R, L, …]. See `mbrl_jax.envs.spec` for the convention.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mbrl_jax.envs.spec import spec_tree
from mbrl_jax.types import ArraySpec, EnvSpec, Timestep

HUGE = 1e4  # rewards beyond it
LARGE = 100.0  # numbers of an observation beyond it
SHORT = 20  # steps: a fixed length below it is no sign of a time limit


class Finding(NamedTuple):
    """One thing that was seen."""

    severity: Literal["error", "warning", "ok"]
    topic: str
    sentence: str


def error(topic: str, sentence: str) -> Finding:
    """It breaks training, or makes it learn something false."""
    return Finding("error", topic, sentence)


def warning(topic: str, sentence: str) -> Finding:
    """It may be meant."""
    return Finding("warning", topic, sentence)


def ok(topic: str, sentence: str) -> Finding:
    """It was looked at and is right."""
    return Finding("ok", topic, sentence)


def reason(caught: BaseException) -> str:
    """The first line of an exception, with its type."""
    text = str(caught).strip().splitlines()
    return f"{type(caught).__name__}: {text[0][:200]}" if text else type(caught).__name__


class Rows(NamedTuple):
    """What was played."""

    spec: EnvSpec
    timestep: Timestep  # [R, L]
    limits: tuple[float, float] | None  # of the numbers in an observation


class Played(NamedTuple):
    """What came of playing: findings on the way, and the rows if there are some."""

    findings: list[Finding]
    rows: Timestep | None  # [R, L]


def check_shapes(spec: EnvSpec, leading: tuple[int, ...], timestep: Any) -> list[Finding]:
    """Findings where a timestep [*leading] has not the structure, shapes and dtypes of `spec`."""
    if not isinstance(timestep, Timestep):
        return [error("dtypes", f"a row is a {type(timestep).__name__} and not a Timestep")]
    flag: Any = ArraySpec((), "bool")
    number: Any = ArraySpec((), "float32")
    wanted = Timestep(
        observation=spec_tree(spec.observation),
        reward=number,
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
        extras=dict.fromkeys(spec.extras, number),
    )
    there, missing = _named(timestep), _named(wanted).keys() - _named(timestep).keys()
    if missing or len(there) > len(_named(wanted)):
        names = " and ".join(f"{sorted(x)}" for x in (there, _named(wanted)))
        return [error("dtypes", f"the leaves of a row and those of the spec differ: {names}")]
    found = []
    for name, leaf in _named(wanted).items():
        value, shape = there[name], (*leading, *leaf.shape)
        has = (tuple(np.shape(value)), str(getattr(value, "dtype", type(value).__name__)))
        if has != (shape, leaf.dtype):
            found.append(
                error("dtypes", f"{name} is {has[1]} {has[0]} and should be {leaf.dtype} {shape}")
            )
    return found


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by their names: "reward", "observation", "observation['camera']", …."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}


def observation_bytes(spec: EnvSpec) -> int:
    """Size of one observation, all leaves."""
    leaves = jax.tree.leaves(spec_tree(spec.observation))
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def as_vectors(observation: Any, num_axes: int) -> np.ndarray:
    """Observations of any leaves as vectors [..., D] behind `num_axes` leading axes."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(observation)]
    flat = [x.reshape(*x.shape[:num_axes], -1) for x in leaves]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1)


def check_rows(rows: Rows) -> list[Finding]:
    """All findings on what was played."""
    checks = [check_flags, check_episodes, check_rewards, check_observations]
    return [finding for check in checks for finding in check(rows)]


# ------------------------------------------------------------------------------------------ flags


def check_flags(rows: Rows) -> list[Finding]:
    """The order of `is_first`, `is_last` and `is_terminal`."""
    _, _, first, last, terminal, _ = rows.timestep
    found = [
        error("end flags", sentence)
        for wrong, sentence in _wrong_flags(rows.spec.seam, first, last, terminal)
        if wrong.any()
    ]
    if (empty := (first & last).sum()) and rows.spec.seam == "separate":
        found.append(
            error(
                "zero-length episodes",
                f"{empty} rows are is_first and is_last at once: an episode without a step holds "
                "nothing to learn; reset again, or let it take one step",
            )
        )
    if found:
        return found
    lives = int((terminal & ~last & ~first).sum())
    lost = f"; {lives} rows are terminal within an episode, as lost lives are" if lives else ""
    return [ok("end flags", f"first, last and terminal rows are in their order{lost}")]


def _wrong_flags(seam: str, first, last, terminal) -> list[tuple[np.ndarray, str]]:
    """(where it is wrong, the sentence) for each rule."""
    rules = [(~first[:1], "the first row after a reset is not is_first: set it there")]
    if seam == "merged":
        note = "the seam is merged, but a row is is_last: end with is_first of the next episode"
        return [*rules, (last, note)]
    after_last = (
        "a row after is_last is not is_first: after the true last observation, the next step "
        "ignores its action and returns the first row of a new episode"
    )
    unannounced = (
        "a row is is_first though the one before it was not is_last: emit the true last "
        "observation with is_last, and the first row of the next episode one step later"
    )
    ended = "a row is is_first and is_terminal at once: is_terminal belongs to the last row"
    return [
        *rules,
        (last[:-1] & ~first[1:], after_last),
        (first[1:] & ~last[:-1], unannounced),
        (first & terminal & ~last, ended),
    ]


# --------------------------------------------------------------------------------------- episodes


def episode_lengths(rows: Rows) -> np.ndarray:
    """Steps of every complete episode, all lanes."""
    _, _, first, last, _, _ = rows.timestep
    ends = first if rows.spec.seam == "merged" else last
    lengths = []
    for lane_first, lane_ends in zip(first.T, ends.T, strict=True):
        starts = np.flatnonzero(lane_first)
        for end in np.flatnonzero(lane_ends):
            before = starts[starts < end]
            if len(before):
                lengths.append(end - before[-1])
    return np.array(lengths, int)


def check_episodes(rows: Rows) -> list[Finding]:
    """How long they are, and how they end."""
    lengths, (_, _, first, last, terminal, _) = episode_lengths(rows), rows.timestep
    if not len(lengths):
        return [
            warning(
                "episodes",
                f"no episode ended within {len(first) - 1} random steps: without a time limit the "
                "return of an episode is never known, and evaluation is cut at eval_max_steps",
            )
        ]
    low, high = lengths.min(), lengths.max()
    steps = f"{low} steps" if low == high else f"{low} to {high} steps"
    if high == 1:
        return [
            warning(
                "one-step episodes",
                f"all {len(lengths)} episodes take one step: nothing is to be foreseen, so that a "
                "world model is of no use (if there should be more, look at the end flags)",
            )
        ]
    whole = rows.spec.seam == "separate"
    if whole and len(lengths) > 2 and low == high >= SHORT and terminal[last].all():
        return [
            warning(
                "episodes",
                f"all {len(lengths)} episodes end as terminal after exactly {low} steps: if that "
                "is a time limit, report it as truncated (is_last without is_terminal), or values "
                "are learned as if nothing came after it",
            )
        ]
    ended = int((terminal & (last if whole else first)).sum())
    how = f"{ended} terminal, {max(len(lengths) - ended, 0)} by a time limit" if whole else ""
    return [ok("episodes", f"{len(lengths)} ended, of {steps}" + (f": {how}" if how else ""))]


# ---------------------------------------------------------------------------------------- rewards


def check_rewards(rows: Rows) -> list[Finding]:
    """Finite, of a size to be learned, none with a reset."""
    _, reward, first, _, _, _ = rows.timestep
    bad = ~np.isfinite(reward)
    if bad.any():
        row, lane = (int(i[0]) for i in np.nonzero(bad))
        return [
            error(
                "rewards",
                f"{int(bad.sum())} rewards are not finite (the first in row {row} of lane {lane}): "
                "the seed would be frozen there; look for a division or a root of what can be 0",
            )
        ]
    found = []
    if rows.spec.seam == "separate" and (given := (reward != 0) & first).any():
        found.append(
            error(
                "rewards",
                f"{int(given.sum())} first rows carry a reward: it arrives before any action and "
                "belongs to nobody; give it with the last row of the episode before",
            )
        )
    size = np.abs(reward).max()
    if size > HUGE:
        found.append(
            warning(
                "rewards",
                f"rewards reach {size:.3g}: squared losses and value normalisation suffer; divide "
                "them by a constant",
            )
        )
    if size == 0:
        found.append(
            warning(
                "rewards",
                f"no reward but 0 in {reward.size} rows of random play: where that is not meant, "
                "look at the units; where it is, exploration has to find one first",
            )
        )
    return found or [ok("rewards", f"they lie between {reward.min():.3g} and {reward.max():.3g}")]


# ----------------------------------------------------------------------------------- observations


def check_observations(rows: Rows) -> list[Finding]:
    """Finite, in their range, not always the same: every leaf."""
    return [
        finding
        for name, leaf in _named(rows.timestep.observation).items()
        for finding in _check_leaf(rows, f"observations{name}", np.asarray(leaf))
    ]


def _check_leaf(rows: Rows, topic: str, observation: np.ndarray) -> list[Finding]:
    """One leaf [R, L, …] of all observations."""
    if observation.dtype.kind == "V":  # bfloat16 and its like
        observation = observation.astype(np.float32)
    is_float = np.issubdtype(observation.dtype, np.floating)
    if is_float and not np.isfinite(observation).all():
        row = int(np.nonzero(~np.isfinite(observation))[0][0])
        return [
            error(
                topic,
                f"an observation is not finite (first in row {row}): the seed would be frozen "
                "there; look for a division by what can be 0, or a quantity that grows for ever",
            )
        ]
    low, high = observation.min(), observation.max()
    is_image = observation.ndim - 2 >= 2
    found = _out_of_range(rows, topic, float(low), float(high), is_float, is_image)
    if (observation == observation[:1, :1]).all():
        found.append(warning(topic, "every observation is the same: nothing can be told from them"))
    return found or [ok(topic, f"they are finite and lie between {low:.4g} and {high:.4g}")]


def _out_of_range(
    rows: Rows, topic: str, low: float, high: float, is_float: bool, is_image: bool
) -> list[Finding]:
    seen = f"they lie between {low:.4g} and {high:.4g}"
    if rows.limits is not None and (low < rows.limits[0] or high > rows.limits[1]):
        return [
            error(topic, f"{seen}, beyond their range of {rows.limits[0]:g} to {rows.limits[1]:g}")
        ]
    if is_image and is_float and (low < 0 or high > 1):
        return [
            warning(
                topic,
                f"{seen}, but encoders, losses and pictures take images and grids of floats to lie "
                "between 0 and 1: rescale them, or emit uint8",
            )
        ]
    if not is_image and max(abs(low), abs(high)) > LARGE:
        return [
            warning(
                topic,
                f"{seen}: networks learn from numbers around 1; divide each by its usual size",
            )
        ]
    return []


def check_seen_last(rows: Rows) -> list[Finding]:
    """Whether last observations are those of the next episode, as far as rows alone can tell."""
    if rows.spec.seam == "merged":
        return []
    observation, last = as_vectors(rows.timestep.observation, 2), rows.timestep.is_last
    ends = last[:-1].copy()
    if ends.sum() < 2 or (observation == observation[:1, :1]).all():
        return []
    same = (observation[:-1] == observation[1:]).all(-1)
    usual = same[~ends].mean() if (~ends).any() else 1.0
    if same[ends].all() and usual < 0.5:
        return [
            warning(
                "last observation",
                "every last observation equals the first one of the next episode: where an "
                "environment resets itself, keep the observation that ended the episode",
            )
        ]
    return [ok("last observation", "last observations are not those of the next episode")]
