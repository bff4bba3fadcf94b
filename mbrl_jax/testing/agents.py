"""Law L10: what every agent keeps, whatever its world model, behaviour and replay."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import random_action
from mbrl_jax.testing.asserts import assert_equal, assert_metrics, assert_same_structure, equal
from mbrl_jax.testing.behaviours import is_action
from mbrl_jax.testing.rows import noisy, random_trajectory
from mbrl_jax.types import (
    Agent,
    AgentCarry,
    AgentState,
    Array,
    Behaviour,
    Derived,
    EnvSpec,
    Key,
    Metrics,
    PyTree,
    Replay,
    ReplayState,
    WorldModel,
)

ITERATION = 7
LANES, ROWS = 8, 3  # that are acted in
Learned = tuple[AgentState, PyTree, Metrics]


def check_agent(
    config: Any,
    model: Any,
    behaviour: Any,
    replay: Any,
    spec: EnvSpec,
    *,
    num_envs: int = 2,
    seed: int = 0,
) -> None:
    """Law L10, and that an episode begins anew with its first row.

    Every update keeps the structure of the agent's state and of the replay's counters. "model" and
    the model's own updates leave the behaviour as it is, bit for bit, and "behaviour" and its own
    leave the model; each changes its own part. A frozen seed stays as it is under all of them, and
    numbers that are not finite freeze it. With another `loss` the model learns something else.

    Args:
      config: of an agent: has `make`, `make_replay` and `streams`.
      model: a WorldModel or a config of one.
      behaviour: a Behaviour or a config of one.
      replay: a config of a replay.
      spec: of the environment to make up.
      num_envs: N.
      seed: of parameters and data.
    """
    world_model = model if isinstance(model, WorldModel) else model.make(spec)
    behaviour = behaviour if isinstance(behaviour, Behaviour) else behaviour.make(spec)
    made = config.make_replay(replay, num_envs, spec)
    key = jax.random.key(seed)
    agent = config.make(spec, world_model, behaviour, made)
    for name in ("all", "model", *world_model.updates, *behaviour.updates):
        assert name in agent.updates, f"L10 the agent has no update {name!r}"
    state = jax.jit(agent.init)(jax.random.fold_in(key, 0))
    least = replay.least_rows(num_envs, tuple(config.streams().items()))
    stored = _filled(made, agent, spec, jax.random.fold_in(key, 1), least + 3, num_envs)
    case = _Case(agent, world_model, behaviour, spec, state, stored, jax.random.fold_in(key, 2))
    _check_acting(case)
    make = functools.partial(config.make, spec, behaviour=behaviour, replay=made)
    _check_loss(case, make)
    for name in agent.updates:
        if name != "all":
            _check_update(case, name, jax.jit(agent.updates[name]))


class _Case(NamedTuple):
    """An agent, its pieces, and a replay that was filled for it."""

    agent: Agent
    world_model: WorldModel
    behaviour: Behaviour
    spec: EnvSpec
    state: AgentState
    stored: ReplayState
    key: Key


def _filled(
    replay: Replay, agent: Agent, spec: EnvSpec, key: Key, num_rows: int, num_envs: int
) -> ReplayState:
    """A replay with so many made-up rows in each lane."""
    lanes = [
        random_trajectory(spec, jax.random.fold_in(key, n), num_rows, (num_rows // 2 + n,))
        for n in range(num_envs)
    ]
    rows = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *lanes)
    record = agent.initial_carry().record
    broadcast = lambda x: jnp.broadcast_to(x, (num_rows, num_envs, *jnp.shape(x)))  # noqa: E731
    rows = rows._replace(extras=jax.tree.map(broadcast, record))
    example = jax.tree.map(lambda x: jnp.zeros_like(x[0, 0]), rows)

    @jax.jit
    def fill(rows):
        return jax.lax.scan(lambda s, row: (replay.add(s, row), ()), replay.init(example), rows)[0]

    return fill(rows)


# ------------------------------------------------------------------------------------------ acting


def _check_acting(case: _Case) -> None:
    """Structures; and that nothing of an episode is left when the next one begins."""
    agent, state = case.agent, case.state
    loud = jax.tree.map(_standard, noisy(state.behaviour.params, case.key))
    state = state._replace(behaviour=state.behaviour._replace(params=loud))
    timesteps = random_trajectory(case.spec, case.key, ROWS).timestep

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def play(key: Key, carry: AgentCarry):
        def body(carry, row):
            key, timestep = row
            _, greedy = agent.act(state, key, carry, timestep, explore=False)
            carry, action = agent.act(state, key, carry, timestep, explore=True)
            return carry, (carry, action, greedy)

        return jax.lax.scan(body, carry, (jax.random.split(key, ROWS), timesteps))[1]

    keys, fresh = jax.random.split(case.key, LANES), agent.initial_carry()
    carries, actions, greedy = play(keys, fresh)
    one = jax.eval_shape(lambda x: jax.tree.map(lambda x: x[0, 0], x), (carries, actions, greedy))
    like = random_action(case.spec.action, case.key)
    assert_same_structure(one, (fresh, like, like), "L10 act keeps the structures")
    for chosen in (actions, greedy):
        assert is_action(case.spec.action, chosen), "L10 act leaves the range of actions"
    used = jax.tree.map(_spoiled, fresh)
    used = used._replace(behaviour=jax.tree.map(_nan, fresh.behaviour))
    after, *again = play(keys, used)
    left = "L10 a first row begins anew, and something of the episode before is left"
    assert equal(again, [actions, greedy]), f"{left} in the actions"
    assert_equal(after.behaviour, carries.behaviour, f"{left} in the behaviour's carry")


def _standard(x: Array) -> Array:
    """The same weights with deviation 1: policies then depend on what they see."""
    if x.size < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return (x - x.mean()) / jnp.maximum(x.std(), 1e-6)


def _spoiled(x: Array) -> Array:
    """What could have been remembered: other numbers of the same kind."""
    return ~x if x.dtype == jnp.bool_ else x + jnp.ones((), x.dtype)


def _nan(x: Array) -> Array:
    """Not a number, where that is possible."""
    return jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else _spoiled(x)


# ---------------------------------------------------------------------------------------- learning


def _check_loss(case: _Case, make: Callable[..., Agent]) -> None:
    """The update "all", and that a replaced loss is what the model learns from."""
    model, loss = case.world_model, case.world_model.loss
    if loss is None or not isinstance(model.update, Derived):
        if loss is not None:
            _check_refused(model)
        _check_update(case, "all", jax.jit(case.agent.updates["all"]))
        return

    @jax.jit
    def run(sign: float, *args: Any) -> Learned:
        def scaled(*given: Any) -> Any:
            assert loss is not None
            total, aux = loss(*given)
            return sign * total, aux

        agent = make(world_model=model._replace(loss=scaled))
        return agent.updates["all"](*args)

    _check_update(case, "all", functools.partial(run, 1.0))
    learned, other = (_learned(case, functools.partial(run, sign)) for sign in (1.0, -1.0))
    assert not equal(learned[0].world_model.params, other[0].world_model.params), (
        "L10 the world model's loss was replaced, and the same was learned"
    )


def _check_refused(model: WorldModel) -> None:
    """A loss beside an update that does not use it is not replaced silently."""
    try:
        model._replace(loss=model.loss)
    except ValueError:
        return
    raise AssertionError(
        "L10 this world model has an update of its own: a replaced loss must be refused"
    )


def _learned(case: _Case, update: Callable[..., Learned]) -> Learned:
    return update(case.state, case.key, case.stored, jnp.uint32(ITERATION))


def _check_update(case: _Case, name: str, update: Callable[..., Learned]) -> None:
    """One update by its name: what it changes, and the guard around it."""
    said, state = f"L10 update {name!r}", case.state
    learned, counters, metrics = _learned(case, update)
    assert_same_structure(learned, state, f"{said} keeps the agent's structure")
    assert_same_structure(counters, case.stored.counters, f"{said} keeps the counters' structure")
    assert_metrics(metrics, said)
    assert learned.frozen_at == -1, f"{said} froze the seed"
    models = name == "model" or name in case.world_model.updates
    behaves = name == "behaviour" or name in case.behaviour.updates
    if models:
        assert_equal(learned.behaviour, state.behaviour, f"{said} is not the behaviour's, whose")
        changed = not equal(learned.world_model, state.world_model)
    elif behaves:
        assert_equal(learned.world_model, state.world_model, f"{said} is not the model's, whose")
        changed = not equal(learned.behaviour, state.behaviour)
    else:
        changed = not equal(learned, state)
    assert changed, f"{said} changes nothing"

    frozen = state._replace(frozen_at=jnp.int32(3))
    stayed = _learned(case._replace(state=frozen), update)[0]
    assert_equal(stayed, frozen, f"{said} of a frozen seed, whose")
    part = "behaviour" if behaves else "world_model"
    params = getattr(state, part).params
    if not any(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params)):
        return
    poisoned = getattr(state, part)._replace(params=jax.tree.map(_nan, params))
    broken = state._replace(**{part: poisoned})
    kept = _learned(case._replace(state=broken), update)[0]
    assert np.asarray(kept.frozen_at) == ITERATION, f"{said} of NaN must freeze the seed"
    assert_equal(kept._replace(frozen_at=state.frozen_at), broken, f"{said} of NaN, where")
