"""What an agent acts on: the newest row or what was expected of it, all rows or the last ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import acting
from mbrl_jax.agents import apart
from mbrl_jax.envs.spec import example_row
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.config import validate
from mbrl_jax.replay import ring
from mbrl_jax.types import (
    ArraySpec,
    Behaviour,
    DiscreteSpec,
    EnvSpec,
    LearnerState,
    Step,
    Timestep,
    WorldModel,
    bind,
)

SPEC = EnvSpec(ArraySpec((1,), "float32"), DiscreteSpec(5))
DECAY = 0.5


# A model without noise: a latent is (what is left of the rows before, the newest row or -1 for one
# that is only expected).


def _advance(latent, action):
    past, newest = latent
    return DECAY * past + newest + 10.0 * action


def _observe(state, key, latent, timestep, prev_action):
    past = jnp.where(timestep.is_first, 0.0, _advance(latent, prev_action))
    return past, timestep.observation[0]


def _observe_sequence(state, key, latent, prev_action, rows):
    def one(carry, row):
        latent, action = carry
        latent = _observe(state, key, latent, row.timestep, action)
        return (latent, row.action), latent

    return jax.lax.scan(one, (latent, prev_action), rows)[1]


def _unused(*args):
    raise NotImplementedError


MODEL = WorldModel(*[_unused] * 9, update=_unused)._replace(
    init=lambda key: LearnerState(jax.random.uniform(key), (), ()),
    initial_latent=lambda: (jnp.zeros(()), jnp.zeros(())),
    observe=_observe,
    observe_sequence=_observe_sequence,
    latent_at=lambda entries, t: jax.tree.map(lambda x: x[t], entries),
    imagine=lambda state, key, latent, action: (_advance(latent, action), jnp.float32(-1.0)),
    features=lambda state, latent: jnp.stack(latent),
    update=lambda state, key, batch: (state, batch, {"model/loss": (jnp.zeros(()), jnp.ones(()))}),
)
BOUND = bind(MODEL, LearnerState((), (), ()))


def _rows(first=(0, 4)):
    """Ten rows (timestep, action after it); episodes begin at `first`."""
    rng = np.random.default_rng(0)
    never = jnp.zeros((), bool)
    for t in range(10):
        observation = jnp.asarray(rng.normal(size=1), jnp.float32)
        yield Step(
            Timestep(observation, jnp.zeros(()), jnp.asarray(t in first), never, never),
            jnp.int32(rng.integers(5)),
        )


def _expected(rows, t, config):
    """The latent to act on at row t, by the definition."""
    newest = t if config.latent == "posterior" else t - 1
    begin = max(i for i in range(t + 1) if rows[i].timestep.is_first)
    if config.boundaries == "ignored":
        begin = 0
    if config.rows:
        begin = max(begin, newest - config.rows + 1)
    past = 0.0
    for row in rows[begin:newest]:
        past = DECAY * past + float(row.timestep.observation[0]) + 10.0 * int(row.action)
    seen = float(rows[newest].timestep.observation[0])
    if config.latent == "posterior":
        return past, seen
    return DECAY * past + seen + 10.0 * int(rows[newest].action), -1.0


@pytest.mark.parametrize("latent", ["posterior", "prior"])
@pytest.mark.parametrize("rows", [0, 1, 3, 16])
def test_the_latent_is_that_of_the_rows_that_are_remembered(latent, rows):
    config = acting.Config(latent, rows)
    see = jax.jit(functools.partial(acting.see, config, SPEC, BOUND, jax.random.key(0)))
    episode = list(_rows())
    memory, action = acting.empty(config, SPEC, MODEL.initial_latent()), jnp.int32(0)
    for t, row in enumerate(episode):
        memory, got = see(memory, action, row.timestep)
        if latent == "posterior" or not row.timestep.is_first:
            np.testing.assert_allclose(got, _expected(episode, t, config), rtol=1e-5)
        action = row.action


def _with_seams_ignored():
    """The model, in windows of which nothing but the first row begins anything."""

    def observe_sequence(state, key, latent, prev_action, rows):
        first = jnp.zeros_like(rows.timestep.is_first).at[0].set(rows.timestep.is_first[0])
        rows = rows._replace(timestep=rows.timestep._replace(is_first=first))
        return _observe_sequence(state, key, latent, prev_action, rows)

    return MODEL._replace(observe_sequence=observe_sequence)


@pytest.mark.parametrize("latent", ["posterior", "prior"])
@pytest.mark.parametrize("rows", [3, 16])
def test_rows_of_the_episode_before_are_remembered_where_boundaries_are_ignored(latent, rows):
    config, model = acting.Config(latent, rows, "ignored"), _with_seams_ignored()
    bound = bind(model, LearnerState((), (), ()))
    see = jax.jit(functools.partial(acting.see, config, SPEC, bound, jax.random.key(0)))
    episodes = list(_rows())
    memory, action = acting.empty(config, SPEC, model.initial_latent()), jnp.int32(0)
    for t, row in enumerate(episodes):
        assert bool(acting.begins(config, memory, row.timestep)) == (t == 0)
        memory, got = see(memory, action, row.timestep)
        if latent == "posterior" or t > 0:
            np.testing.assert_allclose(got, _expected(episodes, t, config), rtol=1e-5)
        action = row.action


@pytest.mark.parametrize("boundaries", ["reset", "ignored"])
def test_the_first_action_of_a_later_episode_is_random_only_where_rows_are_forgotten(boundaries):
    settings = apart.Config(acting=acting.Config("prior", 3, boundaries))
    made = settings.make(SPEC, _with_seams_ignored(), BEHAVIOUR, None)
    state, rows = made.init(jax.random.key(0)), list(_rows())

    @jax.jit
    def first_actions(key):
        carry, chosen = made.initial_carry(), []
        for row in rows[:5]:  # the row with number 4 begins an episode
            carry, action = made.act(state, key, carry, row.timestep, explore=True)
            chosen.append(action)
            carry = carry._replace(prev_action=row.action)
        return chosen[0], chosen[4]

    begun, later = jax.vmap(first_actions)(jax.random.split(jax.random.key(1), 40))
    assert len(set(begun.tolist())) == 5  # nothing is known before the first of all
    assert len(set(later.tolist())) == (5 if boundaries == "reset" else 1)


def _act_on_features(state, key, carry, latent, model, *, explore):
    del state, key, explore
    return carry, (jnp.abs(model.features(latent)[0]) * 7).astype(jnp.int32) % 5


BEHAVIOUR = Behaviour(
    init=lambda key, features: LearnerState(features.sum(), (), ()),
    initial_carry=tuple,
    act=_act_on_features,
    update=lambda state, key, model, starts, batch, iteration: (
        state,
        {"behaviour/loss": (jnp.zeros(()), jnp.ones(()))},
    ),
)


@pytest.mark.parametrize("rows", [0, 3])
def test_blind_acting_begins_at_random_and_does_not_see_the_newest_row(rows):
    settings = apart.Config(acting=acting.Config("prior", rows))
    made = settings.make(SPEC, MODEL, BEHAVIOUR, None)
    act = jax.jit(functools.partial(made.act, explore=True))
    state = made.init(jax.random.key(0))
    first, second = list(_rows())[:2]

    def actions(key, change):
        carry, begun = act(state, key, made.initial_carry(), first.timestep)
        shown = second.timestep._replace(observation=second.timestep.observation + change)
        return int(begun), int(act(state, key, carry, shown)[1])

    keys = jax.random.split(jax.random.key(1), 40)
    assert len({actions(key, 0.0)[0] for key in keys}) == 5  # random: all of them occur
    assert {actions(key, 0.0) for key in keys[:5]} == {actions(key, 3.0) for key in keys[:5]}


def test_contexts_of_their_own_begin_one_expected_step_behind_their_last_row():
    seen = {}

    def update(state, key, model, starts, batch, iteration):
        seen["starts"] = starts
        return state, {"behaviour/loss": (starts.weight.sum(), jnp.ones(()))}

    settings = apart.Config(num_starts=6, starts="contexts", context_length=4)
    replay = settings.make_replay(ring.Config(capacity=20, batch_size=2, length=3), 1, SPEC)
    state = replay.init(example_row(SPEC))
    rows = list(_rows(first=(0,)))
    for row in rows:
        state = replay.add(state, jax.tree.map(lambda x: x[None], row))
    made = settings.make(SPEC, MODEL, BEHAVIOUR._replace(update=update), replay)
    made.update(made.init(jax.random.key(0)), jax.random.key(1), state, 0)
    possible = []
    for begin in range(7):
        past = 0.0
        for row in rows[begin : begin + 4]:
            past = DECAY * past + float(row.timestep.observation[0]) + 10.0 * int(row.action)
        possible.append(past)
    past, newest = (np.asarray(x) for x in seen["starts"].latent)
    assert (newest == -1.0).all()
    for value in past:
        assert np.isclose(value, possible, rtol=1e-5).any()


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="acting.rows=-1"):
        validate(apart.Config(acting=acting.Config(rows=-1)))
    with pytest.raises(ConfigError, match="acting: boundaries=ignored .* use rows=16"):
        validate(apart.Config(acting=acting.Config(boundaries="ignored")))
