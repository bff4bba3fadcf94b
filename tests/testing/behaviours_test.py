"""Law L11: every behaviour keeps it, and broken ones are found."""

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import testing
from mbrl_jax.behaviours import actor_critic, ppo, sac
from mbrl_jax.types import (
    ArraySpec,
    Behaviour,
    BoundedSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    LearnerState,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

VECTOR = ArraySpec((3,), "float32")
CHOOSES = EnvSpec(VECTOR, DiscreteSpec(3))
PUSHES = EnvSpec(VECTOR, BoundedSpec(2))
SMALL = {"actor_width": 4, "critic_width": 4, "layers": 1, "num_bins": 5, "horizon": 3}
ACTOR_CRITIC = actor_critic.Config(**SMALL)
SAC = sac.Config(layers=1, width=4)


@pytest.mark.parametrize(
    "config, spec",
    [
        (ACTOR_CRITIC, CHOOSES),
        (ppo.Config(**SMALL, num_minibatches=2), CHOOSES),
        (SAC, PUSHES),
    ],
    ids=["actor_critic", "ppo", "sac"],
)
def test_behaviour_keeps_the_law(config, spec):
    testing.check_behaviour(config, spec)


def test_observations_may_have_named_leaves():
    leaves = ("camera", ArraySpec((2, 2, 1), "uint8")), ("task", ArraySpec((2,), "bool"))
    testing.check_behaviour(ACTOR_CRITIC, EnvSpec(DictSpec(leaves), DiscreteSpec(3)))


# ---------------------------------------------------------------------------------- one that shapes


def _value(params, model, latents):
    return jax.vmap(jax.vmap(model.features))(latents) @ params


def _representation_loss(params, stats, key, model, entries, batch):
    del key
    rows = jnp.arange(batch.timestep.reward.shape[1] - 1)
    latents = jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None))(entries, rows)
    error = jnp.square(_value(params, model, latents) - batch.timestep.reward[:, 1:]).mean()
    return error, (stats + 1.0, {"behaviour/error": (error, jnp.ones(()))})


def _apply(state, grads, stats):
    return LearnerState(state.params - 0.1 * grads, stats, ()), jnp.linalg.norm(grads)


SHAPES = Behaviour(
    init=lambda key, features: LearnerState(jnp.zeros(features.shape), jnp.zeros(()), ()),
    initial_carry=lambda: jnp.zeros(()),
    act=lambda state, key, carry, latent, model, *, explore: (
        carry + 1.0,
        jnp.int32(model.features(latent) @ state.params > 0) + explore,
    ),
    learns_from="entries",
    representation_loss=_representation_loss,
    apply=_apply,
)


def test_a_behaviour_of_entries_keeps_the_law():
    testing.check_behaviour(SHAPES, CHOOSES)


def _detached(params, stats, key, model, entries, batch):
    return _representation_loss(params, stats, key, model, jax.lax.stop_gradient(entries), batch)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learns_from": "dreams"}, "none of"),
        ({"representation_loss": None}, "goes with apply"),
        ({"representation_loss": None, "apply": None}, "representation_loss is None"),
        ({"representation_loss": _detached}, "nothing flows back"),
        (
            {"apply": lambda state, grads, stats: (state._replace(stats=stats), grads.sum())},
            "apply changes no parameter",
        ),
        ({"initial_carry": lambda: jnp.int32(0)}, "keeps the carry's structure"),
        (
            {"act": lambda *args, explore: (jnp.zeros(()), jnp.int32(3))},
            "leaves the range of actions",
        ),
        (
            {"act": lambda *args, explore: (jnp.zeros(()), jnp.float32(explore))},
            "gives the spec's action",
        ),
        ({"dream": lambda *args, explore: (jnp.zeros(()), jnp.int32(-1))}, "dream .* leaves"),
        ({"updates": {"clone": lambda state, *args: (state, {})}}, "'clone' changes nothing"),
        (
            {"updates": {"clone": lambda state, *args: (state._replace(opt=1.0), {})}},
            "'clone' keeps the state's structure",
        ),
    ],
)
def test_broken_behaviours_of_entries_are_found(changes, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_behaviour(SHAPES._replace(**changes), CHOOSES)


# ---------------------------------------------------------------------------- learns_from that lies


def _update(what):
    """An update that adds up what `what` gives of (starts, batch)."""

    def update(state, key, model, starts, batch, iteration):
        del key, model, iteration
        return state._replace(params=state.params + what(starts, batch)), {}

    return update


def _mean_of_valid(starts, batch):
    del starts
    return (batch.reward * batch.valid).mean()


@pytest.mark.parametrize(
    "reads, what, message",
    [
        ("starts", lambda starts, batch: 1.0, "other starts change nothing"),
        ("starts", lambda starts, batch: batch.timestep.reward.mean(), "other starts"),
        ("starts", lambda starts, batch: 0.0, "update changes nothing"),
        ("transitions", lambda starts, batch: starts.latent.z.mean(), "reads the starts"),
        ("transitions", lambda starts, batch: batch.discount.mean() + 1, "other rewards"),
        ("transitions", lambda starts, batch: batch.reward.mean(), "not valid"),
    ],
)
def test_a_learns_from_that_lies_is_found(reads, what, message):
    broken = Behaviour(SHAPES.init, SHAPES.initial_carry, SHAPES.act, _update(what), reads)
    with pytest.raises(AssertionError, match=message):
        testing.check_behaviour(broken, CHOOSES)


@pytest.mark.parametrize(
    "reads, what",
    [
        ("starts", lambda starts, batch: starts.latent.z.mean()),
        ("transitions", _mean_of_valid),
    ],
)
def test_a_learns_from_that_is_true_passes(reads, what):
    honest = Behaviour(SHAPES.init, SHAPES.initial_carry, SHAPES.act, _update(what), reads)
    testing.check_behaviour(honest, CHOOSES)


def test_parameters_that_nothing_trains_are_found():
    idle = Behaviour(SHAPES.init, SHAPES.initial_carry, SHAPES.act)
    with pytest.raises(AssertionError, match="there are parameters"):
        testing.check_behaviour(idle, CHOOSES)
    planner = idle._replace(
        init=lambda key, features: LearnerState((), (), ()),
        act=lambda *args, explore: (jnp.zeros(()), jnp.int32(0)),
    )
    testing.check_behaviour(planner, CHOOSES)
