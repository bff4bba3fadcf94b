"""A fixed data set mixed with collected rows: each stream draws a share of its windows from either.

The state is that of the replay of collected rows; the data stand beside it in `ReplayState.fixed`
(see `replay.fixed`). With share 1/2 this is the symmetric sampling of Ball et al. 2023, "Efficient
Online Reinforcement Learning with Offline Data" (RLPD), https://arxiv.org/abs/2302.02948
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.keys import named
from mbrl_jax.replay import fixed, ring, samplers
from mbrl_jax.replay.ring import Streams, all_streams
from mbrl_jax.types import (
    Array,
    Key,
    PyTree,
    Replay,
    ReplayState,
    Step,
    Windows,
    bounded,
    cached_make,
    part,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which data set, where collected rows go, and how much of a batch comes from either."""

    data: str = "data"  # its name in `Experiment.data`
    # of the windows of each stream that come from the data
    share: float = bounded(0.5, low=0, high=1)
    # (stream, share) where it is another one: (("model", 1.0),) trains the model on data alone
    shares: tuple[tuple[str, float], ...] = bounded((), low=0, high=1)
    # Keeps what is collected. Its batch_size and length are those of the whole batch.
    online: Any = part("mbrl_jax.replay", ring.Config())

    @property
    def batch_size(self) -> int:
        """Windows of the "model" stream, from both."""
        return self.online.batch_size

    @property
    def length(self) -> int:
        """L: windows of the "model" stream hold L + 1 rows, the last as target."""
        return self.online.length

    def share_of(self, stream: str) -> float:
        """The share of one stream's windows that comes from the data."""
        return dict(self.shares).get(stream, self.share)

    def least_rows(self, num_envs: int, streams: Streams = ()) -> int:
        """Rows a lane must hold before every stream can be sampled; 0: the data serve all."""
        config, rest, parts = split(self, streams)
        if not any(part.num_online for part in parts.values()):
            return 0
        return config.least_rows(num_envs, rest)

    def make(self, num_envs: int, streams: Streams = ()) -> Replay:
        """Build the record; it serves the stream "model" and these."""
        return make(self, num_envs, streams)


class Part(NamedTuple):
    """How many windows of a stream come from where."""

    length: int  # rows of each
    num_data: int
    num_online: int


class Places(NamedTuple):
    """What `sample` gives as indices: those of collected windows, and where they stand."""

    online: PyTree
    place: Array  # [num_online] in the batch


def split(config: Config, streams: Streams) -> tuple[Any, Streams, dict[str, Part]]:
    """(config of the online replay, its streams, the part of each stream).

    A stream of n windows has round(share · n) of the data.
    """
    parts = {}
    for stream, windows in all_streams(config, streams).items():
        num_data = round(config.share_of(stream) * windows.num)
        parts[stream] = Part(windows.length, num_data, windows.num - num_data)
    if unknown := sorted({stream for stream, _ in config.shares} - set(parts)):
        raise ValueError(
            f"there is a share for {unknown[0]!r}, and the agent reads {', '.join(sorted(parts))}"
        )
    online = dataclasses.replace(config.online, batch_size=parts["model"].num_online)
    rest = tuple(
        (stream, Windows(one.num_online, one.length))
        for stream, one in parts.items()
        if stream != "model" and one.num_online
    )
    return online, rest, parts


@cached_make
def make(config: Config, num_envs: int, streams: Streams) -> Replay:
    """Bind the functions of this module to a replay of collected rows."""
    online_config, rest, parts = split(config, streams)
    online = online_config.make(num_envs, rest)
    return online._replace(
        sample=functools.partial(sample, config.data, online, parts),
        write_back=functools.partial(write_back, online),
    )


def sample(
    data: str,
    online: Replay,
    parts: dict[str, Part],
    state: ReplayState,
    key: Key,
    *,
    stream: str,
) -> tuple[PyTree, Step, Places]:
    """Draw windows from both: (counters, rows [num, length], Places); the key is consumed.

    Windows of the data are spread evenly over the batch, so that whoever cuts it into smaller ones
    finds the share in each. `Step.extras` that only collected rows have are left out. Raises
    ValueError for an unknown stream, and where the data are missing or too short.
    """
    samplers.check_stream(stream, parts)
    length, num_data, num_online = parts[stream]
    is_data = (
        np.diff(np.arange(num_data + num_online + 1) * num_data // (num_data + num_online)) > 0
    )
    place = jnp.asarray(np.flatnonzero(~is_data), jnp.int32)
    counters, indices, drawn = state.counters, None, []
    if num_data:
        rows, _ = fixed.draw(state, named(key, "data"), data, Windows(num_data, length))
        drawn.append(rows)
    if num_online:
        counters, rows, indices = online.sample(state, named(key, "online"), stream=stream)
        drawn.append(rows)
    if num_data and num_online:
        from_data, collected = _alike(*drawn)
        order = np.where(is_data, np.cumsum(is_data) - 1, num_data + np.cumsum(~is_data) - 1)
        mix = lambda x, y: jnp.concatenate([x, y.astype(x.dtype)])[order]  # noqa: E731
        drawn = [jax.tree.map(mix, from_data, collected)]
    return counters, drawn[0], Places(indices, place)


def write_back(online: Replay, counters: PyTree, indices: Places, values: PyTree) -> PyTree:
    """Give the online replay what belongs to its windows; the data stay as they are.

    Args:
      online: the replay of collected rows.
      counters: what `sample` returned.
      indices: what `sample` returned.
      values: leaves [num, …] for all windows of the batch.
    """
    if indices.online is None:
        return counters
    own = jax.tree.map(lambda x: x[indices.place], values)
    return online.write_back(counters, indices.online, own)


def _alike(from_data: Step, collected: Step) -> tuple[Step, Step]:
    """Both with the `Step.extras` that both have: no number stands for what was not recorded."""
    common = [name for name in collected.extras if name in from_data.extras]
    alike = [
        one._replace(extras={name: one.extras[name] for name in common})
        for one in (from_data, collected)
    ]
    return alike[0], alike[1]
