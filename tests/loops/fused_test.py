"""The loop under `over_seeds`: traced once, real conditionals, no collectives, seeds apart."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.experiment.experiment import System, build
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops import fused, seeds
from mbrl_jax.loops.phases import Cadence, Exploration, Phase, static
from mbrl_jax.testing import assert_close
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compile")

NUM_SEEDS = 8
SEED = 3
LEARN_FROM = 16
ALL = static(Phase(1))


class Compiled(NamedTuple):
    """One system, compiled for eight seeds on eight devices."""

    system: System
    init: object
    chunk: object
    text: str
    traces: dict


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    system = build(small.catch())
    traces = {"step": 0}

    def counting_step(*args):
        traces["step"] += 1
        return system.env.step(*args)

    env = system.env._replace(step=counting_step)
    entry = fused.make_entry_points(env, system.agent, system.replay, 1)
    init = seeds.over_seeds(entry.init, NUM_SEEDS)
    chunk = seeds.over_seeds(
        functools.partial(entry.chunk, ALL), NUM_SEEDS, num_shared=4, donate=(0,)
    )
    state = init(seeds.seed_keys(SEED, NUM_SEEDS))
    text = chunk.lower(state, *_bounds(1, 0, 1)).compile().as_text()
    return Compiled(system, init, chunk, text, traces)


def _bounds(every, start, stop, random_share=0.0, random_rows=1):
    acting = Exploration(jnp.float32(random_share), jnp.uint32(random_rows))
    pace = Cadence((jnp.uint32(every),), acting)
    return pace, jnp.uint32(start), jnp.uint32(stop), {}


def _run(compiled: Compiled, every: int, stop: int):
    """Collect LEARN_FROM rows, then go on with `every` until `stop`."""
    state = compiled.init(seeds.seed_keys(SEED, NUM_SEEDS))
    state, _ = compiled.chunk(state, *_bounds(0, 0, LEARN_FROM))
    return compiled.chunk(state, *_bounds(every, LEARN_FROM, stop))


def test_seeds_lie_on_all_devices(compiled):
    assert jax.device_count() == 8
    state = compiled.init(seeds.seed_keys(SEED, NUM_SEEDS))
    assert len(state.replay.position.sharding.device_set) == 8


def test_chunks_of_any_length_and_cadence_are_traced_once(compiled):
    _run(compiled, 1, LEARN_FROM + 1)
    before = compiled.traces["step"]
    _run(compiled, 2, LEARN_FROM + 5)
    assert compiled.traces["step"] == before
    # Once to learn the shapes of the metrics, once in the loop; each for shapes and values.
    assert before <= 4


def test_seeds_do_not_communicate(compiled):
    collectives = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    assert not re.search(collectives, compiled.text)


def test_nothing_calls_lapack(compiled):
    # jaxlib's batched LAPACK calls can deadlock on machines with few cores.
    init = compiled.init.lower(seeds.seed_keys(SEED, NUM_SEEDS)).compile().as_text()
    assert "lapack" not in init and "lapack" not in compiled.text


def test_learning_is_a_real_conditional_and_storage_does_not_pass_through_it(compiled):
    lines = [line for line in compiled.text.splitlines() if " conditional(" in line]
    assert lines, "the learning branch became a select: both sides would run at every row"
    capacity = small.catch().replay.capacity
    results = [line.split(" conditional(")[0] for line in lines]
    assert not any(f",{capacity},1,10,5]" in result for result in results)


def test_no_update_happens_when_learning_is_not_due(compiled):
    _, metrics = _run(compiled, 0, LEARN_FROM + 5)
    assert np.all(metrics["count/updates"][0] == 0)
    _, metrics = _run(compiled, 2, LEARN_FROM + 5)
    assert np.all(metrics["count/updates"][0] == 3)  # at 16, 18 and 20


def test_iterations_past_two_to_the_31_go_on_as_before(compiled):
    state, _ = _run(compiled, 1, LEARN_FROM)
    start, stop = 2**31 - 3, 2**31 + 5
    before = np.asarray(state.replay.position)
    state, metrics = compiled.chunk(state, *_bounds(4, start, stop))
    assert np.all(metrics["count/updates"][0] == 2)  # at 2^31 and four later
    assert np.all(np.asarray(state.replay.position) == before + 8)
    assert np.all(np.asarray(state.agent.frozen_at) == -1)
    assert np.all(metrics["agent/frozen"][0] == 0)
    # Keys of their own: no row of actions comes again as it would if the counter stood still.
    state, _ = compiled.chunk(state, *_bounds(0, stop, stop + 40, random_share=1.0))
    actions = np.asarray(state.replay.storage.action)[:, LEARN_FROM + 8 : LEARN_FROM + 48, 0]
    np.testing.assert_allclose(np.bincount(actions.ravel()) / actions.size, 1 / 3, atol=0.1)


def test_random_actions_are_uniform_and_what_the_agent_remembers(compiled):
    # A policy that always takes action 2, by a large bias of the actor's output.
    state = compiled.init(seeds.seed_keys(SEED, NUM_SEEDS))
    actor = state.agent.behaviour.params["actor"]
    output = actor[max(name for name in actor if name.startswith("Dense"))]
    output["bias"] = output["bias"] + jnp.array([0.0, 0.0, 50.0])
    state, _ = compiled.chunk(state, *_bounds(0, 0, 30, random_share=0.0))
    assert np.all(np.asarray(state.replay.storage.action)[:, :30] == 2)
    state, _ = compiled.chunk(state, *_bounds(0, 30, 60, random_share=1.0))
    actions = np.asarray(state.replay.storage.action)[:, 30:60, 0]
    np.testing.assert_allclose(np.bincount(actions.ravel()) / actions.size, 1 / 3, atol=0.1)
    np.testing.assert_array_equal(np.asarray(state.carry.prev_action)[:, 0], actions[:, -1])


def test_random_actions_are_held_for_a_stretch_of_rows(compiled):
    state = compiled.init(seeds.seed_keys(SEED, NUM_SEEDS))
    state, _ = compiled.chunk(state, *_bounds(0, 0, 60, random_share=1.0, random_rows=6))
    actions = np.asarray(state.replay.storage.action)[:, :60, 0].reshape(NUM_SEEDS, 10, 6)
    assert np.all(actions == actions[..., :1])
    changes = actions[:, 1:, 0] != actions[:, :-1, 0]
    np.testing.assert_allclose(changes.mean(), 2 / 3, atol=0.15)


def test_environment_steps_leave_out_first_rows(compiled):
    _, metrics = _run(compiled, 0, LEARN_FROM + 20)
    # An episode of Catch has nine steps and one row that only begins it.
    assert np.all(metrics["count/env_steps"][0] == 18)
    assert np.all(metrics["episode/length"][0] / metrics["episode/length"][1] == 9)


def test_a_lane_equals_the_solo_run_of_its_seed(compiled):
    lane = 5
    entry = compiled.system.entry
    init = seeds.over_seeds(entry.init, 1)
    chunk = seeds.over_seeds(functools.partial(entry.chunk, ALL), 1, num_shared=4)
    solo = init(seeds.seed_keys(SEED, NUM_SEEDS)[lane : lane + 1])
    solo, _ = chunk(solo, *_bounds(0, 0, LEARN_FROM))
    many = compiled.init(seeds.seed_keys(SEED, NUM_SEEDS))
    many, _ = compiled.chunk(many, *_bounds(0, 0, LEARN_FROM))
    # L7 with learning off: equal streams.
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a[lane]), np.asarray(b[0])),
        many.replay.storage,
        solo.replay.storage,
    )
    # L7 with learning on: the first update's losses agree.
    _, many_metrics = compiled.chunk(many, *_bounds(1, LEARN_FROM, LEARN_FROM + 1))
    _, solo_metrics = chunk(solo, *_bounds(1, LEARN_FROM, LEARN_FROM + 1))
    for name in ("model/loss", "model/gradient_norm", "behaviour/loss"):
        assert_close(many_metrics[name][0][lane], solo_metrics[name][0][0], f"L7 {name}", 1e-5)


def _first_update(num_seeds: int):
    """Rows, and metrics of the first update, of so many seeds."""
    entry = build(small.catch()).entry
    init = seeds.over_seeds(entry.init, num_seeds)
    chunk = seeds.over_seeds(functools.partial(entry.chunk, ALL), num_seeds, num_shared=4)
    state = init(Members(SEED, num_seeds).keys())
    state, _ = chunk(state, *_bounds(0, 0, LEARN_FROM))
    state, metrics = chunk(state, *_bounds(1, LEARN_FROM, LEARN_FROM + 1))
    used = len(state.replay.position.sharding.device_set)
    return used, *seeds.gather((state.replay.storage, metrics), num_seeds)


@pytest.fixture(scope="module")
def on_one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        used, *found = _first_update(16)
    assert used == 1
    return found


@pytest.mark.parametrize(
    ("num_seeds", "devices"),
    [(3, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((12, 6), (16, 8)))],
)
def test_seeds_on_devices_are_as_on_one(on_one_device, num_seeds, devices):
    used, *found = _first_update(num_seeds)
    assert used == devices
    (rows, metrics), wanted = found, jax.tree.map(lambda x: x[:num_seeds], on_one_device)
    jax.tree.map(np.testing.assert_array_equal, rows, wanted[0])
    for name, (total, count) in metrics.items():
        other, its_count = wanted[1][name]
        np.testing.assert_array_equal(count, its_count)
        np.testing.assert_allclose(total, other, rtol=1e-4, atol=1e-5, err_msg=name)


def test_seeds_differ_and_do_not_depend_on_their_number():
    few, many = seeds.seed_keys(7, 3), seeds.seed_keys(7, 6)
    assert jnp.all(jax.random.key_data(few) == jax.random.key_data(many)[:3])
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(many))}) == 6
    neighbour = jax.random.key_data(seeds.seed_keys(8, 6))
    assert not np.any(np.all(np.asarray(jax.random.key_data(many))[:, None] == neighbour, -1))


def test_evaluation_plays_whole_episodes(compiled):
    entry = compiled.system.entry
    evaluate = seeds.over_seeds(functools.partial(entry.evaluate, 3, False), 2, num_shared=1)
    state = seeds.over_seeds(entry.init, 2)(seeds.seed_keys(0, 2))
    whole = evaluate(state.agent, seeds.seed_keys(1, 2), jnp.int32(20))
    assert whole.finished.all() and np.all(whole.length == 9)
    assert set(np.unique(whole.episode_return)) <= {-1.0, 1.0}
    cut = evaluate(state.agent, seeds.seed_keys(1, 2), jnp.int32(4))
    assert not cut.finished.any() and np.all(cut.length == 4)
