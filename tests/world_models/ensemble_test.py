"""The ensemble: published numbers, a noisy linear system, disagreement, elites.

Golden numbers: shared/specs/state_mbrl.md section 1, computed there in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec, Step, Timestep, bind
from mbrl_jax.world_models import ensemble, markov

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
CONFIG = ensemble.Config(members=3, elites=2, layers=1, width=16, weight_decay=0.0)
DRIFT = np.array([[0.9, 0.2], [-0.1, 0.8]], np.float32)
NOISE_STD = 0.1


@functools.partial(jax.jit, static_argnums=1)
def _batch(key, size=128):
    """Two-row windows of x' = A x + 0.5 a + noise with reward x_0 + a."""
    observation = jax.random.normal(jax.random.fold_in(key, 0), (size, 2))
    action = jax.random.uniform(jax.random.fold_in(key, 1), (size, 2, 1), minval=-1.0)
    noise = NOISE_STD * jax.random.normal(jax.random.fold_in(key, 2), (size, 2))
    following = observation @ DRIFT.T + 0.5 * action[:, 0] + noise
    reward = jnp.stack([jnp.zeros(size), observation[:, 0] + action[:, 0, 0]], axis=1)
    no = jnp.zeros((size, 2), bool)
    return Step(Timestep(jnp.stack([observation, following], axis=1), reward, no, no, no), action)


@functools.cache
def _initial(config=CONFIG, spec=SPEC):
    return jax.jit(ensemble.make(config, spec).init)(jax.random.key(0))


@functools.cache
def _trained(config):
    """A model after 400 updates on fresh batches of the noisy linear system."""
    model = ensemble.make(config, SPEC)

    def body(state, index):
        key = jax.random.fold_in(jax.random.key(1), index)
        state, _, metrics = model.update(state, key, _batch(key))
        return state, metrics["model/nll"][0]

    return jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(400)))(_initial(config))


LEARNER = dataclasses.replace(CONFIG, width=32, weight_decay=1e-5, learning_rate=3e-3)


def _latents(observation):
    zeros = jnp.zeros(observation.shape[0])
    return markov.Latent(observation, zeros, zeros + 1, {})


@functools.cache
def _imagine_fn(imagine):
    return jax.jit(jax.vmap(imagine, (None, 0, 0, 0)))


def _imagine(model, state, observation, action):
    """One imagined step from up to 200 rows (padded, so that one program serves all tests)."""
    rows = jnp.resize(observation, (200, 2)), jnp.resize(action, (200, 1))
    keys = jax.random.split(jax.random.key(3), 200)
    return _imagine_fn(model.imagine)(state, keys, _latents(rows[0]), rows[1])


def test_log_variance_bounds_golden():
    bounded = ensemble.bound_log_variance(jnp.array([-12.0, -3.0, 0.0, 2.0]), -10.0, 0.5)
    expected = [-9.8730724332, -3.0288114408, -0.4740040505, 0.2986204021]
    np.testing.assert_allclose(bounded, expected, rtol=3e-6)


def test_negative_log_likelihood_golden():
    mean = jnp.array([[0.1, -0.2], [0.4, 0.3]])
    target = jnp.array([[0.0, 0.5], [1.0, 0.3]])
    raw = jnp.array([[-1.0, 0.0], [-2.0, 1.0]])
    log_variance = ensemble.bound_log_variance(raw, -10.0, 0.5)
    nll = ensemble.gaussian_nll(mean, log_variance, target)
    np.testing.assert_allclose(jnp.mean(nll - log_variance), 0.9244381176, rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(nll), -0.0075183678, rtol=1e-4)
    params = {
        "layers": [],
        "max_log_variance": jnp.full((2,), 0.5),
        "min_log_variance": jnp.full((2,), -10.0),
    }
    no_layers = ensemble.Config(layers=-1, weight_decay=())
    penalty = ensemble.regulariser(no_layers, params)
    np.testing.assert_allclose(penalty, 0.21, rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(nll) + penalty, 0.2024816322, rtol=1e-5)


def test_loss_is_the_published_sum():
    config = dataclasses.replace(CONFIG, bootstrap=False, weight_decay=(1e-3, 1e-2))
    state, batch = _initial(config), _batch(jax.random.key(2), 8)
    loss, (_, stats, _) = jax.jit(ensemble.make(config, SPEC).loss)(
        state.params, state.stats, jax.random.key(0), batch
    )
    observation, following = batch.timestep.observation[:, 0], batch.timestep.observation[:, 1]
    scaled = (observation - observation.mean(0)) / observation.std(0)
    inputs = np.concatenate([scaled, batch.action[:, 0]], axis=1)
    target = np.concatenate([batch.timestep.reward[:, 1:], following - observation], axis=1)
    np.testing.assert_allclose(stats.observation.mean, observation.mean(0), rtol=1e-4)
    first, last = state.params["layers"]
    expected = 0.01 * 3 * (0.5 + 10.0)
    for member in range(config.members):
        hidden = jax.nn.silu(inputs @ first["kernel"][member] + first["bias"][member])
        out = hidden @ last["kernel"][member] + last["bias"][member]
        log_variance = ensemble.bound_log_variance(out[:, 3:], -10.0, 0.5)
        expected += jnp.mean((out[:, :3] - target) ** 2 * jnp.exp(-log_variance) + log_variance)
        expected += 0.5 * 1e-3 * jnp.sum(first["kernel"][member] ** 2)
        expected += 0.5 * 1e-2 * jnp.sum(last["kernel"][member] ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("scale_targets", [False, True])
def test_learns_a_noisy_linear_system_and_its_noise(scale_targets):
    config = dataclasses.replace(LEARNER, scale_targets=scale_targets)
    state, nll = _trained(config)
    assert float(nll[-1]) < float(nll[0]) - 1.0
    model = ensemble.make(config, SPEC)
    observation = jnp.tile(jnp.array([[0.5, -0.5]]), (200, 1))
    latent = _imagine(model, state, observation, jnp.full((200, 1), 0.2))
    expected = observation[0] @ DRIFT.T + 0.1
    np.testing.assert_allclose(latent.observation.mean(0), expected, atol=0.05)
    np.testing.assert_allclose(latent.observation.std(0), NOISE_STD, rtol=0.35)
    np.testing.assert_allclose(latent.reward.mean(), 0.7, atol=0.05)
    prediction = model.predict(state, jax.tree.map(lambda x: x[0], latent))
    assert float(prediction.reward) == float(latent.reward[0])
    assert float(prediction.discount) == 1.0
    assert float(prediction.extras["max_std"]) == float(latent.extras["max_std"][0]) > 0


def test_members_disagree_more_off_the_data():
    state, _ = _trained(LEARNER)
    model = ensemble.make(LEARNER, SPEC)
    near = jax.random.normal(jax.random.key(0), (200, 2))
    action = jnp.zeros((200, 1))
    on_data = _imagine(model, state, near, action).extras["disagreement"].mean()
    off_data = _imagine(model, state, 10.0 * near, action).extras["disagreement"].mean()
    assert float(off_data) > 5.0 * float(on_data) > 0.0


def test_elites_are_the_better_members_and_alone_imagine():
    config = dataclasses.replace(LEARNER, elites=1)
    state, _ = _trained(LEARNER)
    last = state.params["layers"][-1]
    spoilt = {**last, "bias": last["bias"].at[jnp.array([0, 2]), :, 1:3].add(5.0)}
    params = {**state.params, "layers": [*state.params["layers"][:-1], spoilt]}
    model = ensemble.make(config, SPEC)
    loss = jax.jit(model.loss)
    stats = state.stats
    for index in range(3):
        key = jax.random.fold_in(jax.random.key(5), index)
        stats = loss(params, stats, key, _batch(key))[1][1]
    assert int(jnp.argmin(stats.holdout_error)) == 1
    observation = jnp.zeros((200, 2))
    latent = _imagine(
        model, state._replace(params=params, stats=stats), observation, jnp.zeros((200, 1))
    )
    assert float(jnp.abs(latent.observation).max()) < 1.0


def test_bags_are_fixed_and_poisson_and_leave_out_a_holdout():
    rows = markov.flat_transitions(SPEC, _batch(jax.random.key(0), 4000))
    bag_counts = jax.jit(functools.partial(ensemble.bag_counts, CONFIG))
    counts = bag_counts(rows, jnp.zeros(()))
    assert counts.shape == (3, 4000)
    np.testing.assert_allclose(counts.mean(1), 1.0, atol=0.06)
    np.testing.assert_allclose(counts.var(1), 1.0, atol=0.1)
    np.testing.assert_allclose((counts == 0).mean(1), np.exp(-1), atol=0.03)
    assert abs(np.corrcoef(counts)[0, 1]) < 0.05
    backwards = jax.tree.map(lambda x: x[::-1], rows)
    np.testing.assert_array_equal(bag_counts(backwards, jnp.zeros(()))[:, ::-1], counts)


def test_members_never_train_on_their_holdout():
    model, state = ensemble.make(CONFIG, SPEC), _initial()
    batch = _batch(jax.random.key(0), 64)
    bag_counts = jax.jit(functools.partial(ensemble.bag_counts, CONFIG))
    counts = bag_counts(markov.flat_transitions(SPEC, batch), jnp.zeros(()))
    member = 1
    # The first `hidden` rows of the batch are those that the member's bootstrap set left out.
    order = np.argsort(np.asarray(counts[member]), stable=True)
    hidden = int((counts[member] == 0).sum())
    ordered = jax.tree.map(lambda x: x[order], batch)
    no_statistics = state.stats._replace(count=jnp.float32(1e9))  # all but fixed

    def bias_gradient(batch):
        return jax.grad(lambda p: model.loss(p, no_statistics, jax.random.key(0), batch)[0])(
            state.params
        )["layers"][-1]["bias"][member]

    is_last = ordered.timestep.is_last.at[:hidden, 0].set(True)  # rows that do not count at all
    masked = ordered._replace(timestep=ordered.timestep._replace(is_last=is_last))
    gradient = jax.jit(bias_gradient)
    assert 10 < hidden < 40
    np.testing.assert_allclose(gradient(ordered), gradient(masked), rtol=0.1, atol=0.01)
    used = ordered.timestep.is_last.at[hidden : 2 * hidden, 0].set(True)
    without = gradient(ordered._replace(timestep=ordered.timestep._replace(is_last=used)))
    assert not np.allclose(gradient(ordered), without, rtol=0.1, atol=0.01)


def test_rows_before_a_reset_do_not_count():
    model, state = ensemble.make(CONFIG, SPEC), _initial()
    batch = _batch(jax.random.key(0), 32)
    is_last = batch.timestep.is_last.at[::2, 0].set(True)
    other = batch.timestep.observation.at[::2, 1].add(50.0)
    update = jax.jit(model.update)
    states = [
        update(
            state,
            jax.random.key(0),
            Step(batch.timestep._replace(observation=x, is_last=is_last), batch.action),
        )[0]
        for x in (batch.timestep.observation, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    nothing = batch.timestep._replace(is_last=jnp.ones((32, 2), bool))
    after = update(state, jax.random.key(0), Step(nothing, batch.action))[0]
    jax.tree.map(
        np.testing.assert_array_equal,
        after.stats._replace(count=0.0 * after.stats.count),
        state.stats,
    )


def test_running_statistics_standardise_the_features():
    state, _ = _trained(LEARNER)
    observation = _batch(jax.random.key(8), 2000).timestep.observation[:, 0]
    features = jax.vmap(lambda x: ensemble.features(CONFIG, SPEC, state, x))(observation)
    np.testing.assert_allclose(features.mean(0), 0.0, atol=0.1)
    np.testing.assert_allclose(features.std(0), 1.0, atol=0.1)
    constant = ensemble.Moments(jnp.full((1,), 100.0), jnp.full((1,), 1e-9))
    np.testing.assert_array_equal(ensemble.deviation(constant), [1.0])


def test_termination_head_learns_when_episodes_end():
    config = dataclasses.replace(CONFIG, termination=True, learning_rate=3e-3)
    model, state = ensemble.make(config, SPEC), _initial(config)

    def body(state, index):
        key = jax.random.fold_in(jax.random.key(1), index)
        batch = _batch(key)
        ends = batch.timestep.observation[:, 0, 0] > 0  # decided by the row before
        is_terminal = batch.timestep.is_terminal.at[:, 1].set(ends)
        batch = batch._replace(timestep=batch.timestep._replace(is_terminal=is_terminal))
        return model.update(state, key, batch)[0], ()

    state = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(200))[0])(state)
    latent = _imagine(model, state, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.zeros((2, 1)))
    assert float(latent.discount[0]) < 0.1
    assert float(latent.discount[1]) > 0.9


def test_interface_keeps_structures_and_shapes_for_grids_and_discrete_actions():
    spec = EnvSpec(ArraySpec((2, 2), "int32"), DiscreteSpec(3))
    config = dataclasses.replace(CONFIG, termination=True)
    model, state = ensemble.make(config, spec), _initial(config, spec)
    lead = (4, 3)
    no = jnp.zeros(lead, bool)
    observation = jax.random.randint(jax.random.key(0), (*lead, 2, 2), 0, 5)
    actions = jnp.ones(lead, int)
    batch = Step(Timestep(observation, jnp.ones(lead), no, no, no.at[:, 1].set(True)), actions)
    after, entries, metrics = jax.jit(model.update)(state, jax.random.key(0), batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert all(jnp.shape(x) == () for value in metrics.values() for x in value)
    latents = jax.jit(jax.vmap(model.latent_at))(entries, jnp.array([0, 1, 2, 1]))
    np.testing.assert_array_equal(latents.discount, [1, 0, 1, 0])
    np.testing.assert_array_equal(latents.observation[2], observation[2, 2].ravel())
    bound = bind(model, after)
    keys = jax.random.split(jax.random.key(1), 4)
    imagined = jax.jit(jax.vmap(bound.imagine))(keys, latents, actions[:, 0])
    initial = jax.tree.map(lambda x: jnp.stack([x] * 4), model.initial_latent())
    for got in (imagined, initial, latents):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
            lambda x: (x.shape, x.dtype), latents
        )
    assert bound.features(model.latent_at(imagined, 0)).shape == (4,)
    assert bound.decode(model.latent_at(imagined, 0)).shape == (2, 2)


def test_observed_sequence_equals_single_rows():
    model, state = ensemble.make(CONFIG, SPEC), _initial()
    rows = jax.tree.map(lambda x: x[0], _batch(jax.random.key(0), 1))
    key, action = jax.random.key(0), jnp.zeros((1,))
    entries = model.observe_sequence(state, key, model.initial_latent(), action, rows)
    for t in range(2):
        timestep = jax.tree.map(lambda x, t=t: x[t], rows.timestep)
        single = model.observe(state, key, model.initial_latent(), timestep, action)
        jax.tree.map(np.testing.assert_array_equal, model.latent_at(entries, t), single)


def test_rates_may_be_traced_and_equal_configs_give_one_record():
    batch, state = _batch(jax.random.key(0), 16), _initial()

    def run(rate):
        config = dataclasses.replace(CONFIG, learning_rate=rate)
        return config.make(SPEC).update(state, jax.random.key(0), batch)[0].params["layers"]

    kernels = jax.jit(jax.vmap(run))(jnp.array([0.0, 1e-3]))[0]["kernel"]
    np.testing.assert_array_equal(kernels[0], state.params["layers"][0]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])
    assert CONFIG.make(SPEC) is dataclasses.replace(CONFIG).make(SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elites": 4}, "elites"),
        ({"activation": "gelo"}, "activation"),
        ({"weight_decay": (1e-5,)}, "weight_decay"),
    ],
)
def test_refuses_impossible_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change).make(SPEC)
