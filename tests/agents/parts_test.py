"""Agents: where imagination starts, and what becomes of a seed that breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents import apart, parts
from mbrl_jax.envs.spec import example_row
from mbrl_jax.replay import ring, samplers
from mbrl_jax.types import (
    ArraySpec,
    Behaviour,
    DiscreteSpec,
    EnvSpec,
    LearnerState,
    Step,
    Timestep,
    WorldModel,
)

SPEC = EnvSpec(ArraySpec((1,), "float32"), DiscreteSpec(2))
LENGTH = 3


# ------------------------------------------------------- a model and a behaviour of one number each


def _model_update(state, key, batch):
    """Adds up the rewards of the batch and the key's noise; entries are the numbers of the rows."""
    change = batch.timestep.reward.mean() + jax.random.uniform(key)
    metrics = {"model/loss": (change, jnp.ones(()))}
    entries = batch.timestep.observation[:, :-1, 0]
    return state._replace(params=state.params + change), entries, metrics


def _behaviour_update(state, key, model, starts, batch, iteration):
    del key, model, batch, iteration
    change = (starts.weight * starts.latent).sum()
    metrics = {"behaviour/loss": (change, jnp.ones(()))}
    return state._replace(params=state.params + change, stats=state.stats + 1), metrics


def _unused(*args):
    raise NotImplementedError


MODEL = WorldModel(*[_unused] * 9, update=_model_update)._replace(
    init=lambda key: LearnerState(jax.random.uniform(key), (), ()),
    initial_latent=lambda: jnp.zeros(()),
    observe=lambda state, key, latent, timestep, prev_action: timestep.observation[0] + prev_action,
    latent_at=lambda entries, t: entries[t],
    features=lambda state, latent: jnp.stack([latent, latent]),
    update=_model_update,
)
BEHAVIOUR = Behaviour(
    init=lambda key, features: LearnerState(features.sum(), jnp.zeros((), jnp.int32), ()),
    initial_carry=tuple,
    act=lambda state, key, carry, latent, model, *, explore: (carry, jnp.int32(latent) + explore),
    update=_behaviour_update,
)


def _make(num_starts=4):
    """The agent and its replay of one lane."""
    config = ring.Config(
        capacity=16, batch_size=2, length=LENGTH, sampler=samplers.DynamicFrequency()
    )
    replay = config.make(1)
    return apart.Config(num_starts).make(SPEC, MODEL, BEHAVIOUR, replay), replay


def test_the_carry_holds_latent_and_action_of_the_row_before():
    made, _ = _make()
    state = made.init(jax.random.key(0))
    timestep = example_row(SPEC).timestep._replace(observation=jnp.array([5.0]))
    carry, action = made.act(state, jax.random.key(0), made.initial_carry(), timestep, explore=True)
    assert (carry.memory, carry.prev_action, action) == (5.0, 6, 6)
    carry, action = made.act(state, jax.random.key(0), carry, timestep, explore=False)
    assert (carry.memory, action) == (11.0, 11)


def test_the_behaviour_is_built_for_the_features_of_the_model():
    seen = []

    def init(key, features):
        del key
        seen.append((features.shape, features.dtype))
        return LearnerState((), (), ())

    made, replay = _make()
    made = apart.Config().make(SPEC, MODEL, BEHAVIOUR._replace(init=init), replay)
    made.init(jax.random.key(0))
    assert seen == [((2,), jnp.float32)]


# ------------------------------------------------------------------------------- imagination starts


def _starts(num_starts, seed=0, windows=5):
    """Starts drawn from windows whose entries are the numbers of their rows; row 3 is terminal."""
    numbers = jnp.arange(windows * LENGTH).reshape(windows, LENGTH)
    no = jnp.zeros((windows, LENGTH + 1), bool)
    terminal = no.at[1, 0].set(True)
    timestep = Timestep(no[..., None], no * 0.0, no, no, terminal)
    batch = Step(timestep, no.astype(jnp.int32))
    starts = parts.draw_starts(MODEL, jax.random.key(seed), numbers, batch, num_starts)
    return np.asarray(starts.latent), np.asarray(starts.weight)


def test_no_row_is_drawn_twice():
    latents, _ = _starts(11)
    assert len(np.unique(latents)) == 11


def test_all_rows_but_the_last_of_each_window_can_be_starts():
    latents, _ = _starts(5 * LENGTH)
    np.testing.assert_array_equal(np.sort(latents), np.arange(5 * LENGTH))


def test_terminal_rows_weigh_nothing():
    latents, weight = _starts(5 * LENGTH)
    np.testing.assert_array_equal(weight, latents != LENGTH)


def test_all_rows_are_equally_likely():
    draw = jax.jit(jax.vmap(lambda seed: _draw(seed)))
    counts = np.bincount(np.asarray(draw(jnp.arange(6000))).ravel(), minlength=15)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 15, atol=0.006)


def _draw(seed):
    numbers = jnp.arange(15).reshape(5, LENGTH)
    no = jnp.zeros((5, LENGTH + 1), bool)
    batch = Step(Timestep(no[..., None], no * 0.0, no, no, no), no.astype(jnp.int32))
    return parts.draw_starts(MODEL, jax.random.key(seed), numbers, batch, 4).latent


# ------------------------------------------------------------------ seeds that are not finite

SEEDS, ITERATIONS, BROKEN, WHEN = 3, 5, 1, 2


def _filled(replay, key):
    """Replay state after ten rows of random rewards; the observation is the row's number."""
    no = jnp.zeros(1, bool)

    def add(i, state):
        reward = jax.random.normal(jax.random.fold_in(key, i), (1,))
        observation = jnp.full((1, 1), i, jnp.float32)
        return replay.add(
            state, Step(Timestep(observation, reward, no, no, no), jnp.zeros(1, jnp.int32))
        )

    return jax.lax.fori_loop(0, 10, add, replay.init(example_row(SPEC)))


@pytest.fixture(scope="module")
def run():
    """Function (field that is poisoned) -> (agent states, replay counters, metrics).

    Each of them has leading [SEEDS, ITERATIONS]; in seed BROKEN, that field of all stored rows is
    not a number at iteration WHEN, and once more at the last one.
    """
    made, replay = _make()

    def one_seed(key, broken, field):
        state, storage = made.init(key), _filled(replay, key)

        def body(loop, iteration):
            state, counters = loop
            poisoned = (iteration == WHEN) | (iteration == ITERATIONS - 1)
            bad = jnp.where(broken & poisoned, jnp.nan, 0.0)
            rows, timestep = storage.storage, storage.storage.timestep
            timestep = timestep._replace(
                reward=timestep.reward + jnp.where(field == 0, bad, 0.0),
                observation=timestep.observation + jnp.where(field == 1, bad, 0.0),
            )
            stored = storage._replace(storage=rows._replace(timestep=timestep), counters=counters)
            state, counters, metrics = made.update(
                state, jax.random.fold_in(key, iteration), stored, iteration
            )
            return (state, counters), (state, counters, metrics)

        start = state, storage.counters
        return jax.lax.scan(body, start, jnp.arange(ITERATIONS))[1]

    keys = jax.random.split(jax.random.key(0), SEEDS)
    broken = jnp.arange(SEEDS) == BROKEN
    jitted = jax.jit(jax.vmap(one_seed, (0, 0, None)))
    return lambda field: jax.tree.map(np.asarray, jitted(keys, broken, field))


HEALTHY, MODEL_BREAKS, BEHAVIOUR_BREAKS = -1, 0, 1


@pytest.fixture(params=[MODEL_BREAKS, BEHAVIOUR_BREAKS], ids=["model", "behaviour"])
def poisoned(run, request):
    return run(request.param)


def _seed(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def test_healthy_seeds_learn_and_are_not_frozen(run):
    state, _, metrics = run(HEALTHY)
    assert (np.diff(state.world_model.params) != 0).all()
    assert (np.diff(state.behaviour.params) != 0).all()
    assert (state.frozen_at == -1).all() and not metrics["agent/frozen"][0].any()


def test_a_seed_that_is_not_finite_keeps_its_last_good_state_for_ever(run, poisoned):
    good = _seed(run(HEALTHY)[0], (BROKEN, WHEN - 1))._replace(frozen_at=None)
    for iteration in range(WHEN, ITERATIONS):
        state = _seed(poisoned[0], (BROKEN, iteration))._replace(frozen_at=None)
        jax.tree.map(np.testing.assert_array_equal, state, good)


def test_the_iteration_at_which_a_seed_froze_is_kept(poisoned):
    expected = np.full((SEEDS, ITERATIONS), -1)
    expected[BROKEN, WHEN:] = WHEN
    np.testing.assert_array_equal(poisoned[0].frozen_at, expected)


def test_frozen_seeds_are_counted_in_the_metrics(poisoned):
    expected = poisoned[0].frozen_at >= 0
    np.testing.assert_array_equal(poisoned[2]["agent/frozen"][0], expected)


def test_other_seeds_do_not_notice(run, poisoned):
    healthy = run(HEALTHY)
    for seed in set(range(SEEDS)) - {BROKEN}:
        jax.tree.map(np.testing.assert_array_equal, _seed(poisoned, seed), _seed(healthy, seed))


def test_the_replay_counters_of_a_frozen_seed_go_on(run, poisoned):
    jax.tree.map(np.testing.assert_array_equal, poisoned[1], run(HEALTHY)[1])
    drawn = poisoned[1].model[BROKEN].sum((-1, -2))
    np.testing.assert_array_equal(drawn, 2 * np.arange(1, ITERATIONS + 1))


def test_parameters_that_are_not_finite_freeze_even_where_all_metrics_are():
    def update(state, key, model, starts, batch, iteration):
        learned, metrics = _behaviour_update(state, key, model, starts, batch, iteration)
        return learned._replace(params=learned.params * jnp.nan), metrics

    _, replay = _make()
    behaviour = BEHAVIOUR._replace(update=update)
    made = apart.Config(4).make(SPEC, MODEL, behaviour, replay)
    state = made.init(jax.random.key(0))
    after, _, _ = made.update(
        state, jax.random.key(1), _filled(replay, jax.random.key(2)), jnp.int32(7)
    )
    assert after.frozen_at == 7 and after.behaviour.params == state.behaviour.params
