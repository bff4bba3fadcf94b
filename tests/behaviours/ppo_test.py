"""PPO: its loss against NumPy in float64, clipping, epochs, minibatches, learning the probes.

Golden numbers: shared/specs/drama.md sections 5, 7.1 and 10.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import optim
from mbrl_jax.behaviours import actor_critic, choices, ppo
from mbrl_jax.networks.heads import RMS_EPS
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, Prediction
from tests.behaviours import exact

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ppo.Config(
    horizon=3,
    actor_width=16,
    critic_width=16,
    layers=1,
    num_bins=63,
    gamma=exact.GAMMA,
    optimiser=optim.Config("adam", 1e-2, 100.0, warmup=0, eps=1e-8),
    epochs=2,
    num_minibatches=2,
)

# ---------------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def learned():
    return exact.learn(CONFIG, updates=150)


@pytest.mark.parametrize("name, where, value", exact.VALUES)
def test_critic_learns_the_known_value(learned, name, where, value):
    assert learned[name][0][where] == pytest.approx(value, abs=0.05)


@pytest.mark.parametrize("name, where, best", exact.BEST)
def test_actor_learns_the_best_action(learned, name, where, best):
    assert abs(learned[name][1][where] - best) < 0.05
    assert learned[name][2][where] == best


# ----------------------------------------------------------------------------------- the surrogate


@pytest.mark.parametrize(
    "ratio, advantage, value, whole, half",
    [
        (1.5, 1.0, 1.2, 0.0, 0.0),  # gained enough
        (1.5, -1.0, -1.5, -1.0, -1.0),  # the way back stays open
        (0.5, 1.0, 0.5, 1.0, 1.0),
        (0.5, -1.0, -0.8, 0.0, 0.0),
        (1.1, 2.0, 2.2, 2.0, 1.0),  # within the limits
        (0.9, -2.0, -1.8, -2.0, -1.0),
        (1.0, 2.0, 2.0, 2.0, 1.0),
    ],
)
def test_clipping_limits(ratio, advantage, value, whole, half):
    """The halves are what torch gives for `min(ratio * A, clipped.detach())`."""
    surrogate = functools.partial(ppo.clipped_surrogate, advantage=advantage, clip=0.2)
    for name, slope in (("whole", whole), ("half", half)):
        actual = jax.jit(jax.value_and_grad(functools.partial(surrogate, slope=name)))(ratio)
        np.testing.assert_allclose(actual, (value, slope), rtol=1e-6)


def test_kl_estimate_golden():
    assert ppo.kl_estimate(jnp.log(1.5)) == pytest.approx(0.094535, abs=1e-6)
    assert ppo.kl_estimate(jnp.zeros(())) == 0


# ----------------------------------------------------------------------- loss and gradient by NumPy

SIZE, ROWS = 3, 12
SMALL = ppo.Config(
    actor_width=4,
    critic_width=4,
    layers=1,
    num_bins=9,
    output_gain=1.0,
    entropy=0.3,
    clip=0.2,
    critic_scale=0.7,
)


def _net(params, x):
    hidden = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + RMS_EPS)
    hidden = hidden * params["RMSNorm_0"]["scale"]
    hidden = hidden / (1 + np.exp(-hidden))
    return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _two_hot_loss(logits, target):
    place = (np.sign(target) * np.log1p(np.abs(target)) + 20) / (40 / 8)
    lower = np.floor(place).astype(int)
    log_probs, rows = _log_softmax(logits), np.arange(len(target))
    share = place - lower
    return -((1 - share) * log_probs[rows, lower] + share * log_probs[rows, lower + 1])


def _plain_loss(params, rows):
    log_probs = _log_softmax(_net(params["actor"], rows.features))
    ratio = np.exp(log_probs[np.arange(ROWS), rows.action] - rows.old_log_prob)
    advantage, live, slow, weight = rows.targets
    limited = np.where(ratio > 1.2, 1.2, np.where(ratio < 0.8, 0.8, ratio))
    gain = np.where(ratio * advantage < limited * advantage, ratio, limited) * advantage
    entropy = -(np.exp(log_probs) * log_probs).sum(-1)
    logits = _net(params["critic"], rows.features)
    error = 0.7 * _two_hot_loss(logits, live) + _two_hot_loss(logits, slow)
    return (weight * (error - gain - 0.3 * entropy)).mean(), ratio


@pytest.fixture(scope="module")
def case():
    """(parts, params, rows) with ratios within and beyond both limits, advantages of both signs."""
    behaviour = SMALL.make(exact.SPEC)
    params = jax.jit(behaviour.init)(jax.random.key(0), jnp.zeros(SIZE)).params
    params = jax.tree.map(lambda x: x + 0.05, params)
    rng = np.random.default_rng(0)
    features, action = rng.normal(size=(ROWS, SIZE)), rng.integers(0, 2, ROWS)
    log_probs = _log_softmax(_net(_float64(params["actor"]), features))
    ratio = np.array([0.5, 0.7, 0.9, 1.0, 1.1, 1.5] * 2)
    old = log_probs[np.arange(ROWS), action] - np.log(ratio)
    advantage = np.repeat([1.3, -0.6], 6)
    live, slow = rng.normal(size=(2, ROWS)) * 10
    weight = rng.uniform(size=ROWS)
    targets = actor_critic.Targets(advantage, live, slow, weight)
    return behaviour.update.args[0], params, ppo.Rows(features, action, old, targets)


def _float64(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def _jax_rows(rows):
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32), rows
    )


def test_loss_against_plain_numpy(case):
    parts, params, rows = case
    total, values = jax.jit(functools.partial(ppo.loss, parts, stats=None))(
        params, rows=_jax_rows(rows)
    )
    expected, ratio = _plain_loss(_float64(params), rows)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(values["kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-4)
    assert values["clipped"] == pytest.approx(0.5)


def test_gradient_equals_finite_differences_of_plain_numpy(case):
    parts, params, rows = case
    gradient = jax.jit(jax.grad(lambda p: ppo.loss(parts, p, None, _jax_rows(rows))[0]))(params)
    leaves, tree = jax.tree.flatten(_float64(params))
    for leaf, actual in zip(leaves, jax.tree.leaves(gradient), strict=True):
        for index in np.ndindex(leaf.shape):
            value, sides = leaf[index], []
            for move in (1e-6, -1e-6):
                leaf[index] = value + move
                sides.append(_plain_loss(jax.tree.unflatten(tree, leaves), rows)[0])
            leaf[index] = value
            assert actual[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=2e-5)


# ------------------------------------------------------------------------------------------- epochs

HORIZON = 4


@pytest.fixture(scope="module")
def imagined():
    """Two rollouts; the second ends with row 2."""
    keys = jax.random.split(jax.random.key(3), 4)
    discount = jnp.ones((2, HORIZON + 1)).at[1, 2].set(0.0)
    reward = 5.0 * jax.random.normal(keys[1], discount.shape)
    return actor_critic.Imagined(
        jax.random.normal(keys[0], (2, HORIZON + 1, SIZE)),
        Prediction(reward, discount, {}),
        jax.random.randint(keys[2], (2, HORIZON), 0, 2),
        jnp.ones(2),
    )


def _epoch(config, imagined):
    """(state before, after, metrics) of one epoch."""
    behaviour = config.make(exact.SPEC)
    parts = behaviour.update.args[0]

    @jax.jit
    def run(key):
        state = behaviour.init(key, jnp.zeros(SIZE))
        features = imagined.features[:, :-1]
        log_probs = actor_critic.policy(parts, state.params["actor"], state.stats, features)
        old = choices.log_prob_of(log_probs, imagined.actions)
        return state, *ppo.epoch(parts, imagined, old, state, key)

    return run(jax.random.key(0))


def _one_step(**changes):
    sizes = dict(horizon=HORIZON, actor_width=8, critic_width=8, layers=1, num_bins=9)
    return ppo.Config(**(sizes | dict(output_gain=1.0, epochs=1) | changes))


def test_the_first_step_is_that_of_the_actor_critic(imagined):
    """Where the policy is still the old one, the surrogate's gradient is REINFORCE's."""
    config = _one_step()
    before, after, _ = _epoch(config, imagined)
    fields = [f.name for f in dataclasses.fields(actor_critic.Config)]
    plain = actor_critic.Config(**{name: getattr(config, name) for name in fields})
    parts = plain.make(exact.SPEC).update.args[0]

    @jax.jit
    def step(before):
        gradient = jax.grad(functools.partial(actor_critic.loss, parts), has_aux=True)
        grads, (stats, _) = gradient(before.params, before.stats, imagined)
        return actor_critic.apply_gradients(parts, before, stats, grads)[0]

    expected = step(before)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-8)
    jax.tree.map(close, after.params, expected.params)
    jax.tree.map(close, after.stats, expected.stats)


@pytest.mark.parametrize("slope, share", [("whole", 1.0), ("half", 0.5)])
def test_what_weighs_beside_the_entropy_at_the_first_step(case, slope, share):
    """Where the policy is the old one: REINFORCE, or half of it, beside the same entropy."""
    parts, params, rows = case
    parts = parts._replace(config=dataclasses.replace(parts.config, slope=slope))
    rows = _jax_rows(rows)
    log_probs = actor_critic.policy(parts, params["actor"], None, rows.features)
    rows = rows._replace(old_log_prob=choices.log_prob_of(log_probs, rows.action))

    def plain(actor):
        log_probs = actor_critic.policy(parts, actor, None, rows.features)
        chosen = choices.log_prob_of(log_probs, rows.action) * rows.targets.advantage
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        return -(rows.targets.weight * (share * chosen + 0.3 * entropy)).mean()

    actual = jax.grad(lambda p: ppo.loss(parts, p, None, rows)[0])(params)["actor"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7)
    jax.tree.map(close, actual, jax.grad(plain)(params["actor"]))


def test_the_ratio_of_the_first_step_is_one(imagined):
    values = _epoch(_one_step(), imagined)[2]
    assert values["clipped"][0] == 0 and values["kl"][0] == pytest.approx(0, abs=1e-7)


def test_later_steps_have_moved_away(imagined):
    quick = optim.Config("adam", 3e-2, 100.0, warmup=0, eps=1e-8)
    values = _epoch(_one_step(optimiser=quick, num_minibatches=8), imagined)[2]
    assert values["kl"][0] == pytest.approx(0, abs=1e-7) and values["kl"][-1] > 1e-4


def _first_update(**changes):
    return exact.first_update(dataclasses.replace(CONFIG, **changes))


def test_the_range_of_returns_moves_in_each_epoch():
    """With a learning rate of 0 the returns stay, so that three ticks are 1 - 0.99³."""
    still = optim.Config("adam", 0.0, 100.0, warmup=0, eps=1e-8)
    one, three = (
        _first_update(optimiser=still, epochs=n, num_minibatches=1, range_decay=0.01)[1].stats
        for n in (1, 3)
    )
    np.testing.assert_allclose(three.high / one.high, 0.029701 / 0.01, rtol=1e-5)
    np.testing.assert_allclose(three.low / one.low, 0.029701 / 0.01, rtol=1e-5)


def test_the_slow_critic_follows_each_step():
    before, after, _ = _first_update(epochs=1, num_minibatches=1)
    expected = jax.tree.map(
        lambda old, new: 0.98 * old + 0.02 * new,
        before.stats.target_critic,
        after.params["critic"],
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, after.stats.target_critic, expected)


def test_the_warm_up_counts_updates_and_not_steps():
    """Adam's first steps on a constant gradient are the learning rate itself."""
    moves = []
    for steps in (1, 3):
        optimiser = optim.Config("adam", 1.0, 1e9, warmup=10, eps=1e-12).make(steps)

        def body(opt, gradient, update=optimiser.update):
            step, opt = update(gradient, opt)
            return opt, -step[0]

        run = jax.jit(functools.partial(jax.lax.scan, body))
        moves.append(run(optimiser.init(jnp.ones(1)), jnp.ones((7, 1)))[1])
    np.testing.assert_allclose(moves[0], np.arange(1, 8) / 10, rtol=1e-4)
    np.testing.assert_allclose(moves[1], np.array([1, 1, 1, 2, 2, 2, 3]) / 10, rtol=1e-4)


def test_the_update_warms_up_once_a_call():
    calls = []
    for epochs in (1, 3):
        warm = optim.Config("adam", 1e-3, 1e9, warmup=10, eps=1e-12)
        before, after, _ = _first_update(optimiser=warm, epochs=epochs, num_minibatches=1)
        move = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.params)
        calls.append(max(jax.tree.leaves(move)))
    # Three steps of a tenth of the rate each; were they ticks, they would sum up to 6 tenths.
    assert calls[0] == pytest.approx(1e-4, rel=1e-2) and 2e-4 < calls[1] < 3.1e-4


def test_metrics_are_means_over_all_steps():
    metrics = _first_update(epochs=2, num_minibatches=4)[2]
    assert {float(count) for _, count in metrics.values()} == {8.0}
    assert metrics["behaviour/gradient_norm"][0] > 0  # freezing a broken seed needs it
    assert set(metrics) >= {f"behaviour/{n}" for n in ("loss", "entropy", "kl")}


def test_update_keeps_the_structure_of_its_state():
    before, after, _ = _first_update()
    describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert describe(before) == describe(after)


# ------------------------------------------------------------------------------------ minibatches


def test_every_row_is_in_just_one_minibatch():
    rows = ppo.Rows(jnp.zeros((12, 2)), jnp.arange(12), jnp.arange(12.0), (jnp.arange(12),))
    split = ppo._minibatches(rows, jax.random.key(0), 3)
    assert split.action.shape == (3, 4) and split.features.shape == (3, 4, 2)
    assert sorted(split.action.ravel().tolist()) == list(range(12))
    assert split.action.ravel().tolist() != list(range(12))
    np.testing.assert_array_equal(split.targets[0], split.action)  # rows stay together


def test_minibatches_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="does not divide the 96 imagined rows"):
        _first_update(num_minibatches=7)


# ------------------------------------------------------------------------------------- other facts


def test_published_numbers():
    config = ppo.Config()
    assert (config.epochs, config.num_minibatches, config.clip, config.critic_scale) == (
        3,
        1,
        0.2,
        1,
    )
    assert (config.entropy, config.gamma, config.lambda_, config.horizon) == (3e-4, 0.985, 0.95, 16)
    assert config.optimiser == optim.Config("laprop", 4e-5, 100.0, 1000, 0.9, 0.999, 1e-20)


def test_published_nets_are_those_of_the_actor_critic():
    spec = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(18))
    params = jax.eval_shape(ppo.Config().make(spec).init, jax.random.key(0), jnp.zeros(1536)).params
    counts = {name: sum(x.size for x in jax.tree.leaves(net)) for name, net in params.items()}
    assert counts == {"actor": 530_450, "critic": 1_444_607}
