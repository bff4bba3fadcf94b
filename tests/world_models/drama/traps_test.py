"""The ten traps of the published Drama (specification section 9), walked one after the other.

Each is looked at in `drama_atari100k` with small nets; what has golden numbers or tests of its own
elsewhere is only touched.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drama_atari100k
from mbrl_jax import optim
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.cores import mamba2
from mbrl_jax.envs.spec import example_row
from mbrl_jax.experiment import config
from mbrl_jax.replay import samplers
from mbrl_jax.testing import random_trajectory
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, Prediction
from mbrl_jax.world_models.drama import nets

pytestmark = pytest.mark.usefixtures("quick_compile")

PUBLISHED = drama_atari100k.get_experiment()
SMALL = config.override(PUBLISHED, PUBLISHED.debug)
SPEC = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6), "merged")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    return SMALL.model.make(SPEC)


@pytest.fixture(scope="module")
def state(model):
    return jax.jit(model.init)(KEY)


@pytest.fixture(scope="module")
def batch():
    rows = [random_trajectory(SPEC, jax.random.fold_in(KEY, i), 4, ()) for i in range(2)]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


@pytest.fixture(scope="module")
def trained(model, state, batch):
    """What an update leaves of the model's state."""
    return jax.jit(model.update)(state, KEY, batch)[0]


def test_1_the_policy_does_not_see_the_newest_frame(model):
    behaviour = SMALL.behaviour.make(SPEC)
    agent = SMALL.agent.make(SPEC, model, behaviour, SMALL.make_replay(SPEC))
    act = jax.jit(functools.partial(agent.act, explore=True))
    learned = jax.jit(agent.init)(KEY)
    first = example_row(SPEC).timestep._replace(is_first=jnp.ones((), bool))
    carry, _ = act(learned, KEY, agent.initial_carry(), first)
    dark = first._replace(is_first=jnp.zeros((), bool))
    light = dark._replace(observation=jnp.full_like(dark.observation, 255))
    after_dark, after_light = act(learned, KEY, carry, dark)[0], act(learned, KEY, carry, light)[0]
    assert after_dark.prev_action == after_light.prev_action
    assert (after_dark.memory.rows.timestep.observation[1] == 0).all()
    assert (after_light.memory.rows.timestep.observation[1] == 255).all()  # but keeps it


def _return_of(reward):
    """λ-returns of one rollout whose critic says 0 everywhere."""
    parts = actor_critic.make_parts(dataclasses.replace(SMALL.behaviour, output_gain=0.0), SPEC)
    learner = actor_critic.init(parts, KEY, jnp.zeros(3))
    horizon = SMALL.behaviour.horizon
    imagined = actor_critic.Imagined(
        jnp.zeros((1, horizon + 1, 3)),
        Prediction(reward[None], jnp.ones((1, horizon + 1)), {}),
        jnp.zeros((1, horizon), jnp.int32),
        jnp.ones(1),
    )
    logits = jnp.zeros((1, horizon + 1, SMALL.behaviour.num_bins))
    return actor_critic.make_targets(parts, learner.stats, imagined, logits)[0].live[0]


def test_2_returns_count_rewards_on_arrival():
    arrivals = jnp.zeros(SMALL.behaviour.horizon + 1).at[0].set(1.0)
    assert _return_of(arrivals)[0] == pytest.approx(1.0)
    # What the last action brought is lost.
    assert np.abs(_return_of(jnp.roll(arrivals, -1))).max() < 1e-5


def test_3_the_return_mixes_in_the_value_of_its_own_state():
    assert PUBLISHED.behaviour.mixed_value == "same"  # golden in switches_test


def test_4_batches_move_the_norms_statistics_and_acting_reads_them(model, state, trained, batch):
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.stats, trained.stats)
    assert all(jax.tree.leaves(moved)) and set(moved) == {"encoder", "decoder"}
    parts, frames = model.observe.args[0], batch.timestep.observation[0]
    acting = jax.jit(
        lambda stats: nets.posterior(parts, state.params, stats, frames, False)
    )
    (before, kept), (after, _) = acting(state.stats), acting(trained.stats)
    assert not np.allclose(before, after)
    jax.tree.map(np.testing.assert_array_equal, kept, state.stats["encoder"])


def test_5_the_actors_normaliser_is_part_of_the_saved_state():
    parts = actor_critic.make_parts(SMALL.behaviour, SPEC)
    stats = jax.eval_shape(functools.partial(actor_critic.init, parts), KEY, jnp.zeros(7)).stats
    assert stats.features.mean.shape == stats.features.variance.shape == (7,)


def test_6_free_bits_floor_the_mean_and_pixels_are_summed(model, state, batch):
    loss = jax.jit(model.loss)
    metrics = loss(state.params, state.stats, KEY, batch)[1][2]
    assert metrics["model/kl"][0] < 1.0  # small nets: below the floor, so it stands there
    assert metrics["model/dynamics"][0] == 1.0
    assert metrics["model/representation"][0] == pytest.approx(0.1)
    assert metrics["model/reconstruction"][0] > 500  # of 12,288 values in [0, 1]

    def reward_alone(params):
        return model.loss(params, state.stats, KEY, batch)[1][2]["model/reward"][0]

    gradient = jax.jit(jax.grad(reward_alone))(state.params)
    assert optim.global_norm(gradient["encoder"]) > 0  # through the sample, which is not detached


def test_7_laprop_with_a_tiny_epsilon_and_two_clips(state):
    for learner, clip in ((PUBLISHED.model, 1_000.0), (PUBLISHED.behaviour, 100.0)):
        rule = learner.optimiser
        assert (rule.name, rule.learning_rate, rule.eps) == ("laprop", 4e-5, 1e-20)
        assert (rule.clip_norm, rule.warmup, rule.weight_decay) == (clip, 1_000, 0.0)
    moments = [x for x in jax.tree.leaves(state.opt) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype.name for x in moments} == {"float32"}


def test_8_only_starts_are_counted_and_windows_cross_episodes():
    ring = PUBLISHED.replay
    sampler, rows = ring.sampler.make(), samplers.Ring(400, 1, jnp.int32(400))
    for stream, (num, length) in (("model", (16, 128)), ("imagine", (64, 8))):
        fresh = sampler.init(400, 1)
        counts, slot, _ = sampler.sample(fresh, KEY, rows, length, num, stream)
        counted = counts.model if stream == "model" else counts.imagine
        assert sorted(np.flatnonzero(counted)) == sorted(np.asarray(slot))
        assert len(set(np.asarray(slot).tolist())) == num  # without replacement
    assert PUBLISHED.env.protocol.life_loss == "terminal"
    assert PUBLISHED.model.boundaries == "ignored"


@pytest.mark.parametrize("integers", [True, False])
def test_9_imagined_samples_are_one_hot_but_for_the_last_bit_as_published(state, integers):
    model = dataclasses.replace(SMALL.model, integer_buffer=integers).make(SPEC)
    imagine = jax.jit(jax.vmap(functools.partial(model.imagine, state), (0, None, None)))
    latents = imagine(jax.random.split(KEY, 200), model.initial_latent(), jnp.int32(1))
    below = {1.0 - 2.0**-24} if integers else set()
    assert set(np.unique(latents.sample).tolist()) == {0.0, 1.0} | below
    groups = latents.sample.reshape(200, SMALL.model.groups, SMALL.model.classes)
    assert ((groups > 0).sum(-1) == 1).all()


def test_10_mamba2_begins_each_context_from_nothing_with_scaled_outputs():
    core = mamba2.Config().make(1_030)
    params = jax.jit(core.init)(KEY)
    for name, bound in (("in_proj", 512**-0.5), ("out_proj", 1_024**-0.5 / 2**0.5)):
        largest = jnp.abs(params["mixers_0"][name]["kernel"]).max()
        assert 0.99 * bound < largest <= bound
    assert not any(x.any() for x in jax.tree.leaves(core.initial_carry()))
