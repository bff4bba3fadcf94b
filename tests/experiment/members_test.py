"""Members of one program: numbers that vary beside the seeds; any number of seeds."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.members import Members, parse_inside
from mbrl_jax.loops import seeds
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import run, trained
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = dataclasses.replace(
    small.catch(), log_every=5, checkpoint_every=10, eval_episodes=2, eval_max_steps=9
)


def until_first_update(experiment):
    """Random rows, then one update: later ones amplify rounding."""
    warmup = experiment.phases[0]
    last = dataclasses.replace(experiment.phases[-1], iterations=2, learn_every=2)
    return dataclasses.replace(experiment, phases=(warmup, last))


def updates(path):
    """Rows with an update, and those of collecting: {name: [rows]}."""
    return [row for row in read_metrics(path) if row["count/updates"]]


def assert_close(found, wanted, tolerance=1e-4):
    for a, b in zip(found, wanted, strict=True):
        for name in (set(a) & set(b)) - {"seed"}:  # a traced number may add a term of its own
            if a[name] is None or b[name] is None:
                assert a[name] == b[name], name
            else:
                assert abs(a[name] - b[name]) <= tolerance * max(1.0, abs(b[name])), name


# ------------------------------------------------------------------------------------ settings


def test_every_setting_meets_every_seed():
    members = Members(7, 3, (("a.b", (1.0, 2.0)), ("c", (5.0, 6.0))))
    assert len(members) == 12
    assert members.setting(0) == {"a.b": 1.0, "c": 5.0}
    assert members.setting(5) == {"a.b": 1.0, "c": 6.0}
    assert members.setting(11) == {"a.b": 2.0, "c": 6.0}
    keys, alone = jax.random.key_data(members.keys()), jax.random.key_data(seeds.seed_keys(7, 3))
    np.testing.assert_array_equal(keys[:12].reshape(4, 3, -1), np.stack([alone] * 4))


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["behaviour.horizon=3,4"], "needs a program of its own"),
        (["behaviour.entropi=1"], "did you mean behaviour.entropy"),
        (["behaviour.entropy=1e-3,much"], "expected a finite number, got 'much'"),
        (["behaviour.entropy=1e-3,0.001"], "twice"),
        (["behaviour.entropy=0.001,0.00100000000001"], "equal in float32"),
        (["behaviour.entropy=0.1,1e39"], r"entropy=1e\+39 is infinite in float32"),
        (["behaviour.entropy=0,1e-50"], "entropy=1e-50 is 0 in float32"),
        (["behaviour.entropy=1", "behaviour.entropy=2"], "twice"),
    ],
)
def test_what_cannot_vary_is_refused(assignments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_inside(EXPERIMENT, assignments)


@pytest.mark.parametrize(
    "make", [small.catch, pytest.param(small.pendulum, marks=pytest.mark.slow)]
)
def test_every_number_may_vary(make, tmp_path):
    """With the values that they have, all numbers at once: as a run where none varies."""
    experiment = until_first_update(
        dataclasses.replace(make(), log_every=5, checkpoint_every=10, eval_max_steps=9)
    )
    inside = parse_inside(
        experiment, [f"{path}={value!r}" for path, value in config.numbers(experiment).items()]
    )
    assert len(inside) >= 6
    run.run(experiment, tmp_path / "varied", inside=inside)
    run.run(experiment, tmp_path / "plain")
    assert updates(tmp_path / "plain")
    assert_close(updates(tmp_path / "varied"), updates(tmp_path / "plain"), 1e-3)


@pytest.mark.slow
def test_a_member_is_what_its_own_run_would_be(tmp_path):
    experiment = until_first_update(EXPERIMENT)
    rates = "model.optimiser.learning_rate"
    inside = parse_inside(experiment, ["behaviour.entropy=0.01,0.5", f"{rates}=1e-3,1e-2"])
    result = run.run(experiment, tmp_path / "inside", 5, 2, inside=inside)
    assert result.members == Members(5, 2, inside) and len(result.final_return) == 8
    together = read_metrics(tmp_path / "inside")
    alone = config.override(experiment, ["behaviour.entropy=0.5", f"{rates}=1e-3"])
    run.run(alone, tmp_path / "alone", 5, 2)
    assert_close(
        [row for row in together if row["seed"] in (4, 5)], read_metrics(tmp_path / "alone")
    )
    first = [row for row in together if row["seed"] in (0, 1)]
    losses = [row["behaviour/actor_loss"] for row in first + updates(tmp_path / "alone")]
    losses = [loss for loss in losses if loss is not None]
    assert len(set(losses)) == len(losses)  # the numbers reached the losses


def test_a_number_that_is_set_and_varies_too_is_refused():
    settings = ["behaviour.gamma=0.9", " behaviour.entropy =0.1"]
    with pytest.raises(ConfigError, match="entropy is 0.01, 0.5 .* leave out --set=behaviour.entr"):
        parse_inside(EXPERIMENT, ["behaviour.entropy=0.01,0.5"], settings)
    assert parse_inside(EXPERIMENT, ["behaviour.entropy=0.01,0.5"], ["behaviour.gamma=0.9"])


def test_numbers_that_vary_belong_to_the_configuration(tmp_path):
    inside = parse_inside(EXPERIMENT, ["behaviour.gamma=0.9,0.99"])
    experiment = dataclasses.replace(EXPERIMENT, phases=EXPERIMENT.phases[:1])
    run.run(experiment, tmp_path, inside=inside)
    with pytest.raises(ConfigError, match="--sweep_inside: behaviour.gamma=0.9,0.99 -> none"):
        run.run(experiment, tmp_path)
    policy, carry = trained.load_policy(tmp_path, seed_index=1)
    assert callable(policy) and carry is not None


# ------------------------------------------------------------------------------ seeds on devices


@pytest.mark.parametrize(("num_seeds", "rows", "devices"), [(3, 3, 3), (9, 10, 5), (16, 16, 8)])
def test_seeds_lie_evenly_on_as_few_devices_as_are_as_fast(num_seeds, rows, devices):
    assert jax.device_count() == 8
    assert seeds.padded(num_seeds) == rows
    assert seeds.seed_mesh(num_seeds).size == devices


def test_the_last_seed_pads():
    keys = Members(3, 9).keys()
    assert len(keys) == 10 and len(keys.sharding.device_set) == 5
    rows = jax.random.key_data(keys)
    np.testing.assert_array_equal(rows[:9], jax.random.key_data(seeds.seed_keys(3, 9)))
    np.testing.assert_array_equal(rows[9], rows[8])


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """Nine seeds on five devices, stopped and gone on with; and the whole run."""
    folder = tmp_path_factory.mktemp("nine")
    shorter = dataclasses.replace(EXPERIMENT, stop_after=EXPERIMENT.iterations - 5)
    run.run(shorter, folder / "stopped", 3, 9)
    run.run(EXPERIMENT, folder / "stopped", 3, 9)
    run.run(EXPERIMENT, folder / "whole", 3, 9)
    return folder


def test_padded_seeds_go_on_from_a_checkpoint_bit_for_bit(nine):
    whole, stopped = ((nine / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    assert {row["seed"] for row in read_metrics(nine / "whole")} == set(range(9))


ON_ONE_DEVICE = """
import json, sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
from mbrl_jax.train.trained import evaluate_run
assert jax.device_count() == 1
found = evaluate_run(sys.argv[1], 2)
print(json.dumps(found.episode_return.tolist()))
"""


def test_a_checkpoint_of_five_devices_serves_one(nine):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_DEVICE, str(nine / "whole")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    wanted = json.loads((nine / "whole" / "evaluation.json").read_text())["returns"]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
