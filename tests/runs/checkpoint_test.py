"""Saves: the ring comes back bit for bit from its segments, and only good checkpoints are used."""

import errno
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs.spec import example_row
from mbrl_jax.errors import ConfigError
from mbrl_jax.loops import seeds
from mbrl_jax.loops.steps import TrainState
from mbrl_jax.replay import ring
from mbrl_jax.runs import checkpoint, files, layout, replay_log, restore
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec, Step, Timestep

SEEDS, LANES, CAPACITY = 8, 2, 7
SPEC = EnvSpec(ArraySpec((2,), "uint8"), BoundedSpec(1))
REPLAY = ring.Config(capacity=CAPACITY, batch_size=2, length=2).make(LANES)


def fresh(key):
    """State of one seed: a key, a small integer, a ring."""
    return TrainState(
        key, jnp.zeros((), jnp.bfloat16), REPLAY.init(example_row(SPEC)), (), (), (), ()
    )


def one_row(state, index):
    """The same after one more row, which depends on the seed."""
    value = index + jax.random.uniform(state.key, (LANES,))
    no = jnp.zeros(LANES, bool)
    seen = (jnp.stack([value, -value], -1) * 10).astype(jnp.uint8)
    row = Step(Timestep(seen, value, no, no, ~no), value[:, None])
    return state._replace(agent=state.agent + 1, replay=REPLAY.add(state.replay, row))


INIT = seeds.over_seeds(fresh, SEEDS)
NEXT = seeds.over_seeds(one_row, SEEDS, num_shared=1, donate=(0,))


def meta(iteration, score=None):
    return {"iteration": iteration, "rows": iteration, "score": score, "config": "mine"}


def check(found):
    if found["config"] != "mine":
        raise ConfigError("it belongs to another configuration")


def saver(workdir, every=3, restored=(0, 0, ()), store=REPLAY.rows):
    return checkpoint.Saver(workdir, SEEDS, store, every, restored)


def wanted(sharding=None, store=REPLAY.rows):
    shapes = jax.eval_shape(INIT, seeds.seed_keys(0, SEEDS))
    template = checkpoint.template_like(shapes, sharding or seeds.seed_sharding(SEEDS))
    return restore.Wanted(template, store, SEEDS, check)


def plain(tree):
    return jax.tree.map(
        lambda x: np.array(jax.random.key_data(x) if x.dtype == wanted().template.key.dtype else x),
        tree,
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def train(workdir, steps, saves, scores=None, **kwargs):
    """`steps` rows with saves after some of them; the states at the saves."""
    state, kept = INIT(seeds.seed_keys(0, SEEDS)), {}
    with saver(workdir, **kwargs) as one:
        for step in range(1, steps + 1):
            state = NEXT(state, jnp.int32(step))
            if step in saves:
                kept[step] = plain(state)
                one.save(step, one.take(state), state.replay, meta(step, (scores or {}).get(step)))
    return kept


@pytest.mark.parametrize("store", [REPLAY.rows, None], ids=["segments", "whole"])
@pytest.mark.parametrize("saves", [[1], [2, 3], [3, 6, 9, 12], [3, 9, 10, 23], [7, 14], [23]])
def test_a_state_comes_back_bit_for_bit_wherever_the_write_head_is(tmp_path, saves, store):
    kept = train(tmp_path, 24, saves, store=store)  # the buffers of each save are given away next
    for step in saves[-checkpoint.KEEP :]:
        found = restore.restore(tmp_path, wanted(store=store), str(step))
        assert found.iteration == step and not found.refused
        assert_equal(found.state, kept[step])
        assert found.state.replay.position.sharding.device_set == set(jax.devices())


def test_a_save_writes_the_rows_that_are_new_and_no_others(tmp_path):
    train(tmp_path, 12, [3, 5, 12])
    names = {path.name for path in (tmp_path / replay_log.FOLDER).iterdir()}
    # The ring at 12 begins with row 5; that at 5, which is kept too, with row 0.
    assert names == {
        f"rows_{a}_{b}_seeds_0_8.npz" for a, b in [(0, 3), (3, 5), (5, 8), (8, 11), (11, 12)]
    }
    with np.load(tmp_path / replay_log.FOLDER / "rows_3_5_seeds_0_8.npz") as data:
        assert data["timestep.reward"].shape == (SEEDS, 2, LANES)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_checkpoint_of_eight_devices_is_restored_on_fewer(tmp_path, devices):
    kept = train(tmp_path, 9, [9])
    mesh = jax.sharding.Mesh(jax.devices()[:devices], (seeds.AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(seeds.AXIS))
    found = restore.restore(tmp_path, wanted(sharding))
    assert_equal(found.state, kept[9])
    assert len(found.state.agent.sharding.device_set) == devices


def test_the_newest_and_the_best_are_kept_with_the_segments_they_need(tmp_path):
    steps = range(3, 25, 3)
    kept = train(tmp_path, 24, steps, scores={step: -abs(step - 9) for step in steps})
    assert checkpoint.complete(tmp_path) == [24, 21, 9]
    found = restore.restore(tmp_path, wanted(), "best")
    assert found.iteration == 9
    assert_equal(found.state, kept[9])
    needed = {
        s.file for i in (24, 21, 9) for s in found.segments + checkpoint.segments_of(tmp_path, i)
    }
    assert needed == {path.name for path in (tmp_path / replay_log.FOLDER).iterdir()}
    assert "rows_9_12_seeds_0_8.npz" not in needed


def test_another_checkpoint_is_asked_for_by_a_name_that_exists(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        restore.restore(tmp_path, wanted())
    train(tmp_path, 6, [3, 6])
    assert restore.restore(tmp_path, wanted(), "best").iteration == 6  # no returns yet
    with pytest.raises(ConfigError, match="choose newest, best, or one of 6, 3"):
        restore.restore(tmp_path, wanted(), "4")


def test_a_restored_run_goes_on_and_cleans_what_is_newer(tmp_path):
    whole = train(tmp_path / "whole", 15, [3, 6, 9, 12, 15])
    path = tmp_path / "parts"
    train(path, 9, [3, 6, 9])
    _damage(path, 9, "meta.json")
    found = restore.restore(path, wanted())
    restore.clean(path, found.iteration)
    assert found.iteration == 6 and "rows_6_9_seeds_0_8.npz" not in os.listdir(path / "replay")
    assert (path / layout.CHECKPOINTS / "refused_9").is_dir()
    state = found.state
    with saver(path, restored=(6, found.meta["rows"], found.segments)) as one:
        for step in range(7, 16):
            state = NEXT(state, jnp.int32(step))
            if step % 3 == 0:
                one.save(step, one.take(state), state.replay, meta(step))
    assert_equal(restore.restore(path, wanted()).state, whole[15])


# ------------------------------------------------------------------------------ what is not used


def _folder(workdir, iteration):
    return workdir / layout.CHECKPOINTS / str(iteration)


def _damage(workdir, iteration, name):
    """Cut the last byte off a file."""
    (path,) = _folder(workdir, iteration).rglob(name)
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _foreign(workdir, iteration):
    folder = _folder(workdir, iteration)
    _rewrite(folder / layout.META, config="yours")
    sums = files.checksums(folder)
    _rewrite(
        folder / checkpoint.MANIFEST,
        files={k: v for k, v in sums.items() if k != checkpoint.MANIFEST},
    )


FAULTS = {
    "truncated": (lambda w: _damage(w, 6, "_METADATA"), "_METADATA is damaged or not whole"),
    "half-written": (
        lambda w: (_folder(w, 6) / checkpoint.MANIFEST).unlink(),
        "half-written, without manifest.json",
    ),
    "empty": (
        lambda w: (_folder(w, 6) / checkpoint.MANIFEST).write_text(""),
        "it is damaged",
    ),
    "flipped": (
        lambda w: _flip(next(p for p in _folder(w, 6).glob("state_0/ocdbt*/d/*"))),
        "is damaged or not whole",
    ),
    "foreign version": (
        lambda w: _rewrite(_folder(w, 6) / checkpoint.MANIFEST, format=99),
        "it has format 99, and this version reads 1",
    ),
    "foreign configuration": (lambda w: _foreign(w, 6), "it belongs to another configuration"),
    "rows truncated": (
        lambda w: os.truncate(w / "replay" / "rows_3_6_seeds_0_8.npz", 100),
        "has 100 bytes and not",
    ),
    "rows flipped": (
        lambda w: _flip(w / "replay" / "rows_3_6_seeds_0_8.npz"),
        "it is damaged",
    ),
    "rows missing": (
        lambda w: (w / "replay" / "rows_3_6_seeds_0_8.npz").unlink(),
        "it is damaged",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_checkpoint_is_refused_with_a_sentence_and_the_older_one_used(tmp_path, fault):
    kept = train(tmp_path, 6, [3, 6])
    cause, sentence = FAULTS[fault]
    cause(tmp_path)
    found = restore.restore(tmp_path, wanted())
    assert found.iteration == 3
    assert_equal(found.state, kept[3])
    (said,) = found.refused
    assert said.startswith("the checkpoint of iteration 6 in") and sentence in said
    assert "iteration 3 is used" in said and "\n" not in said


def test_where_none_can_be_used_that_is_said(tmp_path):
    train(tmp_path, 6, [3, 6])
    for iteration in (3, 6):
        _damage(tmp_path, iteration, "meta.json")
    with pytest.raises(ConfigError, match=r"can be used \(iteration 6: meta.json is damaged"):
        restore.restore(tmp_path, wanted())


def test_litter_of_killed_saves_is_removed(tmp_path):
    train(tmp_path, 6, [3, 6])
    before = sorted(os.listdir(tmp_path / "replay"))
    (tmp_path / layout.CHECKPOINTS / "9.tmp" / "state_0").mkdir(parents=True)
    (tmp_path / "replay" / "rows_6_9_seeds_0_8.npz").write_bytes(b"half")
    (tmp_path / "replay" / "rows_6_9_seeds_0_8.npz.tmp").write_bytes(b"half")
    restore.clean(tmp_path, 6)
    assert sorted(os.listdir(tmp_path / layout.CHECKPOINTS)) == ["3", "6"]
    assert sorted(os.listdir(tmp_path / "replay")) == before
    restore.clean(tmp_path / "new", None)  # nothing there yet


# ------------------------------------------------------------------------------------- full disks


def test_a_save_that_fails_is_told_and_leaves_the_one_before(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train(tmp_path, 3, [3])
    found = restore.restore(tmp_path, wanted())
    monkeypatch.setattr(checkpoint, "save_leaves", full)
    with (
        pytest.raises(checkpoint.SaveError, match=r"iteration 6 could not be written \(No space"),
        saver(tmp_path, restored=(3, 3, found.segments)) as one,
    ):
        one.save(6, one.take(found.state), found.state.replay, meta(6))
    assert checkpoint.complete(tmp_path) == [3]
    assert os.listdir(tmp_path / layout.CHECKPOINTS) == ["3"]
    assert restore.restore(tmp_path, wanted()).iteration == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_on_a_full_disk_the_last_checkpoint_stays_intact(small_disk):
    kept = train(small_disk, 6, [3, 6])
    found = restore.restore(small_disk, wanted())
    fill = pytest.raises(OSError, match="No space")
    with (small_disk / "filler").open("wb", buffering=0) as file, fill:
        while True:
            file.write(bytes(1000))
    state = NEXT(found.state, jnp.int32(7))
    with (
        pytest.raises(checkpoint.SaveError, match=r"iteration 7 could not be .* 6 is intact"),
        saver(small_disk, restored=(6, 6, found.segments)) as one,
    ):
        one.save(7, one.take(state), state.replay, meta(7))
    found = restore.restore(small_disk, wanted())
    assert found.iteration == 6 and not found.refused
    assert_equal(found.state, kept[6])


# ---------------------------------------------------------------------------------------- the lock


def test_one_process_trains_in_a_directory(tmp_path):
    taken = pytest.raises(ConfigError, match=f"trained by process {os.getpid()} on ")
    with files.locked(tmp_path), taken, files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass


def test_a_crash_releases_the_lock(tmp_path):
    code = (
        "import os, pathlib, signal\n"
        "from mbrl_jax.runs import files\n"
        f"with files.locked(pathlib.Path({str(tmp_path)!r})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert "process" in (tmp_path / layout.LOCK).read_text()
    with files.locked(tmp_path):
        pass


# --------------------------------------------------------------------------------------- counters


def test_rows_past_two_to_the_31_are_saved_in_their_slots(tmp_path):
    top = 2**31 - 1
    position = jnp.int32(top // CAPACITY * CAPACITY - 4)
    state = INIT(seeds.seed_keys(0, SEEDS))
    state = state._replace(
        replay=state.replay._replace(position=jnp.broadcast_to(position, (SEEDS,)))
    )
    rows = int(position)  # what the host counts goes on; the position falls back to the capacity
    state = jax.device_put(state, seeds.seed_sharding(SEEDS))
    advance = functools.partial(meta, 9)
    with saver(tmp_path, every=4, restored=(0, rows, ())) as one:
        for step in range(1, 10):
            state = NEXT(state, jnp.int32(step))
            if step in (4, 8, 9):
                now = advance() | {"rows": rows + step, "iteration": step}
                one.save(step, one.take(state), state.replay, now)
    assert (np.asarray(state.replay.position) == CAPACITY + 5).all()
    assert rows + 9 > 2**31 - 8
    assert_equal(restore.restore(tmp_path, wanted()).state, state)
