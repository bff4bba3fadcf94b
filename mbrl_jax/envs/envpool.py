"""EnvPool (github.com/sail-sg/envpool) in our time convention: many lanes stepped on the host.

EnvPool's threads step the lanes while the caller does something else. A lane whose episode is over
ignores its next action and returns the first row of a new one, which is this package's convention.
Observations are states or what the task shows: DeepMind Control, Gym MuJoCo, MiniGrid, classic
control. Atari games have options of their own: `mbrl_jax.envs.atari`.
"""

import dataclasses
import difflib
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax import legal
from mbrl_jax.types import (
    ActionSpec,
    ArraySpec,
    BoundedSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    HostEnvironment,
    HostEnvironments,
    Timestep,
    bounded,
)

_PREFIX = "obs"  # of the observation's leaves among what EnvPool says of its states
_MASK = f"{_PREFIX}:{legal.NAME}"


@dataclasses.dataclass(frozen=True)
class Config:
    """One EnvPool task, e.g. "CheetahRun-v1", "HalfCheetah-v5", "MiniGrid-Empty-5x5-v0"."""

    name: str
    # Leaves of a dictionary of observations to keep, in this order; () keeps all. A single leaf
    # keeps its shape, several are flattened into one float32 vector. Where actions are masked,
    # observations stay a dictionary of those leaves and the mask.
    leaves: tuple[str, ...] = ()
    # Steps of the task with each action: rewards are summed, an end cuts them short.
    action_repeat: int = bounded(1, low=1)

    def make(self) -> HostEnvironments:
        """Describe the task.

        Raises ValueError for a name or a leaf that EnvPool does not know, for games of several
        players, and for masks that are no part of the observation.
        """
        return make(self)


class Adaptor(NamedTuple):
    """How one task is opened, and how its arrays become ours."""

    task: str
    options: dict[str, Any]  # of `envpool.make_gymnasium`
    spec: EnvSpec
    observe: Callable  # (what EnvPool shows of n lanes) -> [n, *observation]
    to_env: Callable  # (our actions [n]) -> EnvPool's
    ends_with_life: bool = False  # a lost life is terminal
    repeat: int = 1  # steps of the task with each action


@functools.cache
def make(config: Config) -> HostEnvironments:
    """Describe a task."""
    adaptor = make_adaptor(config)
    return environments(adaptor, adaptor)


def make_adaptor(config: Config) -> Adaptor:
    """Adapt a task: dictionaries flattened, actions in [-1, 1], float64 as float32."""
    task = require_task(config.name, [n for n in known_tasks() if not is_atari(n)])
    described = describe(task, {})
    _require_one_player(task, described)
    leaves = _chosen_leaves(config, described)
    masked = _MASK in described.state_array_spec
    if masked and config.action_repeat > 1:
        raise ValueError(
            f"{task} says before each step which actions are allowed, so that none can be repeated "
            "unseen: leave action_repeat=1"
        )
    observation, observe = (_dictionary_adaptor if masked else _observation_adaptor)(leaves)
    action, to_env = action_adaptor(task, described.action_array_spec)
    spec = EnvSpec(observation, action)
    return Adaptor(task, {}, spec, observe, to_env, repeat=config.action_repeat)


def environments(training: Adaptor, evaluating: Adaptor) -> HostEnvironments:
    """The record of a task that is opened in one way to learn and in one to be judged."""

    def open_lanes(lane_seeds, *, evaluation):
        return open_pool(evaluating if evaluation else training, lane_seeds)

    return HostEnvironments(training.spec, open_lanes)


# ------------------------------------------------------------------------------------------ tasks


def known_tasks() -> list[str]:
    """Names of all tasks that EnvPool holds."""
    import envpool  # lazily: it takes a second

    return envpool.list_all_envs()


@functools.cache
def is_atari(task: str) -> bool:
    """Whether a task is an Atari game."""
    from envpool.registration import registry

    return registry.specs[task][0] == "envpool.atari"


def require_task(name: str, known: list[str]) -> str:
    """`name` if it is known; else ValueError with the nearest names."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:3]
    raise ValueError(
        f"unknown environment {name!r}; the nearest EnvPool names are {', '.join(near)}"
    )


def describe(task: str, options: dict[str, Any]) -> Any:
    """EnvPool's specification of a task."""
    import envpool

    return envpool.make_spec(task, **options)


def _require_one_player(task: str, described: Any) -> None:
    """Raise ValueError for a game of several players, and for masks beside the observation."""
    if (players := getattr(described.config, "max_num_players", 1)) > 1:
        raise ValueError(
            f"{task} is a game of {players} players, and an agent here plays alone: choose a task "
            "of one player"
        )
    masks = [key for key in described.state_array_spec if key.endswith("action_mask")]
    if masks and masks != [_MASK]:
        raise ValueError(
            f"{task} says which actions are allowed ({masks[0].partition(':')[2]}) beside its "
            f"observation, and it is read here as a leaf {legal.NAME!r} of it: choose another task"
        )


# --------------------------------------------------------------------------------- observations


class _Leaf(NamedTuple):
    """One leaf of the observation."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


def _chosen_leaves(config: Config, described: Any) -> list[_Leaf]:
    """The leaves that the config asks for. Raises ValueError for one that is not there."""
    found = {}
    for key, array in described.state_array_spec.items():
        if key.split(":")[0] == _PREFIX:
            name = key.partition(":")[2]
            shape = tuple(side for side in array.shape if side != -1)  # -1: the players, here one
            path = tuple(name.split(".")) if name else ()
            found[name] = _Leaf(path, shape, np.dtype(array.dtype))
    if unknown := [name for name in config.leaves if name not in found]:
        raise ValueError(
            f"{config.name} has no observation {unknown[0]!r}; it has "
            f"{', '.join(found) if '' not in found else 'one only: leave env.leaves empty'}"
        )
    masks = [legal.NAME] if _MASK in described.state_array_spec else []
    return [found[name] for name in dict.fromkeys([*(config.leaves or found), *masks])]


def _observation_adaptor(leaves: list[_Leaf]) -> tuple[ArraySpec, Callable]:
    """(our spec, function from EnvPool's observation to ours)."""
    if len(leaves) == 1:
        (leaf,) = leaves
        dtype = _our_dtype(leaf.dtype)
        shape = leaf.shape or (1,)
        return ArraySpec(shape, dtype.name), functools.partial(_one_leaf, leaf.path, shape, dtype)
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    paths = [leaf.path for leaf in leaves]
    return ArraySpec((size,), "float32"), functools.partial(_flat_leaves, paths)


def _dictionary_adaptor(leaves: list[_Leaf]) -> tuple[DictSpec, Callable]:
    """The same for a dictionary, every leaf of which keeps its shape."""
    adapted = {".".join(leaf.path): _observation_adaptor([leaf]) for leaf in leaves}
    spec = DictSpec(tuple((name, adapted[name][0]) for name in sorted(adapted)))
    return spec, lambda raw: {name: observe(raw) for name, (_, observe) in adapted.items()}


def _our_dtype(dtype: np.dtype) -> np.dtype:
    """JAX has no numbers of 64 bits by default."""
    return {"f": np.dtype(np.float32), "i": np.dtype(np.int32)}.get(dtype.kind, dtype)


def _look_up(raw: Any, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        # EnvPool hands out a dictionary of a single leaf as the leaf.
        raw = raw[key] if isinstance(raw, dict) else raw
    return raw


def _one_leaf(path: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype, raw: Any):
    leaf = _look_up(raw, path)
    return leaf.reshape((len(leaf),) + shape).astype(dtype, copy=False)


def _flat_leaves(paths: list[tuple[str, ...]], raw: Any) -> np.ndarray:
    flat = [_look_up(raw, path) for path in paths]
    return np.concatenate([x.reshape(len(x), -1).astype(np.float32) for x in flat], axis=1)


# -------------------------------------------------------------------------------------- actions


def action_adaptor(task: str, described: dict[str, Any]) -> tuple[ActionSpec, Callable]:
    """(our action spec, function from our actions [n] to EnvPool's).

    Raises ValueError for actions that are neither one choice nor one bounded vector.
    """
    own = [key for key in described if key not in ("env_id", "players.env_id")]
    array = described[own[0]]
    shape = tuple(side for side in array.shape if side != -1)
    dtype = np.dtype(array.dtype)
    low, high = np.asarray(array.minimum), np.asarray(array.maximum)
    if len(own) == 1 and dtype.kind in "iu" and not shape and low == 0:
        return DiscreteSpec(int(high) + 1), lambda actions: np.asarray(actions, dtype)
    bounded = dtype.kind == "f" and np.isfinite(low).all() and np.isfinite(high).all()
    if len(own) != 1 or not bounded or len(shape) > 1:
        raise ValueError(
            f"{task} has actions that are not supported ({', '.join(own)}); choose a task with one "
            "discrete action or one bounded vector"
        )
    size = shape[0] if shape else 1
    middle, half = 0.5 * (low + high), 0.5 * (high - low)

    def rescale(actions):
        clipped = np.minimum(np.maximum(actions, -1.0), 1.0)  # np.clip takes five times as long
        return (middle + half * clipped).astype(dtype, copy=False).reshape((-1, *shape))

    return BoundedSpec(size), rescale


# ------------------------------------------------------------------------------------------ pools


def open_pool(adaptor: Adaptor, lane_seeds: np.ndarray) -> HostEnvironment:
    """Open lanes [S, N], each with its own seed."""
    pool = _Pool(adaptor, lane_seeds)
    return HostEnvironment(pool.reset, pool.send, pool.receive, pool.close)


class _Pool:
    """An EnvPool and the three flags that it leaves to us; arrays are flat, [S · N]."""

    def __init__(self, adaptor: Adaptor, lane_seeds: np.ndarray):
        import envpool

        self._adaptor, self._shape = adaptor, lane_seeds.shape
        count = lane_seeds.size
        self._pool: Any = envpool.make_gymnasium(
            adaptor.task,
            num_envs=count,
            seed=[int(seed) for seed in lane_seeds.reshape(-1)],
            **adaptor.options,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's, of the space's precision
            self._pool.observation_space  # noqa: B018  (made once, then kept)
        self._now: Any = None  # the newest Timestep [S · N], NumPy's
        self._actions: Any = None  # EnvPool's, that were sent
        self._lives = np.zeros(count, np.int32)
        self._merged = adaptor.spec.seam == "merged"

    def reset(self, lanes: np.ndarray | None = None) -> Timestep:
        """Begin new episodes in `lanes` [S, N] (None: in all); the other rows stay as they are."""
        self._now = self._reset(None if lanes is None else lanes.reshape(-1))
        return self._shaped(self._now)

    def send(self, actions: np.ndarray) -> None:
        """Begin to step all lanes."""
        flat = np.asarray(actions)
        flat = flat.reshape((-1,) + flat.shape[2:])
        self._actions = self._adaptor.to_env(flat)
        self._pool.send(self._actions)

    def receive(self) -> Timestep:
        """Wait for the rows that the actions led to."""
        raw, reward, terminated, truncated, info = self._pool.recv()
        # EnvPool itself resets a lane one row after its last, and ignores the action then.
        is_first, is_last = self._now.is_last, terminated | truncated
        # Tasks of DeepMind Control repeat the last reward there.
        arrived: Any = np.where(is_first, np.float32(0), reward)
        is_terminal = terminated
        if self._adaptor.ends_with_life:
            is_terminal = terminated | ((info["lives"] < self._lives) & ~is_first)
            self._lives = info["lives"]
        observation = self._adaptor.observe(raw)
        self._now = Timestep(observation, arrived, is_first, is_last, is_terminal)
        for _ in range(self._adaptor.repeat - 1):
            self._now = self._once_more(self._now)
        if self._merged and is_last.any():
            # The frame that ended the episode is replaced by the first one of the next.
            ends = self._now
            fresh = self._reset(is_last)
            self._now = fresh._replace(reward=ends.reward, is_terminal=ends.is_terminal)
        return self._shaped(self._now)

    def _once_more(self, now: Timestep) -> Timestep:
        """`now` [S · N] after one more step of the lanes whose episodes go on.

        EnvPool's own frame_skip hands out the last of the rewards instead of their sum.
        """
        going_on: Any = ~(now.is_first | now.is_last)
        which = np.flatnonzero(going_on).astype(np.int32)
        if not len(which):
            return now
        self._pool.send(self._actions[which], which)
        raw, reward, terminated, truncated, _ = self._pool.recv()
        seen = self._adaptor.observe(raw)
        return now._replace(
            observation=jax.tree.map(lambda old, x: _put(old, which, x), now.observation, seen),
            reward=_put(now.reward, which, now.reward[which] + reward),
            is_last=_put(now.is_last, which, terminated | truncated),
            is_terminal=_put(now.is_terminal, which, terminated),
        )

    def close(self) -> None:
        """Stop the threads."""
        self._pool = None

    def _reset(self, lanes: np.ndarray | None) -> Timestep:
        """The newest rows with those of `lanes` [S · N] replaced by first ones."""
        count = self._lives.size
        lanes = np.ones(count, bool) if lanes is None else lanes
        which = np.flatnonzero(lanes).astype(np.int32)
        raw, info = self._pool.reset(which)
        observation = self._adaptor.observe(raw)
        if self._adaptor.ends_with_life:
            self._lives = self._lives.copy()
            self._lives[which] = info["lives"]
        if len(which) == count:
            no: Any = np.zeros(count, bool)
            reward: Any = np.zeros(count, np.float32)
            return Timestep(observation, reward, ~no, no, no)
        now = self._now
        put = lambda seen, first: _put(seen, which, first)  # noqa: E731
        return now._replace(
            observation=jax.tree.map(put, now.observation, observation),
            reward=np.where(lanes, np.float32(0), now.reward),
            is_first=now.is_first | lanes,
            is_last=now.is_last & ~lanes,
            is_terminal=now.is_terminal & ~lanes,
        )

    def _shaped(self, flat: Timestep) -> Timestep:
        return jax.tree.map(lambda x: x.reshape(self._shape + x.shape[1:]), flat)


def _put(old: Any, which: np.ndarray, rows: np.ndarray) -> Any:
    """A copy of `old` [S · N, …] with other rows in the lanes `which`."""
    new = np.array(old)
    new[which] = rows
    return new
