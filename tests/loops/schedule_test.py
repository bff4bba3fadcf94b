"""Several updates, each at its own pace: the same in both loops, and nothing else is touched."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mbrl_jax import datasets
from mbrl_jax.envs import stepped
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops import host as host_loop
from mbrl_jax.loops.phases import Due, Phase, cadence, static
from mbrl_jax.replay import fixed
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import run
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.programs import Programs
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compile")

COLLECT = Phase(16, learn=False, random_share=1.0)
PACED = Phase(12, schedule=(Due("model", every=4, times=2), Due("behaviour", every=3)))


@pytest.fixture(scope="module")
def both():
    """The fused programs and the host's, of one experiment on the same environment."""
    experiment = dataclasses.replace(small.pendulum(), phases=(COLLECT, PACED))
    system, members = build(experiment), Members(3, 2)
    env = stepped.on_host(system.env)
    parts = env, system.agent, system.world_model, system.replay
    host = system._replace(env=env, entry=host_loop.make_entry_points(*parts, 1))
    split = HostPrograms(experiment, host, members)
    split.compile_ahead(members.keys(), fresh=True, evaluating=False)
    return Programs(experiment, system, members), split


def _run(programs, phase=PACED):
    """State after 16 rows and after twelve more, and the metrics of those."""
    keys = programs.members.keys()
    state, _, _ = programs.chunk(COLLECT, programs.init(keys), 0, 16)
    agent = jax.tree.map(np.asarray, jax.device_get(state.agent))
    state, metrics, _ = programs.chunk(phase, state, 16, 28)
    return agent, state, metrics


@pytest.mark.parametrize("which", [0, 1], ids=["fused", "host"])
def test_each_update_runs_at_its_own_pace(both, which):
    _, _, metrics = _run(both[which])
    # Iterations 16 … 27: multiples of 4 are 16, 20, 24, of 3 are 18, 21, 24, 27.
    assert (metrics["count/model"][0] == 6).all() and (metrics["count/behaviour"][0] == 4).all()
    assert (metrics["count/updates"][1] == 10).all()
    assert (metrics["model/nll"][1] == 6).all()


@pytest.mark.parametrize("which", [0, 1], ids=["fused", "host"])
def test_without_collecting_imagined_rows_still_reach_their_buffer(both, which):
    phase = Phase(12, collect=False, schedule=(Due("behaviour"),))
    before, state, metrics = _run(both[which], phase)
    # Of twelve times four rows the last four are still pending; the ring holds sixteen.
    assert (np.asarray(state.replay.storage.cursor) == 11 * 4 % 16).all()
    assert (np.asarray(state.replay.storage.size) == 16).all()
    assert (np.asarray(state.replay.position) == 16).all()
    assert "episode/return" not in metrics
    jax.tree.map(np.testing.assert_array_equal, state.agent.world_model, before.world_model)


def test_phases_share_a_program_where_names_agree():
    assert static(Phase(5, learn=False)) == static(Phase(9, learn_every=7))
    assert cadence(Phase(5, learn=False)).every == (0,)
    assert static(PACED) != static(dataclasses.replace(PACED, schedule=(Due("model"),)))


def test_an_update_that_the_agent_lacks_is_refused_by_name():
    phases = (COLLECT, Phase(4, schedule=(Due("dreams"),)))
    with pytest.raises(ValueError, match="'dreams', and this agent has all, behaviour, model"):
        build(dataclasses.replace(small.pendulum(), phases=phases))
    with pytest.raises(ValueError, match="stands twice"):
        Phase(4, schedule=(Due("model"), Due("model", every=2))).validate()


# ------------------------------------------------------------------------------ data, evaluations


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """An experiment that never collects, and what its run left."""
    folder = tmp_path_factory.mktemp("offline")
    spec = small.pendulum().env.make().spec
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": rng.normal(size=(20, 3)).astype(np.float32),
            "next_observations": rng.normal(size=(20, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (20, 1)).astype(np.float32),
            "rewards": rng.normal(size=20).astype(np.float32),
            "terminals": np.zeros(20, bool),
            "timeouts": np.arange(20) % 10 == 9,
        }
    ]
    np.savez(folder / "rows.npz", **episodes[0])
    data = datasets.Config(str(folder / "rows.npz"))
    assert len(datasets.load(data, spec).timestep.reward) > 20
    base = small.pendulum()
    experiment = dataclasses.replace(
        base,
        replay=fixed.Config(data="rows", batch_size=8, length=1),
        data=(("rows", data),),
        phases=(
            Phase(10, collect=False, schedule=(Due("model"),)),
            Phase(10, collect=False, schedule=(Due("behaviour", times=2),)),
        ),
        log_every=5,
        checkpoint_every=10,
        eval_every=10,
        eval_envs=(("again", base.env),),
    )
    run.run(experiment, folder / "run", num_seeds=2)
    return experiment, folder / "run"


def test_an_agent_learns_from_data_without_a_row_of_the_environment(offline):
    _, workdir = offline
    rows = [row for row in read_metrics(workdir) if row["seed"] == 1]
    assert [row["env_steps"] for row in rows] == [0] * 4
    assert [row["count/updates"] for row in rows] == [5, 5, 10, 10]
    assert "behaviour/critic_loss" not in rows[0] and rows[-1]["behaviour/valid_rows"] > 0.2


def test_evaluations_in_between_stand_in_the_rows_of_their_step(offline):
    _, workdir = offline
    rows = [row for row in read_metrics(workdir) if row["seed"] == 0]
    assert [("eval/return" in row) for row in rows] == [False, True, False, True]
    assert rows[1]["eval/return"] == rows[1]["eval/again/return"]  # the same episodes
    final = json.loads((workdir / "evaluation.json").read_text())["mean"][0]
    np.testing.assert_allclose(rows[-1]["eval/return"], final, rtol=1e-5)


def test_the_experiment_goes_through_json_and_names_data_that_is_missing(offline):
    experiment, _ = offline
    assert config.from_json(json.loads(json.dumps(config.to_json(experiment)))) == experiment
    moved = config.override(experiment, ["data.0.1.path=/nowhere.npz"])
    with pytest.raises(config.ConfigError, match="nowhere.npz"):
        run.run(moved, offline[1].parent / "other")
    with pytest.raises(config.ConfigError, match="reads the data set 'rows', and data names none"):
        config.validate(dataclasses.replace(experiment, data=()))
