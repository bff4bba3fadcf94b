"""TD-MPC2's behaviour: what plans score, targets of critics, the policy apart, how it acts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.behaviours import tdmpc
from mbrl_jax.behaviours.planning import mppi, plans
from mbrl_jax.distributions import symexp, two_hot
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DiscreteSpec,
    EnvSpec,
    Prediction,
    Starts,
    bind,
)
from mbrl_jax.world_models import tdmpc as world_model

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(1))
MODEL = world_model.Config(latent=8, width=8, layers=0, encoder_width=8, num_bins=9)
CONFIG = tdmpc.Config(
    planner=mppi.Config(iterations=3, num_samples=32, num_proposals=4, num_elites=8),
    width=8,
    layers=1,
    num_bins=9,
    gamma=0.9,
)
BINS = np.asarray(symexp(jnp.linspace(-10.0, 10.0, 9)))  # what each bin stands for
WINDOWS, LENGTH = 2, 3


@functools.cache
def _initial(config=CONFIG):
    return jax.jit(config.make(SPEC).init)(jax.random.key(0), jnp.zeros((8,)))


def _saying(state, bins):
    """The same with critics, and targets, that say the value of a bin wherever they are asked."""
    logits = 1e3 * jax.nn.one_hot(jnp.asarray(bins), 9)
    critics = dict(state.params["critics"])
    output = max(name for name in critics if name.startswith("Dense"))
    critics[output] = {**critics[output], "bias": logits}  # the kernel is 0 at first
    stats = state.stats._replace(target_critics=critics)
    return state._replace(params=state.params | {"critics": critics}, stats=stats)


def test_the_laws_hold():
    linear = dataclasses.replace(CONFIG, layers=0)  # compiles sooner
    testing.check_behaviour(linear, SPEC, MODEL, batch=(2, 3))


@pytest.mark.parametrize(
    ("length", "gamma"), [(25, 0.95), (200, 0.975), (500, 0.99), (1_000, 0.995), (5_000, 0.995)]
)
def test_the_discount_of_an_episode_length(length, gamma):
    np.testing.assert_allclose(tdmpc.discount_for(length), gamma)


# ------------------------------------------------------------------------------------------ plans


def _game(first_reward, discounts):
    """A model whose latent counts its rows: what the first action brings, then 1000 each row."""

    def imagine(key, latent, action):
        del key
        row, _ = latent
        reward = jnp.where(row == 0, first_reward(action[0]), 1_000.0)
        return row + 1, reward

    def predict(latent):
        row, reward = latent
        return Prediction(reward, discounts[row - 1], {})

    rest = dict.fromkeys(("initial_latent", "observe", "observe_sequence", "latent_at", "decode"))
    return BoundModel(
        **rest, imagine=imagine, predict=predict, features=lambda latent: jnp.zeros((8,))
    )


START = (jnp.zeros((), jnp.int32), jnp.zeros(()))


@functools.cache
def _scores():
    """(discounts [H]) -> what seven plans score whose first action brings 2."""
    parts, state = tdmpc.make_parts(CONFIG, SPEC), _saying(_initial(), [5] * 5)

    def scores(discounts):
        model = _game(lambda action: 2.0, discounts)
        value = functools.partial(tdmpc.end_value, parts, state)
        score = plans.scorer(SPEC.action, model, START, CONFIG.gamma, value)
        return score(jax.random.key(0), PLANS)

    return jax.jit(scores)


PLANS = jnp.zeros((7, 3, 1))


@pytest.mark.parametrize(
    ("discounts", "expected"),
    [
        ((0.0, 1.0, 1.0), 2.0),  # an end behind the first row
        ((1.0, 0.0, 1.0), 2.0 + 0.9 * 1_000),
        ((1.0, 0.5, 0.0), 2.0 + 0.9 * 1_000 + 0.81 * 0.5 * 1_000),
        ((1.0, 1.0, 1.0), 2.0 + 0.9 * 1_000 + 0.81 * 1_000 + 0.729 * BINS[5]),
    ],
)
def test_a_plan_scores_nothing_behind_a_predicted_end(discounts, expected):
    found = _scores()(jnp.array(discounts))
    np.testing.assert_allclose(found, np.full(7, expected), rtol=1e-4)


@pytest.mark.parametrize("greedy", ["mean", "elite"])
def test_the_planner_takes_what_comes_before_an_end(greedy):
    """Going left ends with 5; right goes on, with less, to rewards behind another end."""
    behaviour = dataclasses.replace(CONFIG, greedy=greedy).make(SPEC)
    model = _game(lambda action: 5.0 - 5.0 * jnp.square(action + 0.6), jnp.array([0.0, 1.0, 1.0]))
    act = jax.jit(functools.partial(behaviour.act, explore=False), static_argnums=4)
    carry, action = act(_initial(), jax.random.key(0), behaviour.initial_carry(), START, model)
    assert abs(action[0] + 0.6) < 0.3 and carry.shape == (3, 1)
    np.testing.assert_array_equal(carry[-1], 0.0)  # shifted: nothing is planned behind it
    again = act(_initial(), jax.random.key(1), behaviour.initial_carry(), START, model)[1]
    assert (abs(again - action) > 1e-6).all()


def test_the_policy_acts_alone_in_the_same_state():
    alone = dataclasses.replace(CONFIG, plan=False)
    planner, policy = CONFIG.make(SPEC), alone.make(SPEC)
    testing.assert_same_structure(_initial(alone), _initial(), "state")
    carry = planner.initial_carry() + 0.5
    model, state = MODEL.make(SPEC), _initial()
    bound = bind(model, jax.jit(model.init)(jax.random.key(1)))
    after, action = policy.act(
        state, jax.random.key(0), carry, model.initial_latent(), bound, explore=False
    )
    mean, _ = tdmpc.policy(tdmpc.make_parts(alone, SPEC), state.params["policy"], jnp.zeros(8))
    np.testing.assert_allclose(action, np.tanh(mean), rtol=1e-6)
    np.testing.assert_array_equal(after, carry)


# --------------------------------------------------------------------------------------- learning


def _batch(key, terminal=False):
    make = functools.partial(testing.random_trajectory, SPEC, length=LENGTH + 1)
    windows = [make(jax.random.fold_in(key, i)) for i in range(WINDOWS)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *windows)
    reward = jnp.full_like(batch.timestep.reward, 0.25)
    ends = jnp.full_like(batch.timestep.is_terminal, terminal)
    return batch._replace(timestep=batch.timestep._replace(reward=reward, is_terminal=ends))


@functools.cache
def _critics_loss():
    """(model params, behaviour params, stats, key, batch) -> ((loss, aux), gradients of both)."""
    model, behaviour = MODEL.make(SPEC), CONFIG.make(SPEC)
    model_state = jax.jit(model.init)(jax.random.key(1))

    def loss(model_params, params, stats, key, batch):
        entries = model.loss(model_params, (), key, batch)[1][0]
        bound = bind(model, model_state._replace(params=model_params))
        return behaviour.representation_loss(params, stats, key, bound, entries, batch)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return functools.partial(jax.jit(gradient), model_state.params)


def _target(i, terminal=False):
    state, batch = _saying(_initial(), [4, 5, 6, 7, 8]), _batch(jax.random.key(2), terminal)
    (_, (_, metrics)), _ = _critics_loss()(state.params, state.stats, jax.random.key(i), batch)
    return float(metrics["behaviour/target"][0])


def test_targets_are_the_smaller_of_two_different_target_critics():
    values = np.array([(_target(i) - 0.25) / 0.9 for i in range(40)])
    bins = abs(values[:, None] - BINS).argmin(1)
    np.testing.assert_allclose(values, BINS[bins], rtol=1e-3, atol=1e-3)
    assert set(bins) == {4, 5, 6, 7}  # each may be the smaller one but the largest


def test_nothing_is_expected_behind_a_terminal_row():
    np.testing.assert_allclose(_target(0, terminal=True), 0.25, rtol=1e-6)


def test_the_critics_shape_the_model_and_leave_the_policy():
    state, batch = _initial(), _batch(jax.random.key(2))
    noisy = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape), state.params
    )
    _, (of_model, of_behaviour) = _critics_loss()(noisy, state.stats, jax.random.key(0), batch)
    for name in ("encoder", "dynamics"):
        assert abs(of_model[name]["Dense_0"]["kernel"]).max() > 0
    assert not any(x.any() for x in jax.tree.leaves(of_behaviour["policy"]))
    stepped, _ = jax.jit(CONFIG.make(SPEC).apply)(state, of_behaviour, state.stats)
    followed = jax.tree.map(
        lambda old, new: 0.99 * old + 0.01 * new,
        state.stats.target_critics,
        stepped.params["critics"],
    )
    testing.assert_close(stepped.stats.target_critics, followed, "targets", 1e-6)
    jax.tree.map(np.testing.assert_array_equal, stepped.params["policy"], state.params["policy"])


class _Peak:
    """In a critic's place: Q(z, a) = 30 · (1 - (a - 0.5)²), whatever its parameters."""

    def apply(self, variables, inputs):
        del variables
        return jnp.log(two_hot(30.0 * (1.0 - jnp.square(inputs[..., -1] - 0.5)), 9, limit=10.0))


def test_the_policy_climbs_its_critics_and_scales_them():
    rate = dataclasses.replace(CONFIG.policy_optimiser, learning_rate=1e-2)
    parts = tdmpc.make_parts(dataclasses.replace(CONFIG, policy_optimiser=rate), SPEC)
    parts, model = parts._replace(critics=parts.critics._replace(net=_Peak())), MODEL.make(SPEC)
    state, bound = _initial(), bind(model, jax.jit(model.init)(jax.random.key(1)))
    z = jax.nn.softmax(jax.random.normal(jax.random.key(2), (16, 8)))
    starts = Starts(world_model.Latent(z, jnp.zeros(16), jnp.zeros(16)), jnp.ones(16))

    def body(state, key):
        state, metrics = tdmpc.update(parts, state, key, bound, starts, None, None)
        return state, metrics["behaviour/value"][0]

    keys = jax.random.split(jax.random.key(0), 300)
    trained, values = jax.jit(lambda s: jax.lax.scan(body, s, keys))(state)
    mean, _ = tdmpc.policy(parts, trained.params["policy"], z)
    np.testing.assert_allclose(jnp.tanh(mean), 0.5, atol=0.15)
    assert values[-20:].mean() > values[:20].mean() + 1.0
    assert trained.stats.q_range > 1.0
    jax.tree.map(np.testing.assert_array_equal, trained.params["critics"], state.params["critics"])


def test_both_entropies():
    """Of the action, log(1 - a²) less than that of the normal before tanh (published)."""
    state, z = _initial(), jnp.zeros((5, 8))
    found = {}
    for of in ("action", "normal"):
        parts = tdmpc.make_parts(dataclasses.replace(CONFIG, entropy_of=of), SPEC)
        params = state.params["policy"]
        action, found[of] = tdmpc.sample_policy(parts, params, jax.random.key(0), z)
    expected = jnp.log1p(-jnp.square(action[:, 0]))
    np.testing.assert_allclose(found["action"] - found["normal"], expected, rtol=1e-3, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="bounded real actions"):
        CONFIG.make(dataclasses.replace(SPEC, action=DiscreteSpec(2)))
