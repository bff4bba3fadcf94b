"""Latents beside rows: a ring in NumPy, what waits, where a window begins, the agent around it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.agents import joint
from mbrl_jax.behaviours import dreamer
from mbrl_jax.envs.spec import example_row, zero_action
from mbrl_jax.replay import latents, ring
from mbrl_jax.types import Windows
from tests.world_models.rssm_test import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compile")

CAPACITY, LANES, BATCH, LENGTH = 8, 2, 3, 3  # windows of LENGTH + 1 rows
RING = ring.Config(capacity=CAPACITY, batch_size=BATCH, length=LENGTH)


@pytest.fixture(scope="module")
def replay():
    made = latents.Config(Windows(BATCH, LENGTH + 1)).make(RING.make(LANES))
    jitted = {name: jax.jit(getattr(made, name)) for name in ("add", "settle", "write_back")}
    return made._replace(**jitted, sample=jax.jit(functools.partial(made.sample, stream="model")))


def _rows(spec, number):
    """Rows [LANES] whose rewards and latents say which they are."""
    row = example_row(spec)._replace(extras={"latent": {"h": jnp.zeros(2)}})
    rows = jax.tree.map(lambda x: jnp.stack([x] * LANES), row)
    code = number + jnp.array([0.0, 100.0])
    timestep = rows.timestep._replace(reward=code)
    return rows._replace(timestep=timestep, extras={"latent": {"h": jnp.stack([code] * 2, axis=1)}})


@pytest.fixture(scope="module")
def filled(replay, tiny_spec):
    """Eleven rows in a ring of eight: rows 3 to 10 are left."""
    row = jax.tree.map(lambda x: x[0], _rows(tiny_spec, 0))
    state = replay.init(row)
    for number in range(CAPACITY + 3):
        state = replay.add(state, _rows(tiny_spec, number))
    return state


def test_windows_come_with_the_latents_of_their_rows(replay, filled):
    _, batch, _ = replay.sample(filled, jax.random.key(0))
    np.testing.assert_array_equal(batch.extras["latent"]["h"][..., 1], batch.timestep.reward)


def _known(state):
    """{reward of a row: its latent} of the whole ring."""
    reward = np.asarray(state.storage.real.timestep.reward)
    latent = np.asarray(state.storage.latents["h"])
    return {
        float(r): h.tolist() for r, h in zip(reward.ravel(), latent.reshape(-1, 2), strict=True)
    }


@pytest.mark.parametrize("then", ["add", "settle"])
def test_what_an_update_saw_is_renewed_and_nothing_else(replay, filled, tiny_spec, then):
    counters, batch, indices = replay.sample(filled, jax.random.key(1))
    new = {"h": batch.extras["latent"]["h"][:, :LENGTH] + 0.5}
    waiting = filled._replace(counters=replay.write_back(counters, indices, new))
    assert _known(waiting) == _known(filled)
    state = replay.settle(waiting)
    if then == "add":
        state = replay.add(waiting, _rows(tiny_spec, 11))
    seen = np.unique(batch.timestep.reward[:, :LENGTH])
    expected = _known(filled)
    if then == "add":
        expected = {r: h for r, h in expected.items() if r not in (3.0, 103.0)}
        expected |= {11.0: [11.0, 11.0], 111.0: [111.0, 111.0]}
    for r in expected.keys() & set(seen.tolist()):
        expected[r] = [h + 0.5 for h in expected[r]]
    assert _known(state) == expected
    assert _known(replay.settle(state)) == expected  # once is enough


def test_what_is_not_finite_is_not_kept(replay, filled):
    counters, batch, indices = replay.sample(filled, jax.random.key(1))
    bad = {"h": batch.extras["latent"]["h"][:, :LENGTH].at[0, 0].set(jnp.nan)}
    state = filled._replace(counters=replay.write_back(counters, indices, bad))
    assert _known(replay.settle(state)) == _known(filled)


# ------------------------------------------------------------------------- where a window begins


def test_a_window_goes_on_from_the_latent_of_its_first_row(tiny_spec):
    """Rows 2 to 6 with the latent of row 2 give the deterministic states of the longer window."""
    model = CONFIG.make(tiny_spec)
    state = jax.jit(model.init)(jax.random.key(0))
    rows = testing.random_trajectory(tiny_spec, jax.random.key(1), 7, ())
    every = jax.jit(model.observe_sequence)(
        state, jax.random.key(2), model.initial_latent(), zero_action(tiny_spec.action), rows
    )
    late = jax.tree.map(lambda x: x[None, 2:], rows._replace(extras={"latent": every}))
    loss = jax.jit(model.loss)
    total, (entries, _, _) = loss(state.params, state.stats, jax.random.key(3), late)
    np.testing.assert_array_equal(entries.deter[0, 0], every.deter[2])
    np.testing.assert_allclose(entries.deter[0, 1], every.deter[3], atol=1e-6)
    assert entries.deter.shape[1] == 4  # the first four of five rows

    # The first row itself is not trained on.
    spoiled = late.timestep.observation.at[:, 0].add(1.0)
    other = late._replace(timestep=late.timestep._replace(observation=spoiled))
    np.testing.assert_array_equal(
        loss(state.params, state.stats, jax.random.key(3), other)[0], total
    )
    moved = late._replace(extras={"latent": jax.tree.map(lambda x: x + 1.0, late.extras["latent"])})
    assert loss(state.params, state.stats, jax.random.key(3), moved)[0] != total


# ----------------------------------------------------------------------------------- the agent

STORED = joint.Config(context="stored")
BEHAVIOUR = dreamer.Config(
    horizon=2, actor_width=4, critic_width=4, layers=1, num_bins=5, last_rows=2
)


@pytest.mark.slow
def test_an_agent_that_keeps_latents_keeps_the_laws(tiny_spec):
    testing.check_agent(STORED, CONFIG, BEHAVIOUR, RING, tiny_spec)


def test_acting_stores_what_is_known_and_an_update_renews_it(tiny_spec):
    model, behaviour = CONFIG.make(tiny_spec), BEHAVIOUR.make(tiny_spec)
    replay = STORED.make_replay(RING, LANES, tiny_spec)
    agent = STORED.make(tiny_spec, model, behaviour, replay)
    state = jax.jit(agent.init)(jax.random.key(0))
    timestep = testing.random_trajectory(tiny_spec, jax.random.key(1), 1, ()).timestep
    timestep = jax.tree.map(lambda x: x[0], timestep)
    carry, _ = jax.jit(functools.partial(agent.act, explore=True))(
        state, jax.random.key(2), agent.initial_carry(), timestep
    )
    expected = jax.jit(model.observe)(
        state.world_model,
        jax.random.key(3),
        model.initial_latent(),
        timestep,
        zero_action(tiny_spec.action),
    )
    np.testing.assert_allclose(carry.record["latent"].deter, expected.deter, atol=1e-6)

    row = example_row(tiny_spec)._replace(extras=agent.initial_carry().record)
    rows = jax.tree.map(lambda x: jnp.stack([x] * LANES), row)
    stored = replay.init(row)
    for _ in range(CAPACITY):
        stored = jax.jit(replay.add)(stored, rows)
    _, counters, _ = jax.jit(agent.update)(state, jax.random.key(4), stored, jnp.asarray(0))
    assert bool(counters.pending.is_new)
    renewed = jax.jit(replay.settle)(stored._replace(counters=counters))
    assert np.asarray(renewed.storage.latents.stoch).any()


def test_a_model_that_does_not_read_them_is_refused(tiny_drama, tiny_spec):
    replay = STORED.make_replay(RING, LANES, tiny_spec)
    with pytest.raises(ValueError, match="use model=rssm, or agent.context=empty"):
        STORED.make(tiny_spec, tiny_drama.make(tiny_spec), BEHAVIOUR.make(tiny_spec), replay)


def test_acting_on_what_is_expected_is_refused(tiny_spec):
    acting = dataclasses.replace(STORED.acting, latent="prior", rows=2)
    config = dataclasses.replace(STORED, acting=acting)
    replay = config.make_replay(RING, LANES, tiny_spec)
    with pytest.raises(ValueError, match="agent.acting.latent=posterior"):
        config.make(tiny_spec, CONFIG.make(tiny_spec), BEHAVIOUR.make(tiny_spec), replay)
