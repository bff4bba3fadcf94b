"""What goes wrong in the middle of a run: a seed not finite, lanes that crash, full disks."""

import contextlib
import dataclasses
import errno
import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import stepped
from mbrl_jax.experiment.members import Members
from mbrl_jax.keys import at, named
from mbrl_jax.loops import fused, host, seeds
from mbrl_jax.runs import workdir
from mbrl_jax.runs.metrics import MetricsWriter, read_metrics
from mbrl_jax.train import run, trained, training
from mbrl_jax.train.preemption import Preempted
from mbrl_jax.train.progress import Quiet
from mbrl_jax.types import HostEnvironments
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")

EXPERIMENT = dataclasses.replace(
    small.catch(), log_every=5, checkpoint_every=10, eval_episodes=1, eval_max_steps=5
)


def restored(path):
    """The newest checkpoint of a run, as NumPy's arrays."""
    saved = workdir.read_config(path)
    programs = trained.make_programs(
        saved.experiment, trained.build(saved.experiment), saved.members
    )
    found = trained.restore_state(path, programs, saved.members.keys())
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    plain = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x)
    return found._replace(state=jax.tree.map(plain, found.state))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Hearing(Quiet):
    """Keeps the warnings."""

    def __init__(self):
        self.said = []

    def warn(self, sentence):
        """Keep it."""
        self.said.append(sentence)


# ------------------------------------------------------------------- a seed that is not finite

BROKEN, WHEN = 1, 21  # in the update after row 21, the rewards that seed 1 replays are no numbers


def _poisoned(experiment, reward):
    """`trained.build_system` with an agent that meets such a reward once."""
    system = trained.build(experiment)
    keys = seeds.seed_keys(0, 3)
    key = at(named(keys[BROKEN], "train"), "learn", WHEN)

    def update(state, own_key, replay, iteration):
        hit = (jax.random.key_data(own_key) == jax.random.key_data(key)).all()
        rows = replay.storage
        rewards = rows.timestep.reward + jnp.where(hit, reward, 0.0)
        rows = rows._replace(timestep=rows.timestep._replace(reward=rewards))
        return system.agent.update(state, own_key, replay._replace(storage=rows), iteration)

    agent = system.agent._replace(updates={"all": update})
    entry = fused.make_entry_points(system.env, agent, system.replay, experiment.num_envs)
    return system._replace(agent=agent, entry=entry)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    path = tmp_path_factory.mktemp("healthy")
    run.run(EXPERIMENT, path, num_seeds=3)
    return path


@pytest.mark.parametrize(
    "reward",
    [np.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (np.inf, -np.inf))],
)
def test_a_seed_freezes_by_itself_and_says_what_was_not_finite_and_when(
    tmp_path, monkeypatch, healthy, reward
):
    monkeypatch.setattr(run, "build_system", functools.partial(_poisoned, reward=reward))
    hearing = Hearing()
    result = run.run(EXPERIMENT, tmp_path, num_seeds=3, reporter=hearing)
    assert hearing.said == [
        f"seed {BROKEN}: model/reward was not finite at step {WHEN}; its agent stays at the last "
        "good value, the other seeds go on"
    ]
    assert result.frozen_at == [-1, WHEN, -1]
    assert result.causes == {str(BROKEN): "model/reward"}
    found, expected = restored(tmp_path), restored(healthy)
    assert found.meta["frozen"] == {str(BROKEN): {"step": WHEN, "metric": "model/reward"}}
    for seed in (0, 2):
        assert_equal(*(jax.tree.map(lambda x, i=seed: x[i], s.state) for s in (found, expected)))
    rows, others = (
        [r for r in read_metrics(p) if r["seed"] != BROKEN] for p in (tmp_path, healthy)
    )
    assert rows == others
    assert "agent/cause" not in rows[-1]


# ------------------------------------------------------------------------------- lanes that crash


def _die():
    raise RuntimeError("the pool died\nand more")


def _on_host(experiment, box):
    """`trained.build_system` with the environment outside of jit; it fails when the box says so."""
    system = trained.build(experiment)

    def open_lanes(env, lane_seeds, *, evaluation):
        lanes = stepped.open_lanes(env, lane_seeds, evaluation=evaluation)

        def receive():
            box["left"] -= not evaluation
            if box["left"] == 0:
                box.get("then", _die)()
            return lanes.receive()

        return lanes._replace(receive=receive)

    env = HostEnvironments(system.env.spec, functools.partial(open_lanes, system.env))
    parts = env, system.agent, system.world_model, system.replay
    entry = host.make_entry_points(*parts, experiment.num_envs)
    return system._replace(env=env, entry=entry)


def test_a_signal_while_lanes_step_lets_the_chunk_end(tmp_path, monkeypatch):
    box = {"left": 17, "then": lambda: os.kill(os.getpid(), signal.SIGTERM)}
    monkeypatch.setattr(run, "build_system", functools.partial(_on_host, box=box))
    with pytest.raises(Preempted, match=r"^SIGTERM, saved at step \d+ of"):
        run.run(EXPERIMENT, tmp_path, num_seeds=2)


def test_lanes_that_crash_leave_the_last_chunk_saved(tmp_path, monkeypatch):
    box = {"left": 19}
    monkeypatch.setattr(run, "build_system", functools.partial(_on_host, box=box))
    saved, save = [], training.checkpoint.Saver.save

    def noting(self, iteration, taken, replay, meta):
        saved.append((iteration, taken))
        save(self, iteration, taken, replay, meta)

    monkeypatch.setattr(training.checkpoint.Saver, "save", noting)
    with pytest.raises(training.EnvironmentFailed) as failed:
        run.run(EXPERIMENT, tmp_path, num_seeds=2)
    assert str(failed.value) == (
        "the environments failed (the pool died); step 15 is saved, and the same command goes on "
        "from there"
    )
    assert [iteration for iteration, _ in saved] == [10, 15]
    system = _on_host(EXPERIMENT, {"left": -1})
    programs = trained.make_programs(EXPERIMENT, system, Members(0, 2))
    found = trained.restore_state(tmp_path, programs, seeds.seed_keys(0, 2))
    assert found.iteration == 15 and found.meta["rows"] == 15
    assert (np.asarray(found.state.replay.position) == 15).all()
    assert np.asarray(found.state.replay.storage.timestep.is_first).sum() >= 2
    box["left"] = -1
    hearing = Hearing()
    run.run(EXPERIMENT, tmp_path, num_seeds=2, reporter=hearing)
    steps = [row["step"] for row in read_metrics(tmp_path) if row["seed"] == 0]
    assert steps == sorted(set(steps)) and steps[-1] == EXPERIMENT.steps
    rows = [s for s, _ in saved if s > 15]
    assert rows[-1] == EXPERIMENT.iterations and not hearing.said


def test_lanes_that_crash_at_once_leave_nothing_to_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "build_system", functools.partial(_on_host, box={"left": 2}))
    with pytest.raises(training.EnvironmentFailed, match="the same command begins afresh"):
        run.run(EXPERIMENT, tmp_path, num_seeds=2)
    assert not training.checkpoint.complete(tmp_path)


# ---------------------------------------------------------------------------------- a full disk


class _Full:
    """A file on a disk that takes the first half of what is written."""

    def __init__(self, file):
        self._file, self._is_full = file, False

    def write(self, text):
        self._file.write(text[: len(text) // 2])
        self._is_full = True

    def flush(self):
        self._file.flush()
        if self._is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
        with contextlib.closing(self._file):
            self.flush()


def test_a_full_disk_at_a_row_of_metrics_keeps_the_checkpoint(tmp_path, monkeypatch, healthy):
    write = MetricsWriter.write

    def filling(self, step, rows):
        if step == 25:
            self._file = _Full(self._file)
        write(self, step, rows)

    monkeypatch.setattr(MetricsWriter, "write", filling)
    with pytest.raises(OSError, match="No space left"):
        run.run(EXPERIMENT, tmp_path, num_seeds=3)
    assert training.checkpoint.latest_iteration(tmp_path) == 20
    assert not (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    monkeypatch.setattr(MetricsWriter, "write", write)
    run.run(EXPERIMENT, tmp_path, num_seeds=3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (healthy / "metrics.jsonl").read_bytes()
    assert_equal(restored(tmp_path).state, restored(healthy).state)
