"""Law L10: every agent keeps it, and broken ones are found."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import acting, testing
from mbrl_jax.agents import apart, branched, joint
from mbrl_jax.behaviours import actor_critic, sac
from mbrl_jax.replay import dyna, ring
from mbrl_jax.testing import toys
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import ensemble
from tests.behaviours import dreamer_test, tdmpc_test
from tests.testing.behaviours_test import SHAPES

pytestmark = pytest.mark.usefixtures("quick_compile")

VECTOR = ArraySpec((3,), "float32")
CHOOSES = EnvSpec(VECTOR, DiscreteSpec(3))
PUSHES = EnvSpec(VECTOR, BoundedSpec(2))
REPLAY = ring.Config(capacity=32, batch_size=2, length=4)
APART = apart.Config(num_starts=4)
IMAGINES = actor_critic.Config(actor_width=4, critic_width=4, layers=1, num_bins=5, horizon=3).make(
    CHOOSES
)
DREAMER = dataclasses.replace(dreamer_test.CONFIG, horizon=1)
TDMPC = dataclasses.replace(tdmpc_test.CONFIG, layers=0)
TOY = toys.Model().make(CHOOSES)
BUFFER = dyna.Config(capacity=24, batch_size=4, num_batches=2, real_fraction=0.5)


@pytest.mark.parametrize(
    "config, model, behaviour, spec",
    [
        (APART, TOY, IMAGINES, CHOOSES),
        (
            apart.Config(4, starts="contexts", context_length=2, acting=acting.Config("prior", 3)),
            TOY,
            IMAGINES,
            CHOOSES,
        ),
        (
            branched.Config(num_starts=3, branch_length=2, buffer=BUFFER),
            ensemble.Config(members=2, elites=1, layers=1, width=4, weight_decay=0.0),
            sac.Config(layers=1, width=4),
            PUSHES,
        ),
        (joint.Config(clip_norm=1.0), TOY, SHAPES, CHOOSES),
        (joint.Config(), dreamer_test.MODEL, DREAMER, CHOOSES),
        (joint.Config(num_starts=4), tdmpc_test.MODEL, TDMPC, PUSHES),
    ],
    ids=["apart", "contexts", "branched", "joint", "dreamer", "tdmpc"],
)
def test_agent_keeps_the_law(config, model, behaviour, spec):
    testing.check_agent(config, model, behaviour, REPLAY, spec)


def _nudge(state, *rest):
    """An update that adds one to every number."""
    del rest
    return state._replace(params=jax.tree.map(lambda x: x + 1.0, state.params)), {}


def test_named_updates_of_parts_keep_the_law():
    model, behaviour = (x._replace(updates={n: _nudge}) for x, n in ((TOY, "a"), (IMAGINES, "b")))
    testing.check_agent(APART, model, behaviour, REPLAY, CHOOSES)


# ----------------------------------------------------------------------------------- broken agents


def _lean(state, key, model, starts, batch, iteration):
    """Adds up the starts."""
    del key, model, batch, iteration
    change = (starts.weight @ starts.latent.z).mean()
    return state._replace(params=state.params + change), {"behaviour/change": (change, 1.0)}


SIMPLE = SHAPES._replace(
    learns_from="starts",
    update=_lean,
    representation_loss=None,
    apply=None,
    initial_carry=tuple,
    act=lambda state, key, carry, latent, model, *, explore: (
        carry,
        jax.random.categorical(key, 3.0 * latent.z[:3]).astype(jnp.int32),
    ),
)


@dataclasses.dataclass(frozen=True)
class Broken(apart.Config):
    """An agent with one update spoiled, or made of another model."""

    spoil: Any = None  # (agent) -> agent
    model: Any = None

    def make(self, spec, world_model, behaviour, replay):
        """As `apart` does, but for what is broken."""
        made = super().make(spec, self.model or world_model, behaviour, replay)
        return made if self.spoil is None else self.spoil(made)


def _with_update(name, change):
    """Spoils: after the update `name`, `change` is made to the state that it gives."""

    def spoil(agent):
        def update(state, *args):
            learned, counters, metrics = agent.updates[name](state, *args)
            return change(state, learned), counters, metrics

        return agent._replace(updates=dict(agent.updates) | {name: update})

    return spoil


def _of(part):
    return lambda state, learned: learned._replace(
        **{part: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), getattr(learned, part))}
    )


def _forgetful(agent):
    """The guard lets a frozen seed learn."""

    def update(state, *args):
        learned, counters, metrics = agent.updates["model"](
            state._replace(frozen_at=jnp.int32(-1)), *args
        )
        return learned._replace(frozen_at=state.frozen_at), counters, metrics

    return agent._replace(updates=dict(agent.updates) | {"model": update})


def _unguarded(agent):
    """Numbers that are not finite are kept."""

    def update(state, *args):
        learned, counters, metrics = agent.updates["model"](state, *args)
        return learned._replace(frozen_at=state.frozen_at), counters, metrics

    return agent._replace(updates=dict(agent.updates) | {"model": update})


def _remembers(agent):
    """Acts as if no row were the first of an episode."""

    def act(state, key, carry, timestep, *, explore):
        never = timestep._replace(is_first=jnp.zeros((), bool))
        return agent.act(state, key, carry, never, explore=explore)

    return agent._replace(act=act)


SPOILED = {
    "model changes the behaviour": (_with_update("model", _of("behaviour")), "'model' is not"),
    "behaviour changes the model": (_with_update("behaviour", _of("world_model")), "'behaviour'"),
    "nothing": (_with_update("model", lambda state, learned: state), "'model' changes nothing"),
    "frozen": (_forgetful, "of a frozen seed"),
    "unguarded": (_unguarded, "of NaN must freeze"),
    "remembers": (_remembers, "begins anew"),
    "unnamed": (lambda agent: agent._replace(updates={"all": agent.update}), "no update 'model'"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_broken_agents_are_found(name):
    spoil, message = SPOILED[name]
    with pytest.raises(AssertionError, match=message):
        testing.check_agent(Broken(4, spoil=spoil), TOY, SIMPLE, REPLAY, CHOOSES)


def test_an_agent_that_keeps_the_old_loss_is_found():
    with pytest.raises(AssertionError, match="was replaced, and the same was learned"):
        testing.check_agent(Broken(4, model=TOY), TOY, SIMPLE, REPLAY, CHOOSES)


class Silent(type(TOY)):
    """A model with an update of its own, beside which a loss is replaced without a word."""

    __slots__ = ()

    def _replace(self, **changes):
        return type(self)(**(self._asdict() | changes))


def test_a_loss_that_is_replaced_beside_an_update_of_its_own_is_found():
    own = TOY._replace(update=lambda *args: TOY.update(*args))
    testing.check_agent(APART, own, SIMPLE, REPLAY, CHOOSES)
    with pytest.raises(AssertionError, match="must be refused"):
        testing.check_agent(APART, Silent(**own._asdict()), SIMPLE, REPLAY, CHOOSES)


def test_a_carry_that_survives_its_episode_is_found():
    """A plan, say; the agent resets it, so a behaviour alone cannot break this law."""

    def act(state, key, carry, latent, model, *, explore):
        _, action = SIMPLE.act(state, key, (), latent, model, explore=explore)
        return carry + 1, (action + carry) % 3

    plans = SIMPLE._replace(initial_carry=lambda: jnp.zeros((), jnp.int32), act=act)
    testing.check_agent(APART, TOY, plans, REPLAY, CHOOSES)

    def keep(agent):
        def spoiled(state, key, carry, timestep, *, explore):
            after, action = agent.act(state, key, carry, timestep, explore=explore)
            return after._replace(behaviour=carry.behaviour + 1), action

        return agent._replace(act=spoiled)

    with pytest.raises(AssertionError, match="is left in the actions"):
        testing.check_agent(Broken(4, spoil=keep), TOY, plans, REPLAY, CHOOSES)
