"""What parts say of themselves is used, and what does not fit is refused before anything runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drama_catch
from mbrl_jax.agents import apart, branched, joint
from mbrl_jax.behaviours import sac
from mbrl_jax.envs.spec import example_row
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build
from mbrl_jax.replay import dyna, ring
from mbrl_jax.types import (
    ArraySpec,
    Behaviour,
    BoundedSpec,
    EnvSpec,
    LearnerState,
    Prediction,
    Step,
    Timestep,
    WorldModel,
)

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
RATE = 0.1


# --------------------------------------- a model of one number, and a behaviour of another, exactly


def _loss(params, stats, key, batch):
    """Entries are the observations times the parameter: differentiable."""
    del key
    total = params * batch.timestep.reward.mean()
    entries = params * batch.timestep.observation
    return total, (entries, stats, {"model/loss": (total, jnp.ones(()))})


def _apply(state, grads, stats):
    params = jax.tree.map(lambda p, g: p - RATE * g, state.params, grads)
    return LearnerState(params, stats, state.opt), optax_norm(grads)


def optax_norm(tree):
    return jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(tree)))


MODEL = WorldModel(
    init=lambda key: LearnerState(jnp.ones(()), (), ()),
    initial_latent=lambda: jnp.zeros(2),
    observe=lambda state, key, latent, timestep, prev_action: timestep.observation,
    observe_sequence=lambda state, key, latent, prev_action, rows: rows.timestep.observation,
    latent_at=lambda entries, t: entries[t],
    imagine=lambda state, key, latent, action: latent + action,
    predict=lambda state, latent: Prediction(latent.sum(), jnp.ones(()), {}),
    features=lambda state, latent: latent,
    decode=lambda state, latent: latent,
    loss=_loss,
    apply=_apply,
    markov=True,
)


def _representation_loss(params, stats, key, model, entries, batch):
    """Reads the entries, so its gradient reaches the model: 2 · params · Σ entries / size."""
    del key, model, batch
    loss = 2.0 * params * entries.mean()
    return loss, (stats, {"behaviour/loss": (loss, jnp.ones(()))})


def _update(state, key, model, starts, batch, iteration):
    del key, model, iteration
    moved = state._replace(params=state.params + starts.weight.sum())
    return moved, {"behaviour/rows": (jnp.float32(starts.weight.shape[0]), jnp.ones(()))}


BEHAVIOUR = Behaviour(
    init=lambda key, features: LearnerState(jnp.float32(3.0), (), ()),
    initial_carry=lambda: jnp.zeros((), jnp.int32),
    act=lambda state, key, carry, latent, model, *, explore: (carry + 1, jnp.full(1, carry, float)),
    update=_update,
)
JOINT = BEHAVIOUR._replace(
    learns_from="entries", representation_loss=_representation_loss, apply=_apply
)
DYNA = dyna.Config(capacity=48, batch_size=4, num_batches=2, real_fraction=0.5)


def _filled(config, replay):
    """A replay after ten rows with reward 1 and observation (t, t)."""
    state, no = replay.init(example_row(SPEC)), jnp.zeros(1, bool)
    for t in range(10):
        timestep = Timestep(jnp.full((1, 2), float(t)), jnp.ones(1), no.at[0].set(t == 0), no, no)
        state = replay.add(state, Step(timestep, jnp.zeros((1, 1))))
    return state


def _made(config, model=MODEL, behaviour=BEHAVIOUR):
    replay = config.make_replay(ring.Config(capacity=16, batch_size=2, length=3), 1, SPEC)
    return config.make(SPEC, model, behaviour, replay), _filled(config, replay)


def _updated(config, name="all", model=MODEL, behaviour=BEHAVIOUR, iteration=0):
    """(state before, state after, counters, metrics) of one update."""
    agent, stored = _made(config, model, behaviour)
    before = jax.jit(agent.init)(jax.random.key(0))
    update = jax.jit(agent.updates[name])
    return before, *update(before, jax.random.key(1), stored, jnp.uint32(iteration))


# ---------------------------------------------------------------------------- what is replaced


def test_a_replaced_loss_is_what_is_trained():
    def twice(params, stats, key, batch):
        loss, aux = _loss(params, stats, key, batch)
        return 2.0 * loss, aux

    change = lambda model: _updated(apart.Config(2), model=model)[1].world_model.params - 1.0  # noqa: E731
    np.testing.assert_allclose(change(MODEL), -RATE, rtol=1e-6)
    np.testing.assert_allclose(change(MODEL._replace(loss=twice)), -2 * RATE, rtol=1e-6)


def test_a_loss_beside_an_update_of_its_own_is_refused():
    own = MODEL._replace(update=lambda state, key, batch: (state, batch, {}))
    with pytest.raises(ValueError, match="replace update too"):
        own._replace(loss=_loss)
    both = own._replace(loss=_loss, update=lambda state, key, batch: (state, batch, {"m/x": 1}))
    assert both.update(None, None, None)[2] == {"m/x": 1}


def test_a_model_needs_a_way_to_learn():
    with pytest.raises(ValueError, match="needs loss and apply, or an update of its own"):
        MODEL._replace(apply=None)


# ------------------------------------------------------------------------------- one gradient


def test_the_joint_gradient_goes_through_the_entries():
    before, after, _, metrics = _updated(joint.Config(), behaviour=JOINT._replace(update=None))
    entries = float(metrics["behaviour/loss"][0]) / (2.0 * 3.0)  # at params = 1
    np.testing.assert_allclose(
        after.world_model.params, 1.0 - RATE * (1.0 + 2.0 * 3.0 * entries), rtol=1e-5
    )
    np.testing.assert_allclose(after.behaviour.params, 3.0 - RATE * 2.0 * entries, rtol=1e-5)
    assert before.world_model.params == 1.0


def test_a_joint_clip_bounds_both_gradients_together():
    config = joint.Config(clip_norm=1e-3)
    before, after, _, _ = _updated(config, behaviour=JOINT._replace(update=None))
    moved = [
        (a.params - b.params) / RATE
        for a, b in ((after.world_model, before.world_model), (after.behaviour, before.behaviour))
    ]
    np.testing.assert_allclose(np.hypot(*moved), 1e-3, rtol=2e-2)


def test_what_the_behaviour_trains_beside_gets_every_row_of_the_batch():
    assert _updated(joint.Config(), behaviour=JOINT)[3]["behaviour/rows"][0] == 2 * 3
    assert _updated(joint.Config(num_starts=4), behaviour=JOINT)[3]["behaviour/rows"][0] == 4


# ------------------------------------------------------------------------------ named updates


@pytest.mark.parametrize("config", [apart.Config(2), branched.Config(num_starts=4, buffer=DYNA)])
def test_a_named_update_changes_its_own_part_alone(config):
    behaviour = BEHAVIOUR
    if isinstance(config, branched.Config):
        behaviour = BEHAVIOUR._replace(learns_from="transitions")
    for name, mine, other in (
        ("model", "world_model", "behaviour"),
        ("behaviour", "behaviour", "world_model"),
    ):
        before, after, _, _ = _updated(config, name, behaviour=behaviour)
        assert getattr(after, mine).params != getattr(before, mine).params
        assert getattr(after, other) == getattr(before, other)


def test_parts_bring_updates_of_their_own_behind_the_guard():
    def broken(state, key, batch):
        return state._replace(params=state.params * jnp.nan), {"model/extra": (jnp.nan, 1.0)}

    def clone(state, key, model, batch):
        return state._replace(params=batch.action.sum() + 7.0), {}

    model = MODEL._replace(updates={"tokeniser": broken})
    behaviour = BEHAVIOUR._replace(updates={"clone": clone})
    _, after, _, _ = _updated(apart.Config(2), "tokeniser", model, behaviour, iteration=5)
    assert after.world_model.params == 1.0 and after.frozen_at == 5
    assert _updated(apart.Config(2), "clone", model, behaviour)[1].behaviour.params == 7.0
    with pytest.raises(ValueError, match="two updates of this agent are called 'model'"):
        _made(apart.Config(2), MODEL._replace(updates={"model": broken}))


# --------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    "config, learns_from, advice",
    [
        (apart.Config(2), "transitions", "use agent=branched"),
        (apart.Config(2), "entries", "use agent=joint"),
        (branched.Config(num_starts=4, buffer=DYNA), "starts", "would ignore the buffer"),
        (joint.Config(), "starts", "use agent=apart"),
    ],
)
def test_a_behaviour_that_learns_from_something_else_is_refused(config, learns_from, advice):
    with pytest.raises(ValueError, match=advice):
        _made(config, behaviour=BEHAVIOUR._replace(learns_from=learns_from))


def test_a_model_that_decodes_nothing_feeds_no_buffer():
    behaviour = BEHAVIOUR._replace(learns_from="transitions")
    config = branched.Config(num_starts=4, buffer=DYNA)
    with pytest.raises(ValueError, match="decodes none"):
        _made(config, MODEL._replace(decode=None), behaviour)


def test_stored_observations_are_seen_anew_by_markov_models_alone():
    config = branched.Config(num_starts=4, buffer=DYNA)
    with pytest.raises(ValueError, match="use a Markov one"):
        _made(config, MODEL._replace(markov=False), sac.Config(width=4).make(SPEC))


# ------------------------------------------------------------------------------------- acting


def test_what_a_behaviour_remembers_ends_with_the_episode():
    agent, _ = _made(apart.Config(2))
    act = jax.jit(functools.partial(agent.act, agent.init(jax.random.key(0)), explore=True))
    carry, timestep, actions = agent.initial_carry(), example_row(SPEC).timestep, []
    for is_first in (True, False, False, True, False):
        row = timestep._replace(is_first=jnp.asarray(is_first))
        carry, action = act(jax.random.key(0), carry, row)
        actions.append(float(action[0]))
    assert actions == [0.0, 1.0, 2.0, 0.0, 1.0]


# ------------------------------------------------------------------------------------ branches


def test_branches_carry_what_the_behaviour_remembers_and_dream_as_it_says():
    config = branched.Config(num_starts=4, branch_length=3, buffer=DYNA)
    behaviour = BEHAVIOUR._replace(learns_from="transitions")
    agent, stored = _made(config, behaviour=behaviour)
    _, counters, _ = agent.update(
        agent.init(jax.random.key(0)), jax.random.key(1), stored, jnp.uint32(0)
    )
    np.testing.assert_array_equal(
        np.sort(np.asarray(counters.pending.action).ravel()), np.repeat([0.0, 1.0, 2.0], 4)
    )

    def dream(state, key, carry, latent, model, *, explore):
        return carry, jnp.full(1, 9.0)

    agent, stored = _made(config, behaviour=behaviour._replace(dream=dream))
    _, counters, _ = agent.update(
        agent.init(jax.random.key(0)), jax.random.key(1), stored, jnp.uint32(0)
    )
    assert (np.asarray(counters.pending.action) == 9.0).all()


@pytest.mark.parametrize("iteration, length", [(0, 1), (10, 1), (15, 2), (20, 4), (99, 4)])
def test_branches_grow_by_their_schedule(iteration, length):
    growth = branched.Growth(first=1, start=10, stop=20)
    config = branched.Config(num_starts=4, branch_length=4, growth=growth, buffer=DYNA)
    behaviour = BEHAVIOUR._replace(learns_from="transitions")
    agent, stored = _made(config, behaviour=behaviour)
    _, counters, _ = agent.update(
        agent.init(jax.random.key(0)), jax.random.key(1), stored, jnp.uint32(iteration)
    )
    assert counters.pending.valid.sum() == 4 * length


def test_following_the_advice_leads_to_a_system_that_runs():
    """FAULTS 22: the advice of one refusal must not end in another raw error."""
    base = config.override(drama_catch.get_experiment(), ["env.name=Pendulum-v1"])
    halfway = config.override(base, ["behaviour=sac"])
    with pytest.raises(ValueError, match="learns from transitions.*agent=branched"):
        build(halfway)
    advised = ["behaviour=sac", "agent=branched", "model=ensemble"]
    experiment = config.override(base, advised)
    config.validate(experiment)
    assert build(experiment).agent.updates.keys() == {"all", "model", "behaviour"}


# ------------------------------------------------------------------------------- annotations


class TwiceAsMuch:
    """Puts a weight beside each row of a batch, read off the agent's state."""

    def make(self, spec, world_model, behaviour):
        def annotate(state, key, batch):
            weight = jnp.full_like(batch.timestep.reward, 2.0) * state.world_model.params
            return batch._replace(extras=batch.extras | {"weight": weight})

        return annotate


def test_what_annotates_a_batch_is_read_by_the_loss_of_the_model():
    def weighted(params, stats, key, batch):
        loss = params * (batch.extras["weight"] * batch.timestep.reward).mean()
        return loss, (batch.timestep.observation, stats, {"model/loss": (loss, jnp.ones(()))})

    model = MODEL._replace(loss=weighted)
    _, after, _, _ = _updated(apart.Config(2, annotate=TwiceAsMuch()), model=model)
    np.testing.assert_allclose(after.world_model.params, 1.0 - 2.0 * RATE, rtol=1e-6)
