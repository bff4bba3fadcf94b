"""Action masks: what they forbid is never done, and never counted, in either world."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import legal
from mbrl_jax.behaviours import actor_critic, choices, ppo
from mbrl_jax.envs.doctor.examine import check_spec
from mbrl_jax.envs.spec import first_timestep, random_action
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config, first_look
from mbrl_jax.networks import encoders
from mbrl_jax.train.run import run
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    HostEnvironment,
    HostEnvironments,
    MultiDiscreteSpec,
    Prediction,
    Starts,
)
from tests import signals

pytestmark = pytest.mark.usefixtures("quick_compile")

TWO = MultiDiscreteSpec((2, 3))
MASK = jnp.array([False, True, True, False, True])  # of TWO: 1, and 0 or 2


def _spec(action, size, dtype="bool"):
    return EnvSpec(DictSpec((("action_mask", ArraySpec((size,), dtype)),)), action)


def _row(*masks, is_last=False):
    """A row [1, N] of lanes with these masks."""
    row = first_timestep({"action_mask": np.array(masks)[None]})
    shape = (1, len(masks))
    last = np.broadcast_to(np.array(is_last), shape)
    return row._replace(is_first=~last, is_last=last, reward=np.zeros(shape, np.float32))


# ------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("action", [DiscreteSpec(5), TWO], ids=["one", "two"])
def test_a_distribution_is_the_one_over_what_is_allowed(action):
    made, raw = choices.choices_of(action), jnp.array([9.0, -1.0, 0.3, 8.0, 1.1])
    distribution = made.read(raw, MASK)
    keys = jax.random.split(jax.random.key(0), 4_000)
    drawn = np.asarray(jax.vmap(made.sample, (0, None))(keys, distribution))
    vectors = np.array([[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]], bool)
    if action == TWO:
        options = np.array([[1, 0], [1, 2]])
        weights = np.exp([0.3, 1.1])
    else:
        options, weights = np.argmax(vectors, 1), np.exp([-1.0, 0.3, 1.1])
    wanted = weights / weights.sum()
    log_prob = jax.vmap(made.log_prob, (None, 0))(distribution, jnp.asarray(options))
    np.testing.assert_allclose(log_prob, np.log(wanted), rtol=1e-5)
    np.testing.assert_allclose(
        made.entropy(distribution, None), -(wanted * np.log(wanted)).sum(), rtol=1e-5
    )
    shares = [(drawn == option).reshape(len(drawn), -1).all(1).mean() for option in options]
    np.testing.assert_allclose(shares, wanted, atol=0.03)
    assert sum(shares) == 1.0  # nothing else was drawn
    np.testing.assert_array_equal(made.mode(distribution), options[np.argmax(wanted)])


@pytest.mark.parametrize("action", [DiscreteSpec(5), TWO], ids=["one", "two"])
def test_what_is_forbidden_has_no_gradient(action):
    made = choices.choices_of(action)
    choice = jnp.array([1, 2]) if action == TWO else jnp.int32(2)

    def gain(raw):
        distribution = made.read(raw, MASK)
        return made.log_prob(distribution, choice) + made.entropy(distribution, choice)

    slope = np.asarray(jax.grad(gain)(jnp.array([9.0, -1.0, 0.3, 8.0, 1.1])))
    assert not slope[~np.asarray(MASK)].any() and np.isfinite(slope).all() and slope[2] != 0


@pytest.mark.parametrize("action", [DiscreteSpec(5), TWO], ids=["one", "two"])
def test_random_actions_are_uniform_among_the_allowed(action):
    keys = jax.random.split(jax.random.key(0), 3_000)
    drawn = jax.vmap(lambda key: random_action(action, key, MASK))(keys)
    like = random_action(action, keys[0])
    assert (drawn.shape[1:], drawn.dtype) == (like.shape, like.dtype)
    found, counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    assert found.tolist() == ([[1, 0], [1, 2]] if action == TWO else [1, 2, 4])
    np.testing.assert_allclose(counts / len(keys), 1 / len(found), atol=0.04)


def test_of_what_is_expected_the_most_probable_option_stays_allowed():
    said = jnp.array([[0.6, 0.4, 0.1, 0.3, 0.2], [0.9, 0.8, 0.7, 0.2, 0.51]])
    found = legal.expected(TWO, Prediction(0, 0, {"action_mask": said}))
    assert found.astype(int).tolist() == [[1, 0, 0, 1, 0], [1, 1, 1, 0, 1]]
    with pytest.raises(ValueError, match="predicts no action_mask: use model=drama"):
        legal.expected(TWO, Prediction(0, 0, {}))


# ------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize(
    "spec, sentence",
    [
        (_spec(DiscreteSpec(3), 4), r"is bool\[4\].* has to be bool\[3\]"),
        (_spec(DiscreteSpec(3), 3, "int8"), r"is int8\[3\].* has to be bool\[3\]"),
        (_spec(TWO, 2), r"has to be bool\[5\]"),
        (_spec(BoundedSpec(2), 2), "is for discrete actions"),
        (_spec(DictActionSpec((("pick", DiscreteSpec(2)), ("by", TWO))), 2), r"to be bool\[7\]"),
        (_spec(DictActionSpec((("by", BoundedSpec(2)),)), 2), "is for discrete actions"),
    ],
)
def test_a_mask_that_does_not_fit_the_actions_is_refused(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        legal.require_mask(spec)
    assert [f.topic for f in check_spec(spec) if f.severity == "error"] == ["action"]


def test_a_mask_is_never_an_image():
    leaf = ArraySpec((64, 64, 3), "bool")
    assert encoders.net_for(leaf, "action_mask") == "dense" != encoders.net_for(leaf, "camera")


# ------------------------------------------------------------------------- rows that allow nothing


def test_a_lane_that_allows_nothing_is_named():
    spec = _spec(TWO, 5)
    some, half, none = [1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0] * 5
    row = _row(*np.array([some, half, none], bool))
    with pytest.raises(ValueError, match="lane 1 of seed 0 allows no action in row 7"):
        legal.require_some(spec, row, 7)
    legal.require_some(spec, row._replace(is_last=np.array([[False, True, True]])), 7)


@pytest.mark.parametrize("how", ["open", "open_rendered"])
def test_lanes_on_the_host_raise_where_they_get_stuck(how):
    spec = _spec(DiscreteSpec(2), 2)
    rows = [_row([True, False]), _row([True, True]), _row([False, False])]
    lanes = HostEnvironment(
        lambda which: rows.pop(0), lambda actions: None, lambda: rows.pop(0), None
    )
    env = legal.watched(HostEnvironments(spec, *[lambda seeds, *, evaluation: lanes] * 2))
    opened = getattr(env, how)(np.zeros((1, 1)), evaluation=False)
    opened.reset(None)
    opened.receive()
    with pytest.raises(ValueError, match="lane 0 of seed 0 allows no action in row 2"):
        opened.receive()


@pytest.mark.parametrize("action", [DiscreteSpec(5), TWO], ids=["one", "two"])
def test_the_doctor_draws_allowed_actions_on_the_host(action):
    mask = np.broadcast_to(np.asarray(MASK), (2, 300, 5))
    drawn = legal.draw(action, np.random.default_rng(0), mask)
    assert drawn.dtype == np.int32 and drawn.shape[:2] == (2, 300)
    found = np.unique(drawn.reshape(600, -1), axis=0).tolist()
    assert found == ([[1, 0], [1, 2]] if action == TWO else [[1], [2], [4]])


def test_a_first_look_refuses_an_environment_that_gets_stuck():
    first_look.require_choices(signals.Config())
    with pytest.raises(ConfigError, match="lane 0 of seed 0 allows no action in row 3"):
        first_look.require_choices(signals.Config(stuck=3))


def test_what_follows_a_row_that_allows_nothing_is_not_a_number():
    spec = _spec(DiscreteSpec(2), 2)
    before, after = _row([True, False], [False, False]), _row([True, True], [True, True])
    found = legal.arrived(spec, before, after)
    assert np.isnan(found.reward).tolist() == [[False, True]]
    assert not np.isnan(
        legal.arrived(spec, before._replace(is_last=~before.is_last), after).reward
    ).any()
    plain = dataclasses.replace(spec, observation=ArraySpec((2,), "float32"))
    found, _ = legal.counts(spec, before)["count/nothing_allowed"]
    assert found == 1.0
    row = after._replace(observation=np.zeros((1, 2, 2)))
    assert legal.arrived(plain, row, row) is row and legal.counts(plain, row) == {}


# -------------------------------------------------------------------------------- in imagination

NUM, HORIZON = 5, 4
SMALL = {"horizon": HORIZON, "actor_width": 8, "critic_width": 8, "layers": 1, "num_bins": 9}


def _toy():
    """A model whose latent is (row, mask), each mask drawn anew; it says the mask with 0.9."""

    def imagine(key, latent, action):
        mask = jax.random.bernoulli(key, 0.3, (NUM,))
        return latent[0] + 1, mask.at[jax.random.randint(key, (), 0, NUM)].set(True)

    def predict(latent):
        said = {"action_mask": 0.05 + 0.9 * latent[1]}
        return Prediction(latent[0].astype(jnp.float32), jnp.ones(()), said)

    unused = [None] * 4
    features = lambda latent: jax.nn.one_hot(latent[0], HORIZON + 1)  # noqa: E731
    return BoundModel(*unused, imagine, predict, features, None)


@pytest.mark.parametrize("passes", ["once", "passes"])
def test_ppo_imagines_and_learns_with_the_same_masks(passes):
    """What was forbidden is not imagined, and probabilities are those of then: no ratio is off."""
    settings = {"epochs": 1, "output_gain": 3.0, "input_rows": passes, "normalise_input": True}
    behaviour = ppo.Config(**SMALL, **settings).make(_spec(DiscreteSpec(NUM), NUM))
    parts = behaviour.update.args[0]
    state = behaviour.init(jax.random.key(0), jnp.zeros(HORIZON + 1))
    start = (jnp.zeros((64,), jnp.int32), jnp.ones((64, NUM), bool).at[:, 2:].set(False))
    starts = Starts(start, jnp.ones(64))

    def imagine(state):
        return actor_critic.imagine(parts, state, jax.random.key(1), _toy(), starts)[1]

    imagined = jax.jit(imagine)(state)
    allowed = np.asarray(imagined.prediction.extras["action_mask"][:, :-1] > 0.5)
    actions = np.asarray(imagined.actions)
    assert np.take_along_axis(allowed, actions[..., None], -1).all()
    np.testing.assert_array_equal(actor_critic.mask_before(parts, imagined), allowed)
    assert allowed.mean() < 0.6 and len(np.unique(actions)) == NUM
    update = jax.jit(lambda s: behaviour.update(s, jax.random.key(1), _toy(), starts, None, 0))
    after, metrics = update(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    if passes == "once":  # else the statistics have moved meanwhile
        assert abs(float(metrics["behaviour/kl"][0])) < 1e-6


# --------------------------------------------------------------------------------------- in a run


def test_no_forbidden_action_is_taken_by_chance_by_policy_or_greedily():
    """Of what an untrained policy or chance does without a mask, a quarter is forbidden."""
    signals.assert_legal(config.override(signals.drama(), ["replay.capacity=100"]), episodes=16)


@pytest.mark.slow
@pytest.mark.parametrize("make", [signals.drama, signals.dreamer], ids=["drama", "dreamer"])
def test_what_two_cameras_a_vector_and_a_mask_show_is_learned(make, tmp_path):
    """Random play among allowed actions returns 8 / 3."""
    result = run(make(), tmp_path, num_seeds=3)
    assert result.evaluation.episode_return.mean(axis=1).min() > 6.0
    assert not result.evaluation.extras["illegal"].any()
