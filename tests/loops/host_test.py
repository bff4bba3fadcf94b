"""Environments on the host: the fused loop's numbers, its order, resume, evaluation."""

import contextlib
import dataclasses
import functools
import json
import shutil

import envpool as bare
import jax
import numpy as np
import pytest

from mbrl_jax.envs import atari, envpool
from mbrl_jax.evaluate import quality
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import System, build
from mbrl_jax.experiment.members import Members
from mbrl_jax.keys import at, lane_seeds, named
from mbrl_jax.loops import host as host_loop
from mbrl_jax.loops import play, seeds
from mbrl_jax.loops.phases import Phase
from mbrl_jax.loops.steps import Episode, account, episode_metrics
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.testing import assert_close
from mbrl_jax.train import report, run, tables, trained, training
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.programs import Programs
from mbrl_jax.types import HostEnvironment, HostEnvironments, Timestep
from tests import small
from tests.loops.scripted import no_action, scripted

pytestmark = pytest.mark.usefixtures("programs_kept")

SEED, NUM_SEEDS = 3, 2
KEYS = functools.partial(seeds.seed_keys, SEED, NUM_SEEDS)
COLLECT, TRAIN = Phase(16, learn=False, random_share=0.5), Phase(9, learn_every=3)


def plain(tree):
    """NumPy arrays, keys as numbers."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


# ------------------------------------------------------------------------- against the fused loop


def on_host(env, num_envs: int) -> HostEnvironments:
    """A JAX environment stepped on the host, with the keys that the fused loop would use."""
    reset = jax.jit(jax.vmap(jax.vmap(env.reset)))
    step = jax.jit(jax.vmap(jax.vmap(env.step)))
    split = functools.partial(jax.random.split, num=num_envs)

    def open_lanes(lane_seeds, *, evaluation):
        del lane_seeds, evaluation
        keys = KEYS()
        train, box = jax.vmap(lambda key: named(key, "train"))(keys), {"iteration": 0}

        def reset_all(lanes=None):
            assert lanes is None
            first = jax.vmap(lambda key: split(named(key, "reset")))(keys)
            box["state"], timestep = reset(first)
            return jax.tree.map(np.asarray, timestep)

        def send(actions):
            now = jax.vmap(lambda key: split(at(key, "env", box["iteration"])))(train)
            box["state"], box["row"] = step(box["state"], now, actions)
            box["iteration"] += 1

        def receive():
            return jax.tree.map(np.asarray, box["row"])

        return HostEnvironment(reset_all, send, receive, lambda: None)

    return HostEnvironments(env.spec, open_lanes)


def _system(system: System, env: HostEnvironments, num_envs: int) -> System:
    entry = host_loop.make_entry_points(
        env, system.agent, system.world_model, system.replay, num_envs
    )
    return system._replace(env=env, entry=entry)


@pytest.fixture(scope="module")
def both():
    """The fused programs and the host's, of one experiment on the same environment."""
    experiment = dataclasses.replace(small.catch(), num_envs=3)
    system = build(experiment)
    members = Members(SEED, NUM_SEEDS)
    fused = Programs(experiment, system, members)
    host = _system(system, on_host(system.env, 3), 3)
    split = HostPrograms(experiment, host, members)
    split.compile_ahead(KEYS(), fresh=True)
    return fused, split


def test_both_loops_collect_the_same_rows(both):
    found = []
    for programs in both:
        state = programs.init(KEYS())
        state, metrics, seconds = programs.chunk(COLLECT, state, 0, 16)
        found.append((state._replace(env=()), metrics))
        assert seconds > 0
    (fused, fused_metrics), (split, split_metrics) = found
    assert_equal(fused.replay, split.replay)
    assert_equal(fused.timestep, split.timestep)
    assert_equal(fused.episode, split.episode)
    assert sorted(fused_metrics) == sorted(split_metrics)
    assert_equal(fused_metrics, split_metrics)
    assert fused_metrics["episode/return"][1].sum() == 3 * NUM_SEEDS  # nine steps each


def test_both_loops_learn_the_same_at_the_same_rows(both):
    found = []
    for programs in both:
        state = programs.init(KEYS())
        state, _, _ = programs.chunk(COLLECT, state, 0, 16)
        state, metrics, _ = programs.chunk(TRAIN, state, 16, 19)  # an update at 18
        found.append((state, metrics))
        state, more, _ = programs.chunk(TRAIN, state, 19, 28)
        assert (more["count/updates"][0] == 3).all()  # at 21, 24 and 27
    (fused, fused_metrics), (split, split_metrics) = found
    assert (split_metrics["count/updates"][0] == 1).all()
    for name, (total, _) in fused_metrics.items():
        assert_close(split_metrics[name][0], total, name, 1e-4)
    assert_equal(fused.replay.counters, split.replay.counters)


def test_a_phase_without_collecting_leaves_the_lanes_alone(both):
    _, split = both
    state = split.init(KEYS())
    state, _, _ = split.chunk(COLLECT, state, 0, 16)
    rows = plain(state.replay.storage)
    state, metrics, _ = split.chunk(Phase(4, collect=False), state, 16, 20)
    assert_equal(rows, state.replay.storage)
    assert (metrics["count/updates"][0] == 4).all() and "episode/return" not in metrics


def test_episodes_are_counted_alike_at_both_seams():
    actions, found = np.random.default_rng(0).integers(0, 4, 500), []
    for seam in ("separate", "merged"):
        env = atari.Config("Breakout-v5", atari.Protocol(seam=seam)).make()
        lanes = env.open(np.array([[3]]), evaluation=False)
        row, queue, totals = lanes.reset(), list(actions), []
        episode = Episode(np.zeros((1, 1)), np.zeros((1, 1), np.int32))
        while queue:
            lanes.send(np.array([[0 if row.is_last.any() else queue.pop(0)]]))
            row = lanes.receive()
            episode, arrival = account(env.spec, episode, row)
            totals.append(episode_metrics(arrival))
        sums = {name: sum(m[name][0] for m in totals) for name in totals[0]}
        found.append((sums, sum(m["episode/return"][1] for m in totals), episode))
    assert_equal(*found)
    sums, episodes, _ = found[0]
    assert sums["count/env_steps"] == 500 and episodes >= 2 and sums["episode/return"] > 0


# ------------------------------------------------------------------------------------ real lanes


def cartpole():
    """Drama with a tiny core on EnvPool's CartPole."""
    base = config.override(small.catch(), ["model.reconstruction=squared"])
    return dataclasses.replace(
        base,
        env=envpool.Config("CartPole-v1"),
        num_envs=2,
        phases=(COLLECT, TRAIN, Phase(11)),
        log_every=5,
        checkpoint_every=10,
    )


def waiting(env: HostEnvironments) -> HostEnvironments:
    """The same lanes, whose `send` returns only when they have stepped: no work meanwhile."""

    def open_lanes(lane_seeds, *, evaluation):
        lanes, box = env.open(lane_seeds, evaluation=evaluation), []

        def send(actions):
            lanes.send(actions)
            box.append(lanes.receive())

        return lanes._replace(send=send, receive=box.pop)

    return env._replace(open=open_lanes)


def test_updating_while_the_lanes_step_changes_nothing():
    experiment = cartpole()
    system, found = build(experiment), []
    for env in (system.env, waiting(system.env)):
        made = _system(system, env, experiment.num_envs)
        with contextlib.closing(
            HostPrograms(experiment, made, Members(SEED, NUM_SEEDS))
        ) as programs:
            programs.compile_ahead(KEYS(), fresh=True)
            state, rows = programs.init(KEYS()), []
            for phase, start, stop in training.chunk_bounds(experiment, 0):
                state, metrics, _ = programs.chunk(phase, state, start, stop)
                rows.append(metrics)
        found.append((state, rows))
    assert_equal(*found)
    updates = [metrics["count/updates"][0].tolist() for metrics in found[0][1]]
    # Chunks end at 5, 10, 15, 16, 20, 25, 30, 35, 36; updates at 18, 21, 24, then at every row.
    assert updates == [[n] * NUM_SEEDS for n in (0, 0, 0, 0, 1, 2, 5, 5, 1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A whole run, and two that stop at iteration 20 and go on."""
    folder, experiment = tmp_path_factory.mktemp("host"), cartpole()
    shorter = dataclasses.replace(experiment, phases=(COLLECT, Phase(4, learn_every=3)))
    whole, stopped, again = folder / "whole", folder / "stopped", folder / "again"
    run.run(experiment, whole, SEED, NUM_SEEDS)
    longer = dataclasses.replace(shorter, phases=(COLLECT, Phase(20, learn_every=3)))
    run.run(shorter, stopped, SEED, NUM_SEEDS)
    shutil.copytree(stopped, again)
    for path in (stopped, again):
        run.run(longer, path, SEED, NUM_SEEDS)
    return experiment, whole, stopped, again


def _state(path, experiment):
    programs = trained.make_programs(experiment, build(experiment), Members(SEED, NUM_SEEDS))
    return trained.restore_state(path, programs, KEYS()).state


def test_equal_runs_are_equal_byte_for_byte(runs, tmp_path):
    experiment, whole, stopped, again = runs
    run.run(experiment, tmp_path / "second", SEED, NUM_SEEDS)
    assert_equal(_state(whole, experiment), _state(tmp_path / "second", experiment))
    for a, b in ((whole, tmp_path / "second"), (stopped, again)):
        for name in ("metrics.jsonl", "evaluation.json"):
            assert (a / name).read_bytes() == (b / name).read_bytes()


def test_on_resume_new_episodes_begin_and_the_running_ones_end_without_being_terminal(runs):
    experiment, whole, stopped, _ = runs
    timestep = plain(_state(stopped, experiment).replay.storage).timestep
    unbroken = plain(_state(whole, experiment).replay.storage).timestep
    # Rows [S, C, N]: row 20 was seen before the checkpoint and is stored after it.
    assert_equal(timestep.observation[:, :20], unbroken.observation[:, :20])
    assert timestep.is_last[:, 20].all() and timestep.is_first[:, 21].all()
    assert not (timestep.is_terminal[:, 20] & ~unbroken.is_terminal[:, 20]).any()
    assert (timestep.reward[:, 21] == 0).all()
    # The new lanes have seeds of their own: they do not repeat the first episodes.
    assert (timestep.observation[:, 21] != timestep.observation[:, 0]).any(axis=-1).all()
    steps = [row["step"] for row in read_metrics(stopped) if row["seed"] == 0]
    assert steps == [10, 20, 30, 32, 40, 50, 60, 70, 72]


def test_a_resumed_merged_seam_keeps_the_reward_of_the_row_before():
    flags = np.array([[True]])
    first = Timestep(np.ones((1, 1)), np.zeros((1, 1)), flags, ~flags, ~flags)
    env = HostEnvironment(lambda lanes=None: first, None, None, None)
    spec = dataclasses.replace(build(cartpole()).env.spec, seam="merged")
    seen = Timestep(np.zeros((1, 1)), np.full((1, 1), 3.0), ~flags, ~flags, flags)
    same, timestep = host_loop.restart(env, spec, seen)
    assert same is env
    assert_equal(timestep, first._replace(reward=seen.reward, is_terminal=seen.is_terminal))


def test_a_run_of_lanes_is_evaluated_and_its_policy_loaded(runs):
    _, whole, _, _ = runs
    evaluation = trained.evaluate_run(whole, 3)
    assert evaluation.finished.shape == (NUM_SEEDS, 3)
    # CartPole pays 1 for each step.
    np.testing.assert_array_equal(evaluation.episode_return, evaluation.length)
    policy, carry = trained.load_policy(whole, seed_index=1)
    spec = build(cartpole()).env.spec
    timestep = jax.tree.map(lambda x: x[0, 0], _state(whole, cartpole()).timestep)
    _, action = policy(jax.random.key(0), carry, timestep)
    assert action.shape == () and 0 <= int(action) < spec.action.num_actions


def test_the_world_model_of_a_run_of_lanes_is_measured(runs, tmp_path, capsys):
    _, whole, _, _ = runs
    measured = quality.Config(lanes=3, rows=40, context=2, horizon=3, starts=18)
    found = trained.measure_quality(whole, measured=measured)
    assert (found["step"], found["horizon"], len(found["seeds"])) == (72, 3, NUM_SEEDS)
    for seed in found["seeds"]:
        # CartPole pays 1 for each step, and its state hardly changes from one to the next.
        assert seed["reward_constant"] == [0.0, 0.0, 0.0] and seed["reward_accuracy"] is None
        assert 0 < seed["observation_copied"][0] < seed["observation_copied"][2]
        assert 0 < seed["ends"]["found"] < seed["ends"]["rows"] <= 3 * 18
        assert sum(seed["calibration"]["rows"]) >= 2 * seed["ends"]["rows"]
    assert json.loads(report.write_quality(tmp_path, found).read_text()) == found
    tables.print_quality(found, whole)
    assert "rows ahead" in capsys.readouterr().out
    beside = trained.measure_quality(whole, measured=measured._replace(random_share=1.0))
    assert beside["random_share"] == 1.0
    assert beside["seeds"][0]["observation_copied"] != found["seeds"][0]["observation_copied"]


def test_seeds_of_lanes_share_nothing():
    numbers = []
    for seed in (0, 1):
        for keys in (seeds.seed_keys(seed, 4), named_keys(seed, "evaluate")):
            numbers.append(np.asarray(jax.vmap(lambda key: lane_seeds(key, 64))(keys)))
    numbers = np.stack(numbers)
    assert len(np.unique(numbers)) == numbers.size
    assert numbers.min() >= 0 and numbers.max() < 2**31
    few = jax.vmap(lambda key: lane_seeds(key, 5))(seeds.seed_keys(0, 2))
    np.testing.assert_array_equal(few, numbers[0, :2, :5])


def named_keys(seed, purpose):
    return jax.vmap(lambda key: named(key, purpose))(seeds.seed_keys(seed, 4))


# ------------------------------------------------------------------------------------- evaluation


def test_each_lane_plays_a_number_of_episodes_that_is_fixed_before():
    env = scripted([[2, 3, 4], [50, 60], [7, 1]])
    found = play.play_episodes(env, no_action, None, num_episodes=7, max_steps=1_000)
    # Lanes 0, 1, 2 in turn; lane 0 has three. The first seven to finish would be other ones.
    np.testing.assert_array_equal(found.length, [[2, 50, 7, 3, 60, 1, 4]])
    np.testing.assert_array_equal(found.episode_return, found.length)
    assert found.finished.all()


def test_an_episode_that_does_not_end_is_cut():
    env = scripted([[30, 5], [4, 30, 3]])
    found = play.play_episodes(env, no_action, None, num_episodes=5, max_steps=10)
    np.testing.assert_array_equal(found.length, [[10, 4, 5, 10, 5]])
    np.testing.assert_array_equal(found.finished, [[False, True, True, False, True]])


def _evaluate_at_random(name, protocol, lanes, episodes, max_steps):
    """(Evaluation of random play, [raw rewards of its episodes, by hand])."""
    config = atari.Config(name, protocol)
    rng, sent = np.random.default_rng(0), []
    env = config.make()
    numbers = np.asarray(lane_seeds(jax.random.key(1), lanes))

    def act(carry, timestep, step):
        sent.append(rng.integers(0, env.spec.action.num_actions, timestep.reward.shape))
        return carry, sent[-1]

    found = play.play_episodes(
        env.open(numbers[None], evaluation=True), act, None, episodes, max_steps
    )
    # The same actions in EnvPool alone, whose options are written out once more here.
    pool = bare.make_gymnasium(
        config.name,
        num_envs=lanes,
        seed=numbers.tolist(),
        img_height=84,
        img_width=84,
        stack_num=1,
        noop_max=protocol.noops,
        frame_skip=4,
        reward_clip=False,
        episodic_life=False,
        use_fire_reset=protocol.fire_reset,
        full_action_space=protocol.all_actions,
    )
    pool.reset()
    sums, running, over = [[] for _ in range(lanes)], np.zeros(lanes), np.zeros(lanes, bool)
    for action in sent:
        _, reward, terminated, truncated, info = pool.step(action[0].astype(np.int32))
        np.testing.assert_array_equal(reward, info["reward"])
        running = np.where(over, 0.0, running + reward)
        over = terminated | truncated
        for lane in np.flatnonzero(over):
            sums[lane].append(running[lane])
    return found, [sums[e % lanes][e // lanes] for e in range(episodes)], len(sent)


def test_a_random_policys_evaluation_is_the_sum_of_raw_rewards():
    protocol = atari.PROTOCOLS["dqn"]  # clipped and cut at lives in training, not here
    found, wanted, _ = _evaluate_at_random("Breakout-v5", protocol, 2, 5, 10_000)
    np.testing.assert_array_equal(found.episode_return, [wanted])
    assert found.finished.all() and found.length.min() > 60


@pytest.mark.slow
def test_a_random_policys_evaluation_is_the_sum_of_raw_rewards_over_20_000_steps():
    protocol = atari.PROTOCOLS["dqn"]
    found, wanted, steps = _evaluate_at_random("Seaquest-v5", protocol, 4, 40, 10_000)
    assert 4 * steps >= 20_000
    np.testing.assert_array_equal(found.episode_return, [wanted])
    assert found.finished.all() and found.episode_return.max() > 60
