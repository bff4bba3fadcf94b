"""The actor-critic in exact models of the probes learns their known values and best actions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions, optim
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, Prediction, Starts, bind
from tests.behaviours import exact

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = actor_critic.Config(
    horizon=3,
    actor_width=16,
    critic_width=16,
    layers=1,
    num_bins=63,
    gamma=exact.GAMMA,
    optimiser=optim.Config("adam", 1e-2, 100.0, warmup=0, eps=1e-8),
)


@pytest.fixture(scope="module")
def learned():
    return exact.learn(CONFIG)


@pytest.mark.parametrize("name, where, value", exact.VALUES)
def test_critic_learns_the_known_value(learned, name, where, value):
    assert learned[name][0][where] == pytest.approx(value, abs=0.05)


@pytest.mark.parametrize("name, where, best", exact.BEST)
def test_actor_learns_the_best_action(learned, name, where, best):
    assert abs(learned[name][1][where] - best) < 0.05


@pytest.mark.parametrize("name, where, best", exact.BEST)
def test_acting_without_exploring_takes_the_most_probable_action(learned, name, where, best):
    assert learned[name][2][where] == best


# -------------------------------------------------------------------------------------------- loss

HORIZON, SIZE = 4, 3


@pytest.fixture(scope="module")
def imagined():
    """Two rollouts; the second ends with row 2, so its steps from t = 2 on are not reached."""
    keys = jax.random.split(jax.random.key(3), 4)
    discount = jnp.ones((2, HORIZON + 1)).at[1, 2].set(0.0)
    reward = 0.1 * jax.random.normal(keys[1], discount.shape)
    return actor_critic.Imagined(
        jax.random.normal(keys[0], (2, HORIZON + 1, SIZE)),
        Prediction(reward, discount, {}),
        jax.random.randint(keys[2], (2, HORIZON), 0, 2),
        jnp.ones(2),
    )


@pytest.fixture(scope="module")
def value_and_gradient():
    """Function (imagined) -> (loss, gradient) of an actor-critic that is not at its start."""
    behaviour = actor_critic.Config(
        horizon=HORIZON, actor_width=8, critic_width=8, layers=1, num_bins=9, output_gain=1.0
    ).make(exact.SPEC)
    state = behaviour.init(jax.random.key(0), jnp.zeros(SIZE))
    loss = functools.partial(actor_critic.loss, behaviour.update.args[0])

    @jax.jit
    def run(imagined):
        return jax.value_and_grad(lambda params: loss(params, state.stats, imagined)[0])(
            state.params
        )

    return run


def _changed(imagined, row):
    """Reward and features of row `row` of the second rollout are different."""
    prediction = imagined.prediction
    return imagined._replace(
        features=imagined.features.at[1, row].add(0.7),
        prediction=prediction._replace(reward=prediction.reward.at[1, row].add(0.2)),
    )


@pytest.mark.parametrize("row", [3, 4])
def test_nothing_is_learned_from_rows_beyond_a_predicted_termination(
    imagined, value_and_gradient, row
):
    expected = value_and_gradient(imagined)
    actual = value_and_gradient(_changed(imagined, row))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_rows_up_to_the_termination_are_learned_from(imagined, value_and_gradient, row):
    changed = imagined._replace(
        prediction=imagined.prediction._replace(
            reward=imagined.prediction.reward.at[1, row].add(0.2)
        )
    )
    same = value_and_gradient(changed)[0] == value_and_gradient(imagined)[0]
    assert same == (row == 0)  # the reward of row 0 arrived before any imagined action


def test_a_terminal_start_teaches_nothing(imagined, value_and_gradient):
    dead = imagined._replace(weight=jnp.array([1.0, 0.0]))
    expected = value_and_gradient(dead)
    for row in range(3):
        actual = value_and_gradient(_changed(dead, row))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def terms(imagined):
    """(metrics of the loss, the same terms by plain NumPy), returns spreading over more than 1."""
    config = actor_critic.Config(
        horizon=HORIZON,
        actor_width=8,
        critic_width=8,
        layers=1,
        num_bins=9,
        output_gain=1.0,
        gamma=exact.GAMMA,
        lambda_=0.5,
        entropy=0.3,
        range_decay=1.0,
        low_fraction=0.25,
        high_fraction=0.75,
    )
    behaviour = config.make(exact.SPEC)
    state = behaviour.init(jax.random.key(0), jnp.zeros(SIZE))
    slow = jax.tree.map(lambda x: 1.1 * x, state.params["critic"])
    stats = state.stats._replace(target_critic=slow)
    prediction = imagined.prediction
    imagined = imagined._replace(
        prediction=prediction._replace(reward=20.0 * prediction.reward),
        weight=jnp.array([0.5, 1.0]),
    )
    metrics = actor_critic.loss(behaviour.update.args[0], state.params, stats, imagined)[1][1]

    logits = exact.critic(config).apply(exact.variables(state, "critic"), imagined.features)
    slow_logits = exact.critic(config).apply({"params": slow}, imagined.features)
    policy = exact.actor(config).apply(exact.variables(state, "actor"), imagined.features)
    return metrics, _plain_terms(config, imagined, logits, slow_logits, policy)


def _plain_terms(config, imagined, logits, slow_logits, policy):
    reward, discount = (np.asarray(x, np.float64) for x in imagined.prediction[:2])

    def targets(logits):
        values = np.asarray(distributions.two_hot_mean(logits), np.float64)
        returns = values.copy()
        for t in reversed(range(HORIZON)):
            mixed = 0.5 * values[:, t + 1] + 0.5 * returns[:, t + 1]
            returns[:, t] = reward[:, t + 1] + config.gamma * discount[:, t + 1] * mixed
        return values[:, :-1], returns[:, :-1]

    values, target = targets(logits)
    _, slow_target = targets(slow_logits)
    weight = np.asarray(imagined.weight)[:, None] * np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    ordered = np.sort(target, axis=None)
    spread = ordered[5] - ordered[1]  # the second and the sixth of eight
    assert spread > 1.0
    log_probs = np.asarray(jax.nn.log_softmax(policy[:, :-1]), np.float64)
    chosen = np.take_along_axis(log_probs, np.asarray(imagined.actions)[..., None], -1)[..., 0]
    entropy = -(np.exp(log_probs) * log_probs).sum(-1)
    cross_entropy = sum(
        np.asarray(distributions.two_hot_loss(logits[:, :-1], jnp.asarray(x, jnp.float32)))
        for x in (target, slow_target)
    )
    return {
        "imagined_return": target.mean(),
        "return_range": spread,
        "actor_loss": -(weight * (chosen * (target - values) / spread + 0.3 * entropy)).mean(),
        "critic_loss": (weight * cross_entropy).mean(),
    }


@pytest.mark.parametrize("name", ["imagined_return", "return_range", "actor_loss", "critic_loss"])
def test_terms_of_the_loss_against_plain_numpy(terms, name):
    metrics, expected = terms
    np.testing.assert_allclose(metrics[f"behaviour/{name}"][0], expected[name], rtol=1e-4)


# ------------------------------------------------------------------------------------- other facts


@pytest.mark.parametrize(
    "name, num_actions, expected",
    [("actor", 6, 527_366), ("actor", 18, 530_450), ("critic", 18, 1_444_607)],
)
def test_published_parameters_golden(name, num_actions, expected):
    spec = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(num_actions))
    init = actor_critic.Config().make(spec).init
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros(1536)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params[name])) == expected


@pytest.fixture(scope="module")
def first_update():
    return exact.first_update(CONFIG)


def test_the_slow_critic_starts_as_a_copy(first_update):
    before = first_update[0]
    jax.tree.map(np.testing.assert_array_equal, before.stats.target_critic, before.params["critic"])


def test_the_slow_critic_moves_by_its_share(first_update):
    before, after, _ = first_update
    expected = jax.tree.map(
        lambda old, new: 0.98 * old + 0.02 * new,
        before.stats.target_critic,
        after.params["critic"],
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, after.stats.target_critic, expected)


def test_the_policy_starts_nearly_uniform(first_update):
    assert first_update[2]["behaviour/entropy"][0] == pytest.approx(np.log(2), abs=1e-4)


def test_the_critic_starts_nearly_uniform(first_update):
    # Two terms: the returns of the critic and those of its slow copy. Only the first of three
    # steps weighs anything, the others lie behind the termination.
    loss = first_update[2]["behaviour/critic_loss"][0] / (1 / 3)
    assert loss == pytest.approx(2 * np.log(63), abs=0.01)


def test_the_range_of_returns_moves_by_its_share(first_update):
    stats = first_update[1].stats
    np.testing.assert_allclose([stats.low, stats.high], [-0.01, 0.01], rtol=0.01)


def test_the_norm_of_the_gradient_is_reported(first_update):
    assert first_update[2]["behaviour/gradient_norm"][0] > 0  # freezing a broken seed needs it


def test_update_keeps_the_structure_of_its_state(first_update):
    before, after, _ = first_update
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )


def test_imagining_does_not_store_the_core_states(tiny_spec, tiny_drama):
    core = dataclasses.replace(tiny_drama.core, width=32, state_size=64)
    model = dataclasses.replace(tiny_drama, core=core).make(tiny_spec)
    config = dataclasses.replace(CONFIG, horizon=16)
    behaviour, num_starts = config.make(tiny_spec), 32

    def update(key):
        bound = bind(model, model.init(key))
        latents = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_starts, *x.shape)), model.initial_latent()
        )
        one = jax.tree.map(lambda x: x[0], latents)
        state = behaviour.init(key, bound.features(one))
        starts = Starts(latents, jnp.ones(num_starts))
        return behaviour.update(state, key, bound, starts, None, 0)

    memory = jax.jit(update).lower(jax.random.key(0)).compile().memory_analysis()
    states = sum(x.nbytes for x in jax.tree.leaves(model.initial_latent().carry)) * num_starts
    assert memory.temp_size_in_bytes < states * config.horizon / 2
