"""What a run takes: sizes, refusals that help, updates that are counted, time."""

import contextlib
import dataclasses

import jax
import pytest

from experiments import drama_catch, drama_pong_small
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build, with_steps
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops.phases import Phase
from mbrl_jax.replay import fixed, mixture
from mbrl_jax.train import memory, preflight, run, runtime
from mbrl_jax.train.memory import Memory
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compile")


def plan_of(experiment, num_seeds=1, free=10**12, **more):
    found = preflight.plan(experiment, build(experiment), num_seeds)
    return found._replace(memory=Memory(free, 1, "a machine's memory"), **more)


@pytest.mark.parametrize("experiment", [small.catch(), small.pendulum()])
def test_sizes_are_those_of_the_state(experiment):
    system, found = build(experiment), plan_of(experiment)
    state = jax.jit(system.entry.init)(jax.random.key(0))
    plain = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    assert found.state == sum(x.nbytes for x in plain)
    assert found.replay == sum(x.nbytes for x in jax.tree.leaves(state.replay.storage))
    assert found.parameters == preflight.parameters(system.agent)


def test_the_replay_of_images_is_what_its_rows_are():
    experiment = drama_pong_small.get_experiment()
    row = 64 * 64 * 3 + 4 + 3 + 4  # frame, reward, flags, action
    assert plan_of(experiment).replay == experiment.replay.capacity * row


def test_what_fits_is_not_refused():
    found = plan_of(small.catch(), 3)
    exact = found._replace(memory=Memory(3 * found.state, 1, "a machine's memory"))
    assert exact.most_seeds == 3 and exact.refusal() is None
    less = found._replace(memory=Memory(3 * found.state - 1, 1, "a machine's memory"))
    assert less.most_seeds == 2 and less.refusal()
    assert found._replace(memory=Memory(None, 1, "?")).refusal() is None  # nobody tells


def test_temporaries_count():
    found = plan_of(small.catch(), 3)
    room = Memory(3 * found.state, 1, "a machine's memory")
    assert found._replace(memory=room, temporaries=1).most_seeds == 2
    short = found._replace(memory=room, temporaries=1, evaluation=10**9)
    assert "1 GB in the evaluation" in short.more()
    assert "need 3.0" in str(short.refusal()) and "eval_episodes=…" in str(short.refusal())


def test_devices_hold_seeds_of_their_own():
    found = plan_of(small.catch(), 5)
    two_each = Memory(2 * found.state, 2, "a device")
    assert found._replace(memory=two_each).most_seeds == 4
    assert found._replace(memory=two_each).refusal().startswith("3 seeds")
    assert found._replace(memory=two_each, num_seeds=4).refusal() is None


@pytest.mark.parametrize("replay", [fixed.Config(batch_size=8, length=1), mixture.Config()])
def test_no_capacity_is_advised_where_a_replay_has_none(replay):
    experiment = dataclasses.replace(small.pendulum(), replay=replay)
    sentence = plan_of(experiment, 2, 1000).refusal()
    assert "--allow_oversize" in sentence and "replay.capacity" not in sentence


@pytest.mark.parametrize("seeds", [2, 7, 100])
@pytest.mark.parametrize("free", [2_000_000, 3_456_789, 10_000_000])
def test_the_remedies_of_a_refusal_help(seeds, free):
    experiment = drama_catch.get_experiment()
    found = plan_of(experiment, seeds, free)
    if (sentence := found.refusal()) is None:
        assert seeds * found.state <= free
        return
    assert (
        f"{seeds} seeds of drama_catch on Catch-bsuite need" in sentence
        and "--allow_oversize" in sentence
    )
    words = [word.strip(",") for word in sentence.split()]
    for word in words:
        if word.startswith("--num_seeds="):
            assert plan_of(experiment, int(word.partition("=")[2]), free).refusal() is None
        if word.startswith("--set=replay.capacity="):
            smaller = config.override(experiment, [word.removeprefix("--set=")])
            assert plan_of(smaller, seeds, free).refusal() is None
    assert any(word.startswith("--num_seeds=") for word in words) == (found.most_seeds > 0)


def test_a_run_that_cannot_fit_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="1 kB of this machine's memory are free"):
        run.run(small.catch(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_update_that_has_no_room_is_refused_and_a_user_may_know_better(monkeypatch, tmp_path):
    found = preflight.plan(small.catch(), build(small.catch()), 2)

    class Programs:
        num_seeds = 2

        def temporaries(self):
            return 10**9

    monkeypatch.setattr(memory, "host_memory", lambda: 10**8)
    with pytest.raises(
        ConfigError, match="an update of 2 seeds of drama_catch on Catch-bsuite takes 2 GB"
    ):
        preflight.require_room(found, Programs())
    preflight.require_room(found._replace(allow_oversize=True), Programs())


@pytest.mark.parametrize(("update", "refused"), [(10**7, True), (10**6, False)])
def test_an_evaluation_that_has_no_room_is_refused_before_training(monkeypatch, update, refused):
    found = preflight.plan(small.catch(), build(small.catch()), 2)

    class Programs:
        num_seeds = 2

        def temporaries(self):
            return update

        def evaluation_temporaries(self):
            assert refused, "with so much room, training does not wait until it is compiled"
            return 10**9

    monkeypatch.setattr(memory, "host_memory", lambda: 10**8)
    expected = pytest.raises(ConfigError, match="evaluation of 2 seeds .* takes 2 GB beside")
    with expected if refused else contextlib.nullcontext():
        preflight.require_room(found, Programs())


@pytest.mark.parametrize("stop_after", [None, 3, 12, 25])
def test_updates_are_counted_as_the_loop_makes_them(stop_after):
    phases = (Phase(10, learn=False), Phase(7, learn_every=3), Phase(8))
    experiment = dataclasses.replace(small.catch(), phases=phases, stop_after=stop_after)
    made, iteration = [], 0
    for phase in phases:
        for _ in range(phase.iterations):
            if iteration < experiment.iterations:
                made.append(phase.learn and iteration % phase.learn_every == 0)
            iteration += 1
    for begin in (0, 2, 10, 11, 17, 20, 25):
        assert preflight.updates(experiment, begin) == sum(made[begin:])


def test_a_survey_compiles_and_times_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run.survey(with_steps(small.catch(), 10_000), Members(0, 2))
    assert found.temporaries > 0 and found.evaluation > 0
    assert found.numbers()["evaluation"] == found.evaluation
    assert 0 < found.hours < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (1500, "1.5 kB"), (2e9, "2 GB"), (3.77e12, "3.77 TB")]
)
def test_sizes_in_words(count, text):
    assert preflight.size(count) == text


# ---------------------------------------------------------------------------------- host memory


def pretend(tmp_path, monkeypatch, meminfo, own, groups):
    """A machine with these files of /proc and /sys."""
    (tmp_path / "meminfo").write_text(meminfo)
    (tmp_path / "cgroup").write_text(own)
    for name, text in groups.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(runtime, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(runtime, "_CGROUPS", tmp_path / "sys")


MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    5000 kB\nBuffers: 1 kB\n"


def version_2(limit, used, inactive):
    return {
        "job/step/memory.max": limit,
        "job/step/memory.current": used,
        "job/step/memory.stat": f"anon 5\ninactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("own", "groups", "free"),
    [
        ("", {}, 5_120_000),
        ("0::/job/step\n", version_2("max", "1000", 0), 5_120_000),
        ("0::/job/step\n", version_2("3000000", "1000000", 400_000), 2_400_000),
        ("0::/job/step/task\n", version_2("3000000", "1000000", 0), 2_000_000),  # of a parent
        ("0::/job/step\n", version_2("1000", "3000", 0), 0),
        ("0::/elsewhere\n", {}, 5_120_000),
        (
            "3:cpu:/x\n4:memory,hugetlb:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "2000000",
                "memory/job/memory.usage_in_bytes": "500000",
                "memory/job/memory.stat": "total_inactive_file 1000\n",
            },
            1_501_000,
        ),
    ],
)
def test_free_memory_is_the_least_of_machine_and_groups(tmp_path, monkeypatch, own, groups, free):
    pretend(tmp_path, monkeypatch, MEMINFO, own, groups)
    assert memory.host_memory() == free


def test_a_system_that_does_not_tell_is_no_error(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "MemTotal: 9000 kB\n", "", {})
    assert memory.host_memory() is None
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "no such file")
    monkeypatch.setattr(runtime, "_OWN_CGROUP", tmp_path / "no such file")
    assert memory.host_memory() is None
