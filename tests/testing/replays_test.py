"""Law L12: replays keep it, and broken ones are found; samplers of the newest rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import testing
from mbrl_jax.agents import branched
from mbrl_jax.replay import dyna, fixed, mixture, ring, samplers
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    MultiDiscreteSpec,
    Windows,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(2))
NAMED = EnvSpec(
    DictSpec((("camera", ArraySpec((2, 2), "uint8")), ("task", ArraySpec((), "int32")))),
    MultiDiscreteSpec((2, 3)),
    extras=("cost",),
)
RING = ring.Config(capacity=9, batch_size=4, length=3)
DYNAMIC = dataclasses.replace(RING, sampler=samplers.DynamicFrequency())
BUFFER = dyna.Config(capacity=12, batch_size=4, num_batches=3, real_fraction=0.5)
BRANCHED = branched.Config(num_starts=2, branch_length=3, buffer=BUFFER)


@pytest.mark.parametrize(
    "config, spec, options",
    [
        (RING, NAMED, {"streams": {"imagine": Windows(5, 2)}}),
        (DYNAMIC, EnvSpec(ArraySpec((), "bool"), DiscreteSpec(3)), {"num_envs": 3}),
        (RING, SPEC, {"agent": BRANCHED}),
        (fixed.Config(batch_size=4, length=3), NAMED, {"streams": {"imagine": Windows(5, 2)}}),
        (mixture.Config(share=0.5, online=RING), NAMED, {"streams": {"imagine": Windows(5, 2)}}),
    ],
    ids=["ring", "dynamic", "dyna", "fixed", "mixture"],
)
def test_replay_keeps_the_law(config, spec, options):
    testing.check_replay(config, spec, **options)


# ---------------------------------------------------------------------------------- broken replays


@dataclasses.dataclass(frozen=True)
class Broken(ring.Config):
    """A ring with a function spoiled."""

    spoil: Any = None  # (replay) -> changes

    def make(self, num_envs, streams=()):
        """As the ring does, but for what is broken."""
        replay = super().make(num_envs, streams)
        return replay._replace(**self.spoil(replay))


def _early(replay):
    """When the ring has wrapped, windows reach a row too far."""

    def sample(state, key, *, stream):
        position = state.position + (state.position > 9)
        return replay.sample(state._replace(position=position), key, stream=stream)

    return {"sample": sample}


def _mixes(replay):
    """Actions of another window."""

    def sample(state, key, *, stream):
        counters, rows, indices = replay.sample(state, key, stream=stream)
        return counters, rows._replace(action=jnp.roll(rows.action, 1, axis=1)), indices

    return {"sample": sample}


def _backwards(replay):
    def sample(state, key, *, stream):
        counters, rows, indices = replay.sample(state, key, stream=stream)
        return counters, jax.tree.map(lambda x: x[:, ::-1], rows), indices

    return {"sample": sample}


def _counts(replay):
    def sample(state, key, *, stream):
        _, rows, indices = replay.sample(state, key, stream=stream)
        return jnp.zeros(3), rows, indices

    return {"sample": sample}


def _serves_all(replay):
    return {"sample": lambda state, key, *, stream: replay.sample(state, key, stream="model")}


def _writes_data(replay):
    def add(state, rows):
        state = replay.add(state, rows)
        fixed = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), state.fixed)
        return state._replace(fixed=fixed)

    return {"add": add}


def _drops_data(replay):
    """Forgets the data sets when it settles."""
    return {"settle": lambda state: state._replace(fixed=jax.tree.map(jnp.zeros_like, state.fixed))}


def _stalls(replay):
    """Position counts every second row."""

    def add(state, rows):
        after = replay.add(state, rows)
        return after._replace(position=after.position - after.position % 2)

    return {"add": add}


def _puts_elsewhere(replay):
    rolled = lambda state: jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), state.storage)  # noqa: E731
    return {"rows": replay.rows._replace(get=rolled)}


def _forgets(replay):
    put = lambda state, rows: state  # noqa: E731
    return {
        "rows": replay.rows._replace(
            put=lambda state, rows: put(state, rows)._replace(position=state.position + 1)
        )
    }


def _shifts(replay):
    """Each settle makes the ring older by a row."""

    def settle(state):
        storage = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), state.storage)
        return state._replace(storage=storage)

    return {"settle": settle}


SPOILED = {
    "early": (_early, "not consecutive"),
    "mixed": (_mixes, "belong together"),
    "backwards": (_backwards, "not consecutive"),
    "counters": (_counts, "keeps the counters"),
    "any stream": (_serves_all, "does not have is refused"),
    "written data": (_writes_data, "data sets are never written"),
    "dropped data": (_drops_data, "settle never writes data"),
    "position": (_stalls, "position counts"),
    "slots": (_puts_elsewhere, "L12 row"),
    "put": (_forgets, "put back"),
    "settle": (_shifts, "nothing is pending"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_broken_replays_are_found(name):
    spoil, message = SPOILED[name]
    broken = Broken(capacity=9, batch_size=4, length=3, spoil=spoil)
    with pytest.raises(AssertionError, match=message):
        testing.check_replay(broken, SPEC)


@dataclasses.dataclass(frozen=True)
class Loses(branched.Config):
    """A branched agent whose buffer loses what is pending, in one of two ways."""

    name: str = "settle"

    def make_replay(self, replay, num_envs, spec):
        """As `branched` does, but for what is broken."""
        made = super().make_replay(replay, num_envs, spec)
        lose = lambda state: state._replace(  # noqa: E731
            counters=state.counters._replace(is_pending=jnp.zeros((), bool))
        )
        whole = getattr(made, self.name)
        return made._replace(**{self.name: lambda state, *rows: whole(lose(state), *rows)})


@pytest.mark.parametrize("name", ["settle", "add"])
def test_imagined_rows_that_get_lost_are_found(name):
    agent = Loses(num_starts=2, branch_length=3, buffer=BUFFER, name=name)
    with pytest.raises(AssertionError, match=f"{name} takes in what extend left"):
        testing.check_replay(RING, SPEC, agent=agent)


# --------------------------------------------------------------------------- samplers of few rows


@dataclasses.dataclass(frozen=True)
class Newest:
    """The newest complete window of a lane; or, broken, the one before it."""

    back: int = 0

    def make(self):
        """Build the sampler."""

        def sample(counters, key, window, length, num, stream):
            del stream
            slot = jnp.full((num,), (window.position - length - self.back) % window.capacity)
            return counters, slot, jax.random.randint(key, (num,), 0, window.num_envs)

        return samplers.Sampler(lambda capacity, num_envs: (), sample)

    def least_rows(self, length, num, num_envs):
        """One window."""
        del num, num_envs
        return length + self.back


def test_samplers_of_the_newest_rows_need_not_cover():
    testing.check_sampler(Newest(), covers=False)
    with pytest.raises(AssertionError, match="some windows are never drawn"):
        testing.check_sampler(Newest())
    with pytest.raises(AssertionError, match="newest windows are never drawn"):
        testing.check_sampler(Newest(back=1), covers=False)


def test_a_sampler_that_crosses_the_write_head_is_found():
    with pytest.raises(AssertionError, match="is no window"):
        testing.check_sampler(Newest(back=-1), covers=False)
