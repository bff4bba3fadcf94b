"""Laws of samplers and, as L12, of replays."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import example_observation, example_row, zero_action
from mbrl_jax.replay.samplers import Ring
from mbrl_jax.testing.asserts import assert_equal, assert_same_structure
from mbrl_jax.types import (
    ActionSpec,
    Array,
    BoundedSpec,
    DictActionSpec,
    EnvSpec,
    Key,
    PyTree,
    Replay,
    ReplayState,
    Step,
    Timestep,
    Transition,
    Windows,
)

# Row i of lane n has the reward i + LANE · n, row i of a data set -1 - i, an imagined one MARK.
LANE, MARK = 1000, 77_777.0
DATA_ROWS, DRAWS = 30, 16


def check_sampler(
    config: Any, capacity: int = 40, num_envs: int = 2, seed: int = 0, *, covers: bool = True
) -> None:
    """Windows are complete, lie in written rows, never cross the write head, and all are reached.

    Args:
      config: has `make() -> Sampler` and `least_rows(length, num, num_envs)`.
      capacity: C of the made-up ring.
      num_envs: N.
      seed: of the draws.
      covers: False for samplers that leave windows out on purpose, such as those of the newest
        rows: then only the newest complete window of each lane has to be reached.
    """
    sampler = config.make()
    length, num = 5, 6

    @jax.jit
    def sample(counters, key, position):
        ring = Ring(capacity, num_envs, position)
        return sampler.sample(counters, key, ring, length, num, "model")

    least = config.least_rows(length, num, num_envs)
    for position in (least, capacity - 1, capacity, 2 * capacity + 7):
        counters = sampler.init(capacity, num_envs)
        written = np.arange(max(0, position - capacity), position)
        legal = {
            (row % capacity, n)
            for row in written[: len(written) - length + 1]
            for n in range(num_envs)
        }
        seen: set[tuple[int, int]] = set()
        for draw in range(80):
            key = jax.random.fold_in(jax.random.key(seed), draw)
            counters, slot, lane = sample(counters, key, jnp.int32(position))
            drawn = set(zip(np.asarray(slot).tolist(), np.asarray(lane).tolist(), strict=True))
            assert drawn <= legal, f"position {position}: {sorted(drawn - legal)} is no window"
            seen |= drawn
        if covers:
            few = f"position {position}: some windows are never drawn"
            assert len(seen) > 0.9 * len(legal), few
        else:
            newest = {((written[-1] - length + 1) % capacity, n) for n in range(num_envs)}
            assert newest <= seen, f"position {position}: the newest windows are never drawn"


# ----------------------------------------------------------------------------------------- replays


def check_replay(
    config: Any,
    spec: EnvSpec,
    *,
    agent: Any = None,
    streams: Mapping[str, Windows] | None = None,
    imagined: PyTree = None,
    data: tuple[str, ...] = ("data",),
    num_envs: int = 2,
    seed: int = 0,
) -> None:
    """Law L12 for a replay of rows in the order in which they came.

    Windows are consecutive rows of one lane (among the last `rows.capacity`, before the ring has
    wrapped and after) or of a data set. Sampling keeps the structure of the counters, adding that
    of the state, which counts its rows. `settle` takes in what `extend` left pending, as `add`
    does, and a second time does nothing. Data sets in `fixed` are left as they are.

    Args:
      config: has `make(num_envs, streams) -> Replay` and `least_rows(num_envs, streams)`.
      spec: of the rows.
      agent: a config of an agent whose `make_replay` wraps the replay; None: it stands alone.
      streams: windows to draw beside those of the stream "model"; None: those of the agent.
      imagined: rows to extend with, of reward `MARK`, which the stream "behaviour" then gives;
        None: the transitions of a branched agent.
      data: names of the data sets that are put beside the rows.
      num_envs: N.
      seed: of the draws.
    """
    asked = dict(streams if streams is not None else agent.streams() if agent is not None else {})
    items = tuple(asked.items())
    wrapped = agent is not None
    replay = agent.make_replay(config, num_envs, spec) if wrapped else config.make(num_envs, items)
    case = _Case(replay, spec, num_envs, data, _compiled(replay, asked), jax.random.key(seed))
    least = max(1, config.least_rows(num_envs, items))
    capacity = LANE if replay.rows is None else replay.rows.capacity
    counts = (least, 2 * least + 3) if replay.rows is None else (least, capacity, 2 * capacity + 3)
    assert max(counts) < LANE, "made-up rows of several lanes would have equal numbers"
    for count in counts:
        state = case.filled(count)
        assert np.asarray(state.position) == count, "L12 position counts the rows of a lane"
        assert_equal(state.fixed, case.fixed(), "L12 data sets are never written, and")
        for name in ("model", *asked):
            _check_windows(case, name, state, count, capacity)
        if replay.rows is not None:
            _check_rows(case, state, count)
    _check_settle(case, state)
    if replay.extend is not None:
        if imagined is None:
            imagined = _imagined(spec, agent.num_starts * agent.branch_length)
        _check_extend(case, case.filled(least), imagined)
    _check_names(case, state)


class _Case(NamedTuple):
    """A replay, and programs that draw from it."""

    replay: Replay
    spec: EnvSpec
    num_envs: int
    data: tuple[str, ...]
    draws: dict[str, Callable[[ReplayState], tuple[PyTree, PyTree]]]
    key: Key

    def fixed(self) -> dict[str, Step]:
        """Data sets [R, …]."""
        rows = _coded(self.spec, -1.0 - jnp.arange(DATA_ROWS))
        return dict.fromkeys(self.data, rows)

    def row(self, index: Array) -> Step:
        """Row `index` of every lane [N]."""
        return _coded(self.spec, index + LANE * jnp.arange(self.num_envs, dtype=jnp.float32))

    def filled(self, count: int) -> ReplayState:
        """The state after so many rows; one program for every count."""
        return _fill(self.replay, self.spec, self.num_envs, self.fixed(), count)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fill(
    replay: Replay, spec: EnvSpec, num_envs: int, fixed: dict[str, Step], count: Array
) -> ReplayState:
    lanes = LANE * jnp.arange(num_envs, dtype=jnp.float32)
    start = replay.init(example_row(spec))._replace(fixed=fixed)
    return jax.lax.fori_loop(0, count, lambda i, s: replay.add(s, _coded(spec, i + lanes)), start)


def _compiled(replay: Replay, asked: Mapping[str, Windows]) -> dict[str, Callable]:
    """A program for each stream: (counters, batch) of `DRAWS` independent draws."""

    def draw(name: str, state: ReplayState) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(jax.random.key(DRAWS), DRAWS)
        sample = functools.partial(replay.sample, state, stream=name)
        return jax.vmap(lambda key: sample(key)[:2])(keys)

    names = ["model", *asked, *(["behaviour"] if replay.extend is not None else [])]
    return {name: jax.jit(functools.partial(draw, name)) for name in names}


def _coded(spec: EnvSpec, number: Array) -> Step:
    """Rows [...] that can be told from their rewards [...], `number`."""
    index = jnp.where(number < 0, -1 - number, number % LANE).astype(jnp.int32)
    fill = lambda x: jnp.broadcast_to(  # noqa: E731
        _apart(index, x.ndim) % 97, (*index.shape, *x.shape)
    ).astype(x.dtype)
    observation = jax.tree.map(fill, example_observation(spec.observation))
    timestep = Timestep(
        observation,
        number.astype(jnp.float32),
        index % 4 == 1,
        index % 4 == 0,
        index % 8 == 0,
        {name: index.astype(jnp.float32) for name in spec.extras},
    )
    return Step(timestep, _coded_action(spec.action, index))


def _coded_action(spec: ActionSpec, index: Array) -> PyTree:
    if isinstance(spec, DictActionSpec):
        return {name: _coded_action(leaf, index) for name, leaf in spec.leaves}
    example = zero_action(spec)
    shape = (*index.shape, *example.shape)
    if isinstance(spec, BoundedSpec):
        return jnp.broadcast_to(_apart(index % 5, 1) / 4.0 - 0.5, shape).astype(example.dtype)
    spread = jnp.broadcast_to(_apart(index, example.ndim), shape)
    return (spread % jnp.asarray(spec.num_actions)).astype(example.dtype)


def _apart(x: Array, ndim: int) -> Array:
    """With so many more axes of size 1."""
    return x.reshape(*x.shape, *(1,) * ndim)


def _check_windows(case: _Case, name: str, state: ReplayState, count: int, capacity: int) -> None:
    """Windows of one stream, in time order and from one lane, of rows that are there."""
    counters, batch = case.draws[name](state)
    one = jax.eval_shape(lambda x: jax.tree.map(lambda x: x[0], x), counters)
    assert_same_structure(one, state.counters, f"L12 sampling {name!r} keeps the counters")
    number = np.asarray(batch.timestep.reward)
    where = f"L12 windows of {name!r} after {count} rows"
    expected = jax.jit(functools.partial(_coded, case.spec))(number)
    assert_same_structure(batch, expected, f"{where} are rows")
    assert_equal(batch, expected, f"{where}: the leaves of a row belong together, and")
    steps = np.diff(number, axis=-1)
    assert (steps == np.where(number[..., 1:] < 0, -1, 1)).all(), f"{where} are not consecutive"
    index, lane = number[number >= 0] % LANE, number[number >= 0] // LANE
    there = (index < count) & (index >= count - capacity) & (lane < case.num_envs)
    assert there.all(), f"{where} hold rows that are overwritten, or were not written yet"


def _check_rows(case: _Case, state: ReplayState, count: int) -> None:
    """Where rows lie: row i in slot i mod C; what is taken out can be put back."""
    store = case.replay.rows
    assert store is not None
    rows = store.get(state)
    for index in {max(0, count - store.capacity), count // 2, count - 1}:
        if index >= count - store.capacity:
            found = jax.tree.map(lambda x, i=index: x[i % store.capacity], rows)
            assert_equal(found, case.row(jnp.float32(index)), f"L12 row {index} of {count}, where")
    again = store.put(store.put(state, None), rows)
    assert_equal(again, state, "L12 rows are put back as they were, and")


def _check_settle(case: _Case, state: ReplayState) -> None:
    """It keeps the structure; with nothing pending it changes nothing that is drawn."""
    settle = jax.jit(case.replay.settle)
    once = settle(state)
    assert_same_structure(once, state, "L12 settle keeps the state's structure")
    assert_equal(once.fixed, state.fixed, "L12 settle never writes data sets, and")
    for name, draw in case.draws.items():
        drawn = draw(once)[1]
        assert_equal(drawn, draw(state)[1], f"L12 nothing is pending; of {name!r}")
        assert_equal(draw(settle(once))[1], drawn, f"L12 settle twice is settle once; of {name!r}")


def _imagined(spec: EnvSpec, num: int) -> Transition:
    """Transitions [R] of reward MARK."""
    row = example_row(spec)
    stack = lambda x: jnp.broadcast_to(x, (num, *x.shape)).astype(jnp.float32)  # noqa: E731
    observation = jax.tree.map(stack, row.timestep.observation)
    action = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), row.action)
    ones = jnp.ones(num)
    return Transition(observation, action, MARK * ones, observation, ones, ones)


def _check_extend(case: _Case, state: ReplayState, imagined: PyTree) -> None:
    """Imagined rows wait in the counters; `settle` and `add` take them in."""
    replay = case.replay
    assert replay.extend is not None

    def has_mark(state: ReplayState) -> bool:
        return bool((np.asarray(case.draws["behaviour"](state)[1].reward) == MARK).any())

    counters = jax.jit(replay.extend)(state.counters, imagined)
    assert_same_structure(counters, state.counters, "L12 extend keeps the counters' structure")
    pending = state._replace(counters=counters)
    settled = jax.jit(replay.settle)(pending)
    assert has_mark(settled), "L12 settle takes in what extend left pending"
    added = jax.jit(replay.add)(pending, case.row(pending.position.astype(jnp.float32)))
    assert_same_structure(added, state, "L12 add keeps the state's structure")
    assert has_mark(added), "L12 add takes in what extend left pending"
    again = jax.jit(replay.settle)(settled)
    for name, draw in case.draws.items():
        found = draw(again)[1]
        assert_equal(found, draw(settled)[1], f"L12 settle twice is settle once; of {name!r}")


def _check_names(case: _Case, state: ReplayState) -> None:
    """An unknown stream is refused; without data sets there are none afterwards."""
    bare = state._replace(fixed={})
    row = case.row(jnp.float32(0))
    after = jax.eval_shape(case.replay.add, bare, row)
    assert after.fixed == {}, "L12 a replay adds no data set of its own"
    try:
        jax.eval_shape(lambda s: case.replay.sample(s, case.key, stream="no such stream"), state)
    except ValueError:
        return
    raise AssertionError("L12 a stream that the replay does not have is refused")
