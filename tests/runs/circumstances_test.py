"""What numbers depend on beside the configuration: recorded, compared at resume, and named."""

import dataclasses
import json
import sys

import jax
import pytest

import mbrl_jax
from launch import flags
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.experiment import with_settings, with_steps
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import records
from mbrl_jax.runs import checkpoint, circumstances, restore, workdir
from tests import small

OWN = """
import dataclasses
import tuned
from mbrl_jax.envs import gymnax
@dataclasses.dataclass(frozen=True)
class Config:
    name: str = tuned.NAME
    def make(self):
        return gymnax.Config(self.name).make()
"""


@pytest.fixture
def run_of_own(tmp_path, monkeypatch, programs_kept):
    """(experiment whose environment lies in a file of its own, workdir with 20 steps)."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_env", "tuned"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "tuned.py").write_text("NAME = 'Catch-bsuite'\n")
    (tmp_path / "own_env.py").write_text(OWN)
    import own_env

    experiment = dataclasses.replace(small.catch(), env=own_env.Config())
    mbrl_jax.run(with_steps(experiment, 20), tmp_path / "run")
    return experiment, tmp_path / "run"


def meta_of(path):
    (newest, *_) = checkpoint.complete(path)
    return json.loads((path / "checkpoints" / str(newest) / "meta.json").read_text())


def test_an_environment_that_was_edited_is_named_at_resume(run_of_own, tmp_path, capsys):
    experiment, path = run_of_own
    assert set(meta_of(path)["files"]) == {"own_env.py", "tuned.py"}
    (tmp_path / "tuned.py").write_text("NAME = 'Catch-bsuite'  # easier\n")
    mbrl_jax.run(with_steps(experiment, 40), path)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "environment's own code has changed" in said and "tuned.py" in said
    assert "own_env.py" not in said
    (entry,) = meta_of(path)["later"]
    assert entry["iteration"] * experiment.num_envs == 20
    assert "tuned.py" in " ".join(records.read_run(path).notes)
    mbrl_jax.run(with_steps(experiment, 60), path)
    assert not capsys.readouterr().err


def test_another_version_of_a_package_is_named(run_of_own, monkeypatch, capsys):
    experiment, path = run_of_own
    found = circumstances.runtime.versions()
    monkeypatch.setattr(circumstances.runtime, "versions", lambda: found | {"gymnax": "9.9"})
    mbrl_jax.run(with_steps(experiment, 40), path)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"gymnax {found['gymnax']} -> 9.9" in said and "jaxlib" not in said
    assert meta_of(path)["versions"] == found


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("jax_threefry_partitionable", False, "JAX_THREEFRY_PARTITIONABLE=1"),
        ("jax_default_prng_impl", "rbg", "JAX_DEFAULT_PRNG_IMPL=threefry2x32"),
    ],
)
def test_other_settings_are_named_and_nothing_is_lost(run_of_own, name, value, told):
    experiment, path = run_of_own
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        with pytest.raises(restore.OtherSettings, match=told) as error:
            mbrl_jax.run(with_steps(experiment, 40), path)
    finally:
        jax.config.update(name, before)
    assert "remove" not in str(error.value)
    mbrl_jax.run(with_steps(experiment, 40), path)


def test_a_checkpoint_without_the_record_compares_nothing_and_stays(run_of_own):
    experiment, path = run_of_own
    meta = {k: v for k, v in meta_of(path).items() if k not in ("settings", "files", "versions")}
    with jax.threefry_partitionable(False):
        gone_on, said = circumstances.gone_on(path, meta, experiment)
    assert not said and len(gone_on["later"]) == 1


def test_the_advice_for_a_whole_checkpoint_destroys_nothing(run_of_own, tmp_path):
    experiment, path = run_of_own
    other = with_settings(experiment, ["behaviour.entropy=0.5"])
    config = json.loads((path / "config.json").read_text())
    config["experiment"]["behaviour"]["entropy"] = 0.5
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="choose another workdir") as error:
        mbrl_jax.run(with_steps(other, 40), path)
    assert "folder away" not in str(error.value)


def test_a_generator_whose_lanes_depend_on_their_number_is_named():
    assert not circumstances.unusual(3)
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        assert "rbg" in circumstances.unusual(3)[0] and not circumstances.unusual(1)
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")


def test_shipped_parts_are_told_by_the_commit():
    found = circumstances.record(flags.load_experiment("drama_catch"))
    assert found["files"] == {} and found["settings"]["jax_enable_x64"] is False


def test_what_set_would_have_brought_along_is_no_other_configuration():
    before = workdir.RunConfig(small.catch(), Members())
    later = dataclasses.replace(small.catch(), with_parts=(("env=brax", ("eval_episodes=3",)),))
    meta = {"config": json.loads(json.dumps(workdir.as_json(before)))}
    workdir.check_meta(workdir.RunConfig(later, Members()), meta)
    other = dataclasses.replace(later, eval_episodes=3)
    with pytest.raises(ConfigError, match=r"another configuration \(eval_episodes: \d+ -> 3\)"):
        workdir.check_meta(workdir.RunConfig(other, Members()), meta)
