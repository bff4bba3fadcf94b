"""A fork begins with its parent's checkpoint, replay included, and goes its own way."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import with_steps
from mbrl_jax.experiment.members import Members
from mbrl_jax.runs import checkpoint, layout, workdir
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import fork, run, trained
from tests import small
from tests.report import runs

pytestmark = pytest.mark.usefixtures("programs_kept")

ROOT = Path(__file__).resolve().parents[2]
AT, STEPS = 40, 60  # where it branches off, and where it ends


def experiment(*assignments):
    return config.override(with_steps(small.catch(), STEPS), assignments)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "parent"
    run.run(experiment(), path, seed=3, num_seeds=2)
    assert {AT, STEPS} <= set(checkpoint.complete(path))
    return path


def state_of(path, iteration):
    saved = workdir.read_config(path)
    programs = trained.make_programs(
        saved.experiment, trained.build(saved.experiment), saved.members
    )
    keys = saved.members.keys()
    return trained.restore_state(path, programs, keys, str(iteration)).state


def assert_equal(one, other):
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    plain = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(plain(a), plain(b)), one, other)


def branch(parent, child, found, step=AT):
    """Fork and train; the result."""
    called = fork.fork(fork.Origin(parent, step), child, found)
    return run.run(found, child, called.members.seed, called.members.num_seeds)


def test_an_unchanged_fork_ends_as_its_parent_bit_for_bit(parent, tmp_path):
    child = tmp_path / "child"
    branch(parent, child, experiment())
    assert_equal(state_of(parent, STEPS), state_of(child, STEPS))
    assert (parent / "metrics.jsonl").read_bytes() == (child / "metrics.jsonl").read_bytes()


def test_a_changed_fork_begins_alike_and_goes_its_own_way(parent, tmp_path):
    child, changed = tmp_path / "child", experiment("behaviour.entropy=0.5")
    fork.fork(fork.Origin(parent, AT), child, changed)
    assert layout.CONFIG not in {path.name for path in child.iterdir()}
    meta = json.loads((child / fork.META).read_text())
    assert meta["complete"] and len(meta["lineage"]) == 1
    link = meta["lineage"][0]
    assert link["parent"] == str(parent.resolve()) and link["step"] == AT
    assert link["changed"] == ["behaviour.entropy: 0.02 -> 0.5"]
    assert link["versions"]["jax"] and "git" in link["versions"]
    before = (parent / "metrics.jsonl").read_bytes()
    branch(parent, child, changed)  # finds the fork as it is
    assert_equal(state_of(parent, AT), state_of(child, AT))
    own, inherited = read_metrics(child), read_metrics(parent)
    shared = [row for row in inherited if row["step"] <= AT]
    assert own[: len(shared)] == shared and own[len(shared) :] != inherited[len(shared) :]
    assert [row["step"] for row in own] == [row["step"] for row in inherited]
    assert (parent / "metrics.jsonl").read_bytes() == before  # only read


def test_a_fork_of_a_fork_knows_both_and_may_be_longer(parent, tmp_path):
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    branch(parent, child, experiment())
    longer = with_steps(experiment(), STEPS + 20)
    branch(child, grandchild, longer, step=STEPS)
    lineage = fork.read_meta(grandchild)["lineage"]
    assert [link["step"] for link in lineage] == [AT, STEPS]
    assert read_metrics(grandchild)[-1]["step"] == STEPS + 20


def test_a_fork_that_was_killed_on_its_way_is_made_afresh(parent, tmp_path):
    child = tmp_path / "child"
    fork.fork(fork.Origin(parent, AT), child, experiment())
    meta = json.loads((child / fork.META).read_text())
    (child / fork.META).write_text(json.dumps(meta | {"complete": False}))
    shutil.rmtree(child / "checkpoints")
    (child / "metrics.jsonl").write_text("{")
    branch(parent, child, experiment())
    assert_equal(state_of(parent, STEPS), state_of(child, STEPS))


@pytest.mark.parametrize(
    ("change", "step", "words"),
    [
        ((), AT + 1, f"keeps no checkpoint of step {AT + 1}: it has step "),
        (("model.core.width=9",), AT, "need a state of other shapes"),
        (("replay.capacity=99",), AT, "replay.storage.timestep.observation: float32 (10000, 1"),
        (("phases.2.iterations=1",), STEPS, "lies beyond the"),
    ],
)
def test_what_cannot_be_forked_is_refused(parent, tmp_path, change, step, words):
    with pytest.raises(ConfigError) as caught:
        fork.fork(fork.Origin(parent, step), tmp_path / "child", experiment(*change))
    assert words in str(caught.value)
    assert not (tmp_path / "child").exists()


def test_another_run_is_never_overwritten(parent, tmp_path):
    child = tmp_path / "child"
    fork.fork(fork.Origin(parent, AT), child, experiment())
    with pytest.raises(ConfigError, match="was forked otherwise"):
        fork.fork(fork.Origin(parent, AT), child, experiment("behaviour.entropy=0.5"))
    with pytest.raises(ConfigError, match="which is no fork"):
        fork.fork(fork.Origin(parent, AT), parent, experiment())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lineage": [3], "complete": true}'])
def test_a_damaged_lineage_is_refused(tmp_path, text):
    (tmp_path / fork.META).write_text(text)
    with pytest.raises(ConfigError, match="is no lineage"):
        fork.read_meta(tmp_path)


@pytest.mark.parametrize(
    ("text", "origin"),
    [("runs/a@300", ("runs/a", 300)), ("a@b@0", ("a@b", 0)), ("@7", (".", 7))],
)
def test_an_origin_is_read(text, origin):
    assert fork.parse_origin(text) == (Path(origin[0]), origin[1])


@pytest.mark.parametrize("text", ["runs/a", "runs/a@", "runs/a@-3", "a@1e3", "a@²"])
def test_an_origin_without_a_step_is_refused(text):
    with pytest.raises(ConfigError, match="should read WORKDIR@STEP"):
        fork.parse_origin(text)


def launch(*flags):
    command = [sys.executable, "-m", "launch.train", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_same_fork_goes_on_with_more_steps(parent, tmp_path):
    child, longer = tmp_path / "child", with_steps(experiment("behaviour.entropy=0.5"), STEPS + 20)
    shorter = experiment("behaviour.entropy=0.5")
    branch(parent, child, shorter)
    for _ in range(2):  # the second time nothing is left to do
        branch(parent, child, longer)
        assert read_metrics(child)[-1]["step"] == STEPS + 20
    (link,) = fork.read_meta(child)["lineage"]
    assert len(link["changed"]) == 2  # the entropy, and the last phase
    with pytest.raises(ConfigError, match="was forked otherwise"):
        fork.fork(fork.Origin(parent, AT), child, experiment("behaviour.entropy=0.6"))


def freeze(path, iteration, seeds):
    """Write into a checkpoint that seeds are frozen, as training would."""
    folder = path / "checkpoints" / str(iteration)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "manifest.json").unlink()
    meta["frozen"] = {str(seed): {"step": 30, "metric": "model/reward"} for seed in seeds}
    checkpoint.complete_folder(
        folder.rename(folder.with_name(f"{iteration}.tmp")), json.dumps(meta)
    )


def test_a_fork_that_would_learn_nothing_is_refused(parent, tmp_path):
    path = tmp_path / "parent"
    shutil.copytree(parent, path)
    freeze(path, STEPS, (0, 1))
    with pytest.raises(ConfigError) as caught:
        fork.fork(fork.Origin(path, STEPS), tmp_path / "child", with_steps(experiment(), 80))
    assert "all seeds are frozen there (model/reward was not finite)" in str(caught.value)
    assert re.search(rf"fork step .*{AT} instead", str(caught.value))
    assert not (tmp_path / "child").exists()


def test_frozen_seeds_are_named_before_a_run_goes_on(parent, tmp_path, capsys):
    path = tmp_path / "parent"
    shutil.copytree(parent, path)
    freeze(path, STEPS, (1,))
    run.run(with_steps(experiment(), STEPS + 10), path, seed=3, num_seeds=2)
    said = capsys.readouterr().err
    assert "1 of 2 seeds are frozen and learn no more: seed 1 at step 30 (model/reward)" in said


def test_a_number_that_varies_inside_the_parent_cannot_be_changed(tmp_path):
    inside = (("behaviour.entropy", (0.001, 0.01)),)
    runs.write(tmp_path / "parent", experiment(), [0.0, 0.0], Members(3, 1, inside))
    changed = experiment("behaviour.entropy=0.5")
    with pytest.raises(ConfigError) as caught:
        fork.fork(fork.Origin(tmp_path / "parent", AT), tmp_path / "child", changed)
    assert "behaviour.entropy is 0.001, 0.01 from member to member" in str(caught.value)
    assert not (tmp_path / "child").exists()


@pytest.mark.slow
def test_the_command_line_takes_experiment_and_seeds_from_the_parent(parent, tmp_path):
    flags = (f"--fork={parent}@{AT}", f"--workdir={tmp_path}/child", "--debug")
    refused = launch(*flags, "--num_seeds=3")
    assert "a fork goes on with the seeds of its parent" in refused.stderr
    listed = launch(f"--fork={parent}", f"--workdir={tmp_path}/child")
    assert f"{AT}, {STEPS}" in listed.stderr
    done = launch(*flags, "--set=behaviour.entropy=0.5")
    assert done.returncode == 0, done.stderr
    saved = workdir.read_config(tmp_path / "child")
    assert (saved.members.seed, saved.members.num_seeds, saved.experiment.behaviour.entropy) == (
        3,
        2,
        0.5,
    )
