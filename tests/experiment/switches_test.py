"""Both sides of every switch between the published Drama and a better one, and its experiment.

Golden numbers: shared/specs/drama.md sections 1, 7.1, 9 and 10.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drama_atari100k
from launch import flags
from mbrl_jax import distributions, optim
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.envs.spec import example_row
from mbrl_jax.experiment import config, switches
from mbrl_jax.experiment.experiment import with_settings
from mbrl_jax.replay import samplers
from mbrl_jax.testing import random_trajectory
from mbrl_jax.train.training import chunk_bounds
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, Prediction

pytestmark = pytest.mark.usefixtures("quick_compile")
PUBLISHED = drama_atari100k.get_experiment()


# ------------------------------------------------------------------------------- the experiment


@pytest.mark.parametrize("core, more", [("mamba2", 0), ("mamba", 0), ("storm", 1)])
@pytest.mark.parametrize("learner, own", [("actor_critic", 0), ("ppo", 1)])
def test_the_experiment_is_as_published_in_every_switch(core, more, learner, own):
    settings = [f"model.core={core}", f"behaviour={learner}"]
    published = with_settings(PUBLISHED, settings)
    found = switches.switches(published)
    assert len(found) == 16 + more + own
    for switch in found:
        assert switch.value == switch.published, switch.path
        config.override(published, [f"{switch.path}={switch.better}"])  # the other side is legal
    # The transformer's path reads rewards and ends where actions have led, and has no integers.
    values = {switch.path: switch.value for switch in found}
    transformer = core == "storm"
    assert values["behaviour.rewards"] == ("aligned" if transformer else "shifted")
    assert values["model.integer_buffer"] == (not transformer)
    assert values.get("model.core.dropout") == (0.1 if transformer else None)
    assert values.get("behaviour.slope") == ("half" if learner == "ppo" else None)


def test_what_is_set_itself_counts_more_than_what_comes_with_a_part():
    for settings in (
        ["behaviour.rewards=shifted", "model.core=storm"],
        ["model.core=mbrl_jax.cores.storm:Config", "behaviour.rewards=shifted"],
    ):
        changed = with_settings(PUBLISHED, settings)
        assert changed.behaviour.rewards == "shifted" and changed.model.core.dropout == 0.1
        found = {s.path: s for s in switches.switches(changed)}["behaviour.rewards"]
        assert (found.value, found.published) == ("shifted", "aligned")
    # A part that stands there already brings nothing.
    storm = with_settings(PUBLISHED, ["model.core=storm", "model.core.dropout=0.3"])
    assert with_settings(storm, ["model.core=storm"]) == storm


def test_the_command_line_says_what_comes_with_a_part(capsys):
    settings = ["model.core=storm", "replay.capacity=5000"]
    changed = flags.adjust_experiment(PUBLISHED, settings, None, False)
    assert changed == with_settings(PUBLISHED, settings)
    assert changed.behaviour.rewards == "aligned"
    said = capsys.readouterr().err
    assert "model.core=storm brings model.core.dropout=0.1" in said
    assert "behaviour.rewards=aligned, unless --set says otherwise" in said
    flags.adjust_experiment(PUBLISHED, ["model.core=mamba"], None, False)
    assert capsys.readouterr().err == ""


def test_what_comes_with_a_part_is_saved_and_absent_from_older_files():
    saved = config.to_json(PUBLISHED)
    assert config.from_json(saved) == PUBLISHED
    for part, name in (
        (saved, "with_parts"),
        (saved["model"], "integer_buffer"),
        (saved["model"], "last_row"),
        (saved["behaviour"], "input_rows"),
    ):
        del part[name]
    older = config.from_json(saved)
    assert older.with_parts == () and not older.model.integer_buffer
    assert (older.model.last_row, older.behaviour.input_rows) == ("seen", "once")


def test_the_tables_in_the_docs_are_up_to_date():
    text = Path(__file__).parents[2].joinpath("experiments/README.md").read_text()
    for table in (
        switches.table(PUBLISHED),
        switches.table_with_parts(PUBLISHED),
        switches.table_of_differences(drama_atari100k.DIFFERENCES),
    ):
        assert table in text, "run python -m launch.switches and put it there"


def test_updates_begin_at_step_1032_and_number_98969():
    config.validate(PUBLISHED)
    learning = [(a, b) for phase, a, b in chunk_bounds(PUBLISHED, 0) if phase.learn]
    assert learning[0][0] == 1_032 and learning[-1][1] == 100_001
    assert sum(b - a for a, b in learning) == 98_969
    assert PUBLISHED.steps == 105_000
    assert sum(p.iterations for p in PUBLISHED.phases if p.random_share == 1.0) == 1_034


def test_windows_and_contexts_have_the_published_sizes():
    ring = PUBLISHED.replay
    assert (ring.batch_size, ring.length, PUBLISHED.model.last_row) == (16, 128, "arrival")
    assert PUBLISHED.agent.streams() == {"imagine": (1_024, 8)}
    assert ring.sampler == samplers.DynamicFrequency(temperature=10, alpha=1, beta=1, kappa=64)


def test_published_parameters_at_six_actions():
    spec = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6))
    model = PUBLISHED.model.make(spec)
    features = jnp.zeros(1_536)
    behaviour = jax.eval_shape(PUBLISHED.behaviour.make(spec).init, jax.random.key(0), features)

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(jax.eval_shape(model.init, jax.random.key(0)).params) == 7_155_459
    assert size(behaviour.params["actor"]) == 527_366
    assert size(behaviour.params["critic"]) == 1_444_607


# ------------------------------------------------------------------------------------ behaviour


class _Critic:
    """Says what the logits beside it say, of live and slow critic alike."""

    def apply(self, variables, features):
        del features
        return variables["params"]


VALUES = jnp.array([[0.5, 0.4, 0.3, 0.2, 0.1]])
BINS = 255


def _targets(reward, discount, start_weight=1.0, **changes):
    """Targets of one rollout with values `VALUES`; rows 0 … 4 of rewards and discounts."""
    settings = actor_critic.Config(horizon=4, **changes)
    logits = jnp.log(distributions.two_hot(VALUES, BINS) + 1e-30)
    parts = actor_critic.Parts(settings, None, _Critic(), None, None)
    imagined = actor_critic.Imagined(
        jnp.zeros((1, 5, 1)),
        Prediction(jnp.array([reward]), jnp.array([discount]), {}),
        jnp.zeros((1, 4), jnp.int32),
        jnp.array([start_weight]),
    )
    stats = actor_critic.Stats(logits, jnp.zeros(()), jnp.zeros(()), ())
    return actor_critic.make_targets(parts, stats, imagined, logits)[0]


REWARD = (1.0, 0.0, 2.0, -1.0)
GOING_ON = (1.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "mixed, expected",
    [
        ("same", (2.794315, 1.891200, 2.0, -0.896575)),
        ("next", (2.784782, 1.886275, 2.0, -0.901500)),
    ],
)
def test_value_that_the_return_mixes_in_golden(mixed, expected):
    live = _targets((9.0, *REWARD), (0.3, *GOING_ON), mixed_value=mixed).live
    np.testing.assert_allclose(live[0], expected, rtol=2e-6)


def test_shifted_rewards_are_those_that_had_arrived():
    shifted = _targets((*REWARD, 9.0), (*GOING_ON, 0.3), mixed_value="same", rewards="shifted")
    np.testing.assert_allclose(shifted.live[0], (2.794315, 1.8912, 2.0, -0.896575), rtol=2e-6)


def test_ends_by_threshold_are_all_or_nothing():
    soft = (0.3, 0.9, 0.6, 0.4, 0.7)
    hard = _targets((0.0, *REWARD), soft, ends="threshold").live
    rounded = _targets((0.0, *REWARD), (0.0, 1.0, 1.0, 0.0, 1.0)).live
    np.testing.assert_array_equal(hard, rounded)
    assert not np.allclose(hard, _targets((0.0, *REWARD), soft).live)


def test_weights_of_steps_behind_a_predicted_end():
    discount = (1.0, 0.5, 0.0, 1.0, 1.0)
    np.testing.assert_allclose(_targets((0.0, *REWARD), discount).weight[0], (1, 0.5, 0, 0))
    everything = _targets((0.0, *REWARD), discount, start_weight=0.0, weigh_reached=False)
    np.testing.assert_array_equal(everything.weight[0], np.ones(4))


# ---------------------------------------------------------------------------------- world model


@pytest.fixture(scope="module")
def windows(tiny_spec):
    """Two windows [2, 7]; in the first an episode begins at row 3."""
    rows = [
        random_trajectory(tiny_spec, jax.random.key(i), 7, (3,) if i == 0 else ()) for i in (0, 1)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def _loss(settings, spec, batch):
    model = settings.make(spec)
    state = model.init(jax.random.key(0))
    total, (_, _, metrics) = jax.jit(model.loss)(
        state.params, state.stats, jax.random.key(1), batch
    )
    return {"loss": total} | {name: value for name, (value, _) in metrics.items()}


def _forget_seam(batch):
    timestep = batch.timestep
    return batch._replace(
        timestep=timestep._replace(is_first=timestep.is_first.at[0, 3].set(False))
    )


def test_ignored_boundaries_train_across_the_seam(tiny_drama, tiny_spec, windows):
    ignoring = dataclasses.replace(tiny_drama, boundaries="ignored")
    merged = dataclasses.replace(tiny_spec, seam="merged")
    with_seam = _loss(ignoring, merged, windows)
    without = _loss(ignoring, merged, _forget_seam(windows))
    assert with_seam == without
    reset = _loss(tiny_drama, merged, windows)
    assert reset["model/kl"] != with_seam["model/kl"]
    unseamed = _loss(tiny_drama, merged, _forget_seam(windows))
    np.testing.assert_allclose(unseamed["model/kl"], with_seam["model/kl"], rtol=1e-6)


def test_a_merged_seam_has_a_reward_and_a_separate_one_has_none(tiny_drama, tiny_spec, windows):
    timestep = windows.timestep
    richer = windows._replace(timestep=timestep._replace(reward=timestep.reward.at[0, 3].add(5.0)))
    merged = dataclasses.replace(tiny_spec, seam="merged")
    for spec, counts in ((merged, True), (tiny_spec, False)):
        before, after = (_loss(tiny_drama, spec, batch) for batch in (windows, richer))
        assert (before["model/reward"] != after["model/reward"]) == counts


def test_a_context_begins_from_nothing_even_where_boundaries_are_ignored(tiny_drama, tiny_spec):
    ignoring = dataclasses.replace(tiny_drama, boundaries="ignored")
    rows = random_trajectory(tiny_spec, jax.random.key(2), 5, (0, 3))
    model = ignoring.make(tiny_spec)
    state = model.init(jax.random.key(0))
    other = jax.tree.map(lambda x: x + 1.0, model.initial_latent())

    def outputs(latent, rows):
        return model.observe_sequence(state, jax.random.key(1), latent, jnp.int32(1), rows).outputs

    np.testing.assert_array_equal(outputs(model.initial_latent(), rows), outputs(other, rows))
    seamless = rows._replace(timestep=rows.timestep._replace(is_first=jnp.arange(5) == 0))
    np.testing.assert_array_equal(outputs(other, rows), outputs(other, seamless))


# ------------------------------------------------------------------------------------ optimiser


def test_weight_decay_is_a_share_of_the_weights_whatever_the_rate():
    params = {"w": jnp.array([2.0, -4.0])}
    grads = {"w": jnp.array([0.3, 0.1])}

    def step(**changes):
        rule = optim.Config(warmup=0, **changes).make()
        return optim.apply_gradients(rule, grads, rule.init(params), params)[0]["w"]

    for rate in (1e-2, 1e-3):
        without = step(learning_rate=rate)
        decayed = step(learning_rate=rate, weight_decay=0.01)
        np.testing.assert_allclose(decayed, without - 0.01 * params["w"], rtol=1e-6)


# 2 M · H + M rows: each step, and all rows again; PPO M · H, and the same in each of 3 epochs.
@pytest.mark.parametrize("learner, passes", [("actor_critic", 2 * 2 + 1), ("ppo", 2 + 3 * 2)])
def test_a_whole_update_of_the_published_kind_runs(learner, passes):
    small = config.override(PUBLISHED, PUBLISHED.debug)
    small = with_settings(small, [f"behaviour={learner}"])
    spec = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6), "merged")
    small = dataclasses.replace(small, behaviour=dataclasses.replace(small.behaviour, horizon=2))
    replay = small.make_replay(spec)
    parts = small.model.make(spec), small.behaviour.make(spec), replay
    agent = small.agent.make(spec, *parts)

    @jax.jit
    def run(key):
        stored = jax.lax.fori_loop(
            0, 30, lambda i, ring: replay.add(ring, _lane(spec, i)), replay.init(example_row(spec))
        )
        state = agent.init(key)
        return state, agent.update(state, key, stored, 0)

    before, (after, counters, metrics) = run(jax.random.key(0))
    assert int(after.frozen_at) == -1
    assert float(counters.imagine.sum()) == small.agent.num_starts
    rows = small.agent.num_starts * passes
    np.testing.assert_allclose(after.behaviour.stats.features.count, rows, rtol=1e-3)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.behaviour, after.behaviour)
    assert moved.params["actor"] and "behaviour/loss" in metrics


def _lane(spec, i):
    row = example_row(spec)
    picture = jax.random.randint(jax.random.key(i), (64, 64, 3), 0, 256).astype(jnp.uint8)
    row = row._replace(timestep=row.timestep._replace(observation=picture, is_first=i % 11 == 0))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], row)
