"""Exported policies act as the run's own, in a process that has no mbrl_jax."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import zipfile

import jax
import numpy as np
import pytest

from mbrl_jax.envs.spec import require_observation
from mbrl_jax.errors import ConfigError
from mbrl_jax.export.archive import export_policy
from mbrl_jax.train.run import run
from mbrl_jax.train.trained import build_system, load_policy
from mbrl_jax.types import ArraySpec, DictSpec, DiscreteSpec, EnvSpec
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")

ROWS = 12
ALONE = """
    import importlib.abc, sys

    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.split(".")[0] in ("mbrl_jax", "gymnax", "flax", "optax", "envpool"):
                raise ImportError(name)

    sys.meta_path.insert(0, Absent())
    path, played = sys.argv[1:]
    sys.path.insert(0, path)
    import numpy as np
    from policy import load
    import flatbuffers

    assert path in flatbuffers.__file__
    policy, rows = load(path), np.load(played)
    carry, actions = policy.start(seed=3), []
    for t in range(len(rows["is_first"])):
        given = rows["observation"][t], rows["is_first"][t], rows["reward"][t]
        carry, action = policy.step(carry, *given)
        actions.append(np.asarray(action))
    np.save(played + ".actions.npy", np.stack(actions))
    try:
        policy.step(carry, rows["observation"][0].astype(np.float64), False)
    except ValueError as error:
        print(error)
"""


def played(experiment, directory, seed_index):
    """Rows of an episode and the actions of the run's own policy in it."""
    env = build_system(experiment).env
    policy, carry = load_policy(directory, seed_index)
    key = jax.random.wrap_key_data(np.array([0, 3], np.uint32), impl="threefry2x32")
    state, timestep = env.reset(jax.random.key(7))
    rows, actions = [], []
    for t in range(ROWS):
        key, use = jax.random.split(key)
        carry, action = policy(use, carry, timestep)
        rows.append(timestep)
        actions.append(np.asarray(action))
        state, timestep = env.step(state, jax.random.key(t), action)
    return jax.tree.map(lambda *x: np.stack(x), *rows), np.stack(actions)


@pytest.mark.parametrize("make", [small.catch, small.pendulum])
def test_an_exported_policy_acts_as_the_runs_own_without_mbrl_jax(make, tmp_path):
    experiment = dataclasses.replace(make(), eval_episodes=1, eval_max_steps=5)
    run(experiment, tmp_path / "run", num_seeds=2)
    rows, actions = played(experiment, tmp_path / "run", 1)
    exported = export_policy(tmp_path / "run", tmp_path / "one.zip", seed_index=1)
    assert exported.step == experiment.steps and exported.size == exported.path.stat().st_size
    arrays = {n: getattr(rows, n) for n in ("observation", "is_first", "reward")}
    np.savez(tmp_path / "rows.npz", **arrays)
    command = [sys.executable, "-c", textwrap.dedent(ALONE), str(exported.path)]
    command.append(str(tmp_path / "rows.npz"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "rows.npz.actions.npy")
    if actions.dtype == np.float32:  # the other process compiles with other flags than the tests
        np.testing.assert_allclose(found, actions, rtol=1e-5, atol=1e-7)
    else:
        np.testing.assert_array_equal(found, actions)
    assert "observation is float64" in done.stdout and "trained with float32" in done.stdout
    with zipfile.ZipFile(exported.path) as archive:
        readme, spec = archive.read("README.md").decode(), json.loads(archive.read("spec.json"))
        numbers = archive.open("numbers.npz")
        with np.load(numbers) as data:
            parameters = sum(data[n].size for n in data.files if n.startswith("parameter"))
    assert f"seed 1, step {experiment.steps}" in readme and "from policy import load" in readme
    assert spec["observation"]["shape"] == list(rows.observation.shape[1:])
    state = jax.eval_shape(build_system(experiment).agent.init, jax.random.key(0))
    of_learners = sum(
        x.size for x in jax.tree.leaves((state.world_model.params, state.behaviour.params))
    )
    assert 0 < parameters < of_learners  # no critic, no decoder, no optimiser


def test_observations_of_another_shape_or_type_are_refused(tmp_path):
    experiment = dataclasses.replace(small.catch(), eval_episodes=1, eval_max_steps=5)
    run(experiment, tmp_path)
    policy, carry = load_policy(tmp_path, which=experiment.iterations)
    _, timestep = build_system(experiment).env.reset(jax.random.key(0))
    policy(jax.random.key(0), carry, timestep)
    turned = timestep._replace(observation=timestep.observation.T)
    with pytest.raises(ValueError, match=r"float32\[5, 10\].* float32\[10, 5\]"):
        policy(jax.random.key(0), carry, turned)
    assert export_policy(tmp_path, tmp_path / "best.zip", which="best").step == 20  # it has returns
    with pytest.raises(ConfigError, match="checkpoint=7 is not there"):
        load_policy(tmp_path, which=7)
    with pytest.raises(ConfigError, match="holds the seeds 0 … 0"):
        export_policy(tmp_path, tmp_path / "x.zip", seed_index=1)


def test_leaves_of_a_dictionary_are_named_where_they_do_not_fit():
    leaves = (("camera", ArraySpec((4, 4, 3), "uint8")), ("arm", ArraySpec((2,), "float32")))
    spec = EnvSpec(DictSpec(leaves), DiscreteSpec(2))
    good = {"camera": np.zeros((4, 4, 3), np.uint8), "arm": np.zeros(2, np.float32)}
    require_observation(spec, good)
    with pytest.raises(ValueError, match="arm is float32.3"):
        require_observation(spec, good | {"arm": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="structure"):
        require_observation(spec, {"arm": good["arm"]})
