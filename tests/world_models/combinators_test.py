"""Combinators: penalised rewards, known rewards and ends, the best snapshot of each seed, laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.envs import rules
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    EnvSpec,
    LearnerState,
    Prediction,
    Step,
    Timestep,
    WorldModel,
)
from mbrl_jax.world_models import ensemble
from mbrl_jax.world_models.combinators import early_stopped, known, pessimistic
from mbrl_jax.world_models.combinators.terms import with_term

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(1))
TINY = ensemble.Config(members=2, elites=1, layers=1, width=4, weight_decay=0.0)


def ends_beyond_one(observation, action, next_observation):
    """A rule of this file's own."""
    del observation, action
    return next_observation[0] > 1.0


# ------------------------------------------------------------- a model whose errors are scripted


@dataclasses.dataclass(frozen=True)
class Counting:
    """w grows by 1 in each update; the error is the mean reward of the batch."""

    own_update: bool = False

    def make(self, spec):
        """The record."""
        del spec
        w_of = lambda state: state.params["w"]
        learning = {"update": count_up} if self.own_update else {"loss": error, "apply": step}
        return WorldModel(
            init=lambda key: LearnerState({"w": jnp.zeros(())}, jnp.zeros(()), jnp.zeros(())),
            initial_latent=lambda: jnp.zeros(()),
            observe=lambda state, key, latent, timestep, prev_action: w_of(state),
            observe_sequence=lambda state, key, latent, prev_action, rows: rows.timestep.reward,
            latent_at=lambda entries, t: entries[t],
            imagine=lambda state, key, latent, action: w_of(state),
            predict=lambda state, latent: Prediction(
                w_of(state), jnp.ones(()), {"vector": jnp.zeros(2)}
            ),
            features=lambda state, latent: w_of(state)[None],
            decode=None,
            updates={"leap": lambda state, key, batch: (count_up(state, key, batch, 100.0)[0], {})},
            **learning,
        )


def error(params, stats, key, batch):
    """Its gradient by w is 1."""
    del key
    found = jnp.mean(batch.timestep.reward)
    metrics = {"model/error": (2.0 * found, jnp.full((), 2.0))}
    return params["w"], (batch.timestep.reward, stats + 1.0, metrics)


def step(state, grads, stats):
    """W grows by the gradient."""
    params = {"w": state.params["w"] + grads["w"]}
    return LearnerState(params, stats, state.opt + 1.0), grads["w"]


def count_up(state, key, batch, by=1.0):
    """An update in closed form, so to say."""
    _, (entries, stats, metrics) = error(state.params, state.stats, key, batch)
    params = {"w": state.params["w"] + by}
    return LearnerState(params, stats, state.opt + 1.0), entries, metrics


def _batch(value):
    no = jnp.zeros((1, 2), bool)
    timestep = Timestep(jnp.zeros((1, 2, 3)), jnp.full((1, 2), value), no, no, no)
    return Step(timestep, jnp.zeros((1, 2, 1)))


STOPPED = early_stopped.Config(model=Counting(), metric="model/error", period=2, patience=2)
NAN = float("nan")
ERRORS = (  # of two seeds; scores are means of two
    (9.0, 7.0, 4.0, 4.0, 3.98, 3.98, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0),  # 0.5 % is no gain: stops at 8
    (9.0, 7.0, 4.0, 2.0, NAN, 3.0, 2.0, 2.0, 5.0, 5.0, 0.5, 0.5),  # saved twice
)


@functools.cache
def _histories(own_update):
    """States, metrics and what is read after each update [2, 12]."""
    config = dataclasses.replace(STOPPED, model=Counting(own_update))
    model = config.make(SPEC)

    def run(errors):
        def body(state, value):
            state, _, metrics = model.update(state, jax.random.key(0), _batch(value))
            metrics = {name: metrics[name] for name in ("model/stopped", "model/best_score")}
            return state, (state, metrics, model.predict(state, jnp.zeros(())).reward)

        return jax.lax.scan(body, model.init(jax.random.key(0)), errors)[1]

    run = jax.jit(jax.vmap(run))
    return jax.device_get(run(jnp.asarray(ERRORS)))


def test_the_best_snapshot_is_read_and_a_seed_stops_by_itself():
    state, metrics, read = _histories(False)
    # The newest until the first score; then the parameters at the end of the best period.
    np.testing.assert_array_equal(read[0], [1, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4])
    np.testing.assert_array_equal(read[1], [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 12])
    np.testing.assert_array_equal(state.stats.stopped[0], np.arange(12) >= 7)
    # A period that is no number is one without a gain.
    np.testing.assert_array_equal(state.stats.waited[1], [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0])
    assert not state.stats.stopped[1].any()
    np.testing.assert_array_equal(state.params["w"][0], [1, 2, 3, 4, 5, 6, 7, 4, 4, 4, 4, 4])
    total, count = metrics["model/best_score"]
    np.testing.assert_array_equal(count[0], np.arange(12) >= 2)  # none, then the last update's
    np.testing.assert_array_equal(total[0], [0, 0, 8, 8, 4, 4, 4, 4, 4, 4, 4, 4])
    np.testing.assert_array_equal(metrics["model/stopped"][0][0], np.arange(12) >= 8)


def test_nothing_changes_after_the_stop():
    state, _, _ = _histories(False)
    stopped = jax.tree.map(lambda x: x[0, 7:], state)
    for leaf in jax.tree.leaves(stopped):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    assert stopped.stats.inner[0] == stopped.stats.best_stats[0] == 4.0


def test_an_update_of_its_own_is_stopped_as_a_derived_one_is():
    jax.tree.map(np.testing.assert_array_equal, _histories(False), _histories(True))


def test_named_updates_stop_too_and_a_replaced_loss_is_what_is_trained():
    model = STOPPED.make(SPEC)
    scaled = model._replace(
        loss=lambda *args: (lambda out: (3.0 * out[0], out[1]))(model.loss(*args))
    )

    @jax.jit
    def run(key):
        state = model.init(key)
        leapt = model.updates["leap"](state, key, _batch(1.0))[0]
        stopped = state._replace(stats=state.stats._replace(stopped=jnp.ones((), bool)))
        stayed = model.updates["leap"](stopped, key, _batch(1.0))[0]
        return leapt.params["w"], stayed.params["w"], scaled.update(state, key, _batch(1.0))[0]

    leapt, stayed, tripled = run(jax.random.key(0))
    assert (leapt, stayed, tripled.params["w"]) == (100.0, 0.0, 3.0)
    assert tripled.stats.updates == 1


# ------------------------------------------------------------------------------ around ensembles


NESTED = pessimistic.Config(
    model=early_stopped.Config(
        model=known.Config(
            model=TINY, reward="pendulum_reward", ends=f"{__name__}:ends_beyond_one"
        ),
        period=1,
    ),
    penalty=0.5,
    uncertainty="pairwise",
)


def test_nested_combinators_keep_the_laws_of_world_models():
    testing.check_world_model(NESTED, SPEC, length=5)


def test_penalties_known_rewards_and_ends_meet_in_one_prediction():
    model, plain = NESTED.make(SPEC), TINY.make(SPEC)

    @jax.jit
    def run(key):
        state, inner = model.init(key), plain.init(key)
        row = Timestep(jnp.array([0.6, -0.8, 2.0]), 7.0, False, True, True)
        real = model.observe(state, key, model.initial_latent(), row, jnp.zeros(1))
        action = jnp.array([0.5])
        keys = jax.random.split(key, 64)
        imagined = jax.vmap(lambda k: model.imagine(state, k, real, action))(keys)
        same = jax.vmap(lambda k: plain.imagine(inner, k, real.inner, action))(keys)
        reward = rules.pendulum_reward(row.observation, action, None)
        predict = functools.partial(model.predict, state)
        return predict(real), jax.vmap(predict)(imagined), same, reward

    real, imagined, same, reward = run(jax.random.key(1))
    assert (real.reward, real.discount) == (7.0, 0.0)  # what really arrived, without a penalty
    spread = same.extras["pairwise"]
    assert (spread > 0).all()
    np.testing.assert_allclose(imagined.extras["penalty"], 0.5 * spread, rtol=1e-5)
    np.testing.assert_allclose(imagined.reward, reward - 0.5 * spread, rtol=1e-5)
    beyond = same.observation[:, 0] > 1.0
    assert beyond.any() and not beyond.all()
    np.testing.assert_array_equal(imagined.discount, 1.0 - beyond)


def test_without_functions_the_models_own_predictions_stand():
    wrapped, plain = known.Config(model=TINY).make(SPEC), TINY.make(SPEC)
    state, key = jax.jit(plain.init)(jax.random.key(0)), jax.random.key(1)
    latent = wrapped.initial_latent()

    @jax.jit
    def both():
        one = wrapped.imagine(state, key, latent, jnp.zeros(1))
        other = plain.imagine(state, key, latent.inner, jnp.zeros(1))
        return wrapped.predict(state, one), plain.predict(state, other)

    jax.tree.map(np.testing.assert_array_equal, *both())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (pessimistic.Config(model=TINY, uncertainty="max_sd"), "it reports .*max_std"),
        (pessimistic.Config(model=Counting(), uncertainty="vector"), "it reports nothing"),
        (known.Config(model=TINY, reward="pendulum"), "no known function"),
        (known.Config(model=Counting()), "decodes none"),
    ],
)
def test_refuses_what_does_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        config.make(SPEC)


def test_a_metric_that_the_model_lacks_is_named():
    model = dataclasses.replace(STOPPED, metric="model/mse").make(SPEC)
    state = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="model/error"):
        jax.eval_shape(model.update, state, jax.random.key(0), _batch(1.0))


def test_a_closed_form_has_no_loss_for_a_further_term():
    with pytest.raises(ValueError, match="no loss to add a term to"):
        with_term(Counting(own_update=True).make(SPEC), lambda features, rows: 0.0, "more")
