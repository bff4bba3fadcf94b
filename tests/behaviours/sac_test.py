"""Soft actor-critic: published numbers, a bandit with a known best action, target network, masks.

Golden numbers: shared/specs/state_mbrl.md section 2, computed there in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.behaviours import sac, tanh_normal
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DiscreteSpec,
    EnvSpec,
    Transition,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
CONFIG = sac.Config(layers=1, width=8)


def _model():
    """The observation is latent and features at once."""
    unused = None
    return BoundModel(
        initial_latent=lambda: jnp.zeros((2,)),
        observe=lambda key, latent, timestep, prev_action: timestep.observation,
        observe_sequence=unused,
        latent_at=unused,
        imagine=unused,
        predict=unused,
        features=lambda latent: latent,
        decode=unused,
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _batch(key, num_batches=4, size=64, best=0.5):
    """Rows of a one-step bandit: reward -(a - best)², then the end."""
    lead = (num_batches, size)
    observation = jax.random.normal(jax.random.fold_in(key, 0), (*lead, 2))
    action = jax.random.uniform(jax.random.fold_in(key, 1), (*lead, 1), minval=-1.0)
    reward = -jnp.square(action[..., 0] - best)
    return Transition(observation, action, reward, observation, jnp.zeros(lead), jnp.ones(lead))


def _initial(config=CONFIG):
    return jax.jit(sac.make(config, SPEC).init)(jax.random.key(0), jnp.zeros((2,)))


def _update(config, state, key, batch):
    return sac.make(config, SPEC).update(state, key, _model(), None, batch, 0)


def test_tanh_normal_golden():
    action, log_prob = tanh_normal.squash(jnp.array([0.3]), jnp.array([-0.5]), jnp.array([0.7]))
    np.testing.assert_allclose(action, [0.6197329881], rtol=1e-6)
    np.testing.assert_allclose(log_prob, -0.1793182366, rtol=1e-5)
    np.testing.assert_allclose(tanh_normal.mode(jnp.array([0.3])), [0.2913126125], rtol=1e-6)


def test_tanh_normal_density_is_exact_far_out_and_integrates_to_one():
    np.testing.assert_allclose(tanh_normal.log_det(jnp.float32(8.0)), -14.6137057, rtol=1e-6)
    gradient = jax.grad(tanh_normal.log_det)(jnp.float32(80.0))
    np.testing.assert_allclose(gradient, -2.0, rtol=1e-6)
    noise = jnp.linspace(-6.0, 6.0, 4001)[:, None]
    mean, log_std = jnp.full_like(noise, 0.3), jnp.full_like(noise, -0.5)
    action, log_prob = jax.vmap(tanh_normal.squash)(mean, log_std, noise)
    assert abs(np.trapezoid(np.exp(log_prob), action[:, 0]) - 1.0) < 1e-3
    other = tanh_normal.sample_and_log_prob(jax.random.key(0), jnp.zeros(3), jnp.zeros(3))
    assert other[0].shape == (3,)
    assert other[1].shape == ()


def test_loss_golden():
    target = sac.soft_target(1.0, 0.99, jnp.float32(4.5), -0.3, 0.2)
    np.testing.assert_allclose(target, 5.5144, rtol=1e-6)
    losses = [sac.critic_loss(jnp.array([q]), target[None], jnp.ones(1)) for q in (4.8, 5.2)]
    np.testing.assert_allclose(losses, [0.2551836800, 0.0494236800], rtol=1e-5)
    # mean log π = -0.3 is an entropy of 0.3
    value, slope = jax.value_and_grad(sac.temperature_loss)(jnp.log(0.2), 0.3, -1.0)
    np.testing.assert_allclose(value, -2.0922692861, rtol=1e-6)
    np.testing.assert_allclose(slope, 1.3, rtol=1e-6)


def test_gradients_reach_only_their_own_parameters():
    state = _initial()
    rows = _rows(_batch(jax.random.key(1), 1))
    full = functools.partial(sac.loss, CONFIG, SPEC)
    gradient = jax.jit(jax.grad(lambda p: full(p, state.stats, rows)[0]))(state.params)

    def critic_only(params):
        values = sac.critic(params, rows.features, rows.action)
        return 0.5 * jnp.sum(jnp.mean(jnp.square(values - rows.reward), axis=-1))

    def actor_only(params):  # -0.3 + … : α log π - min Q, by the textbook (golden 4)
        mean, log_std = sac.actor(params, rows.features)
        action, log_prob = jax.vmap(tanh_normal.squash)(mean, log_std, rows.noise[:, 1])
        value = sac.critic(state.params["critic"], rows.features, action).min(0)
        return jnp.mean(jnp.exp(state.params["log_temperature"]) * log_prob - value)

    for name, own in (("critic", critic_only), ("actor", actor_only)):
        expected = jax.jit(jax.grad(own))(state.params[name])
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            gradient[name],
            expected,
        )


def test_untrained_policy_is_tanh_of_a_standard_normal():
    state = _initial()
    behaviour = sac.make(CONFIG, SPEC)
    act = jax.jit(jax.vmap(lambda k, x: behaviour.act(state, k, (), x, _model(), explore=True)[1]))
    keys = jax.random.split(jax.random.key(2), 2000)
    action = act(keys, jax.random.normal(jax.random.key(3), (2000, 2)))
    assert abs(float(jnp.std(jnp.arctanh(jnp.clip(action, -0.9999, 0.9999)))) - 1.0) < 0.1
    carry, greedy = behaviour.act(state, keys[0], (), jnp.ones(2), _model(), explore=False)
    assert carry == behaviour.initial_carry() == ()
    np.testing.assert_array_equal(greedy, [0.0])


def test_learns_the_best_action_of_a_bandit_and_the_right_spread():
    config = sac.Config(
        width=64,
        actor_learning_rate=3e-3,
        critic_learning_rate=5e-3,
        init_temperature=0.02,
        learn_temperature=False,
    )
    update = jax.jit(functools.partial(_update, config))
    state = _initial(config)
    for index in range(120):  # of 4 gradient steps
        key = jax.random.fold_in(jax.random.key(4), index)
        state, metrics = update(state, key, _batch(key))
    behaviour = sac.make(config, SPEC)
    observation = jax.random.normal(jax.random.key(5), (50, 2))
    greedy = jax.jit(
        jax.vmap(
            lambda x: behaviour.act(state, jax.random.key(0), (), x, _model(), explore=False)[1]
        )
    )(observation)
    np.testing.assert_allclose(greedy, 0.5, atol=0.1)
    # The optimum is ∝ exp(-(a - ½)² / α): deviation √(α / 2) of a, over 1 - a² before tanh.
    log_std = jnp.mean(sac.actor(state.params["actor"], observation)[1])
    np.testing.assert_allclose(log_std, np.log(0.1 / 0.75), atol=0.25)
    total, count = metrics["behaviour/temperature"]
    np.testing.assert_allclose(total / count, 0.02, rtol=1e-5)


def test_temperature_rises_below_and_falls_above_the_target_entropy():
    batch = _batch(jax.random.key(1))
    for target, sign in ((5.0, 1), (-5.0, -1)):
        config = sac.Config(layers=1, width=8, target_entropy=target)
        update = jax.jit(functools.partial(_update, config))
        after = update(_initial(config), jax.random.key(0), batch)[0]
        assert sign * float(after.params["log_temperature"]) > 0


def test_target_critic_is_a_moving_average_and_structure_is_kept():
    state, batch = _initial(), _batch(jax.random.key(1), num_batches=1)
    update = jax.jit(functools.partial(_update, CONFIG))
    after, metrics = update(state, jax.random.key(0), batch)
    expected = jax.tree.map(
        lambda old, new: 0.995 * old + 0.005 * new, state.stats, after.params["critic"]
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.stats, expected
    )
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert all(len(value) == 2 for value in metrics.values())


def test_invalid_rows_do_not_matter():
    state, batch = _initial(), _batch(jax.random.key(1))
    valid = batch.valid.at[:, ::2].set(0.0)
    noisy = jax.tree.map(lambda x: x.at[:, ::2].add(100.0), batch)
    update = jax.jit(functools.partial(_update, CONFIG))
    one, _ = update(state, jax.random.key(0), batch._replace(valid=valid))
    other, _ = update(state, jax.random.key(0), noisy._replace(valid=valid))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    none, _ = update(state, jax.random.key(0), batch._replace(valid=0 * valid))
    np.testing.assert_array_equal(
        none.params["actor"][0]["kernel"], state.params["actor"][0]["kernel"]
    )


def test_seeds_under_vmap_match_solo_runs():
    keys = jax.random.split(jax.random.key(7), 2)
    behaviour = sac.make(CONFIG, SPEC)
    states = jax.jit(jax.vmap(lambda key: behaviour.init(key, jnp.zeros((2,)))))(keys)
    rows = jax.jit(jax.vmap(lambda key: _rows(_batch(key, 1))))(keys)
    loss = functools.partial(sac.loss, CONFIG, SPEC)
    both, _ = jax.jit(jax.vmap(loss))(states.params, states.stats, rows)
    solo, _ = jax.jit(loss)(*jax.tree.map(lambda x: x[1], (states.params, states.stats, rows)))
    np.testing.assert_allclose(both[1], solo, rtol=1e-5)


def test_learning_rates_may_be_traced():
    state, batch = _initial(), _batch(jax.random.key(1), num_batches=1)

    def run(rate):
        config = dataclasses.replace(CONFIG, actor_learning_rate=rate, critic_learning_rate=rate)
        return _update(config, state, jax.random.key(0), batch)[0].params["critic"]

    kernels = jax.jit(jax.vmap(run))(jnp.array([0.0, 1e-3]))[0]["kernel"]
    np.testing.assert_array_equal(kernels[0], state.params["critic"][0]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])


def test_refuses_discrete_actions():
    with pytest.raises(ValueError, match="bounded real actions"):
        CONFIG.make(EnvSpec(ArraySpec((2,), "float32"), DiscreteSpec(3)))


def _rows(batch):
    """The first batch as `Rows` for the loss."""
    noise = jax.random.normal(jax.random.key(9), (*batch.reward.shape, 2, 1))
    return jax.tree.map(lambda x: x[0], _as_rows(batch, noise))


def _as_rows(batch, noise):
    return sac.Rows(
        batch.observation,
        batch.action,
        batch.reward,
        batch.next_observation,
        batch.discount,
        batch.valid,
        noise,
    )


def test_shared_direction_golden():
    rows = jnp.array([[[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]], [[1.0, 1.0], [1.0, -1.0], [2.0, 2.0]]])
    gradient = jnp.swapaxes(rows, 0, 1)  # [N, B, A]
    of_dead = jax.jit(jax.grad(lambda g: sac.shared_direction(g.at[0, 0].set(0.0 * g[0, 0])).sum()))
    np.testing.assert_allclose(jax.jit(sac.shared_direction)(gradient), [-0.4, 2.0], rtol=1e-5)
    assert np.isfinite(of_dead(gradient)).all()


def test_diversity_turns_the_critics_gradients_apart_with_the_published_weight():
    spec = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(2))
    batch = _batch(jax.random.key(3), num_batches=50)
    batch = batch._replace(action=jnp.concatenate([batch.action, 0.5 * batch.action], axis=-1))
    base = dataclasses.replace(CONFIG, critics=4, critic_learning_rate=3e-3)
    configs = [base, dataclasses.replace(base, diversity=2.0)]

    @jax.jit
    def run(key):
        state = sac.make(configs[0], spec).init(key, jnp.zeros((2,)))
        noise = jax.random.normal(key, (*batch.reward.shape, 2, 2))
        rows = jax.tree.map(lambda x: x[0], _as_rows(batch, noise))
        losses = [sac.loss(c, spec, state.params, state.stats, rows)[0] for c in configs]
        after = [
            sac.make(c, spec).update(state, key, _model(), None, batch, 0)[0].params["critic"]
            for c in configs
        ]
        shared = [sac.alignment(p, rows) for p in (state.params["critic"], *after)]
        return losses, shared, after[0]

    losses, shared, critic = run(jax.random.key(0))
    assert critic[0]["kernel"].shape == (4, 4, 8)
    # Twice the sum of our losses has the published sum of squares in it, and η times the penalty.
    np.testing.assert_allclose(2.0 * (losses[1] - losses[0]), 2.0 * shared[0], rtol=1e-4)
    assert shared[2] < shared[1] - 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critics": 1, "diversity": 1.0}, "too few"),
        ({"critics": 2, "diversity": 1.0}, "one number"),
    ],
)
def test_refuses_critics_that_cannot_be_diverse(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change).make(SPEC)
