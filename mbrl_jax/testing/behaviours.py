"""Law L11: what every behaviour keeps."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import zero_action
from mbrl_jax.testing import toys
from mbrl_jax.testing.asserts import assert_metrics, assert_same_structure, equal
from mbrl_jax.testing.rows import noisy, random_transitions, random_windows
from mbrl_jax.types import (
    Act,
    ActionSpec,
    Array,
    Behaviour,
    BoundedSpec,
    BoundModel,
    DictActionSpec,
    DiscreteSpec,
    EnvSpec,
    Key,
    LearnerState,
    MultiDiscreteSpec,
    PyTree,
    Starts,
    Trajectory,
    WorldModel,
    bind,
)

LANES = 3
ITERATION = 7


def check_behaviour(
    config: Any,
    spec: EnvSpec,
    model: Any = None,
    *,
    num_starts: int = 4,
    batch: tuple[int, int] = (2, 4),
    seed: int = 0,
) -> None:
    """Law L11: structures of acting and learning, and that `learns_from` is true.

    What is declared must be what is read: a behaviour of "starts" learns something else from other
    starts; one of "transitions" from other transitions, not from starts, and not from the rows that
    are not valid; one of "entries" has a representation loss whose gradient reaches the model.
    That a carry begins anew with an episode is the agent's part: `check_agent`.

    Args:
      config: has `make(spec) -> Behaviour`; or a Behaviour.
      spec: of the environment to make up.
      model: a WorldModel or a config of one, to act and imagine in; None: a toy.
      num_starts: M of an update.
      batch: (U, B) of transitions, or (B, L) of windows.
      seed: of parameters and data.
    """
    behaviour = config if isinstance(config, Behaviour) else config.make(spec)
    if not isinstance(model, WorldModel):
        model = (toys.Model(markov=behaviour.reobserves) if model is None else model).make(spec)
    check_record(behaviour)
    key = jax.random.key(seed)
    model_state = jax.jit(model.init)(jax.random.fold_in(key, 0))
    features = jax.eval_shape(model.features, model_state, model.initial_latent())
    example = jnp.zeros(features.shape, features.dtype)
    state = jax.jit(behaviour.init)(jax.random.fold_in(key, 1), example)
    learns = behaviour.update is not None or behaviour.representation_loss is not None
    assert learns or not jax.tree.leaves(state.params), "L11 there are parameters to be learned"
    state = state._replace(params=noisy(state.params, key))
    windows = random_windows(spec, jax.random.fold_in(key, 2), batch[0], batch[1] + 1, (3,))
    key = jax.random.fold_in(key, 3)
    case = _Case(behaviour, model, spec, model_state, state, key, windows, batch)
    _check_acting(case, behaviour.act, "act")
    if behaviour.dream is not None:
        _check_acting(case, behaviour.dream, "dream")
    if behaviour.update is not None:
        _check_update(case, num_starts)
    if behaviour.representation_loss is not None:
        _check_representation(case)
    for name in behaviour.updates:
        _check_named_update(case, name)


def check_record(behaviour: Behaviour) -> None:
    """The fields of the record agree with each other."""
    kinds = ("starts", "transitions", "entries")
    known = behaviour.learns_from in kinds
    assert known, f"L11 learns_from={behaviour.learns_from!r} is none of {kinds}"
    has_loss = behaviour.representation_loss is not None
    assert has_loss == (behaviour.apply is not None), "L11 representation_loss goes with apply"
    if behaviour.learns_from == "entries":
        assert has_loss, "L11 learns_from 'entries', and representation_loss is None"


class _Case(NamedTuple):
    """One behaviour in one model, and the data that it is checked on."""

    behaviour: Behaviour
    model: WorldModel
    spec: EnvSpec
    model_state: LearnerState
    state: LearnerState
    key: Key
    windows: Trajectory  # [B, L + 1]
    batch: tuple[int, int]

    def bound(self, params: PyTree = None) -> BoundModel:
        """The model, with other parameters if some are given."""
        state = self.model_state if params is None else self.model_state._replace(params=params)
        return bind(self.model, state)

    def entries(self, params: PyTree) -> PyTree:
        """Entries [B] of the first L rows of the windows, as the model's loss hands them on."""
        if self.model.loss is not None:
            stats = self.model_state.stats
            return self.model.loss(params, stats, self.key, self.windows)[1][0]
        start, action = self.model.initial_latent(), zero_action(self.spec.action)
        see = functools.partial(self.bound(params).observe_sequence, self.key, start, action)
        return jax.vmap(see)(jax.tree.map(lambda x: x[:, :-1], self.windows))

    def starts(self, entries: PyTree, num_starts: int) -> Starts:
        """Starts [M] of the rows that come first."""
        flat = jnp.arange(num_starts)
        window, row = flat // self.batch[1] % self.batch[0], flat % self.batch[1]
        at = jax.vmap(lambda b, t: self.model.latent_at(jax.tree.map(lambda x: x[b], entries), t))
        return Starts(at(window, row), jnp.ones(num_starts))


# ------------------------------------------------------------------------------------------ acting


def _check_acting(case: _Case, act: Act, name: str) -> None:
    """Carry and action keep their structure, exploring or not; actions are the spec's."""
    carry, latent = case.behaviour.initial_carry(), case.model.initial_latent()
    lanes = jax.tree.map(lambda x: jnp.broadcast_to(x, (LANES, *jnp.shape(x))), (carry, latent))

    @jax.jit
    def both(state, keys, carries, latents):
        one = lambda explore: jax.vmap(  # noqa: E731
            lambda k, c, z: act(state, k, c, z, case.bound(), explore=explore)
        )(keys, carries, latents)
        return one(True), one(False)

    keys = jax.random.split(case.key, LANES)
    wanted = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (LANES, *x.shape)), zero_action(case.spec.action)
    )
    for kind, (after, action) in zip(
        ("explore", "greedy"), both(case.state, keys, *lanes), strict=True
    ):
        said = f"L11 {name} ({kind})"
        assert_same_structure(after, lanes[0], f"{said} keeps the carry's structure")
        assert_same_structure(action, wanted, f"{said} gives the spec's action")
        assert is_action(case.spec.action, action), f"{said} leaves the range of actions"


# ---------------------------------------------------------------------------------------- learning


def _check_update(case: _Case, num_starts: int) -> None:
    """The update keeps the structure, learns, and reads what it says it reads."""
    assert case.behaviour.update is not None
    update = case.behaviour.update
    reads = case.behaviour.learns_from
    entries = jax.jit(case.entries)(case.model_state.params)
    starts = case.starts(entries, num_starts)
    data = (
        random_transitions(case.spec, case.key, case.batch)
        if reads == "transitions"
        else case.windows
    )

    @jax.jit
    def run(starts, batch):
        return update(case.state, case.key, case.bound(), starts, batch, jnp.int32(ITERATION))

    learned, metrics = run(starts, data)
    assert_same_structure(learned, case.state, "L11 update keeps the state's structure")
    assert_metrics(metrics, "L11 update:")
    assert not equal(learned, case.state), "L11 update changes nothing"
    others = starts._replace(latent=jax.tree.map(_moved, starts.latent))
    if reads == "starts":
        assert not equal(run(others, data)[0], learned), (
            "L11 learns_from 'starts', and other starts change nothing"
        )
    if reads == "transitions":
        _check_transitions(case, run, starts, others, data, learned)


def _check_transitions(case: _Case, run, starts, others, data, learned) -> None:
    """Valid rows count, others do not, and nor do starts."""
    assert equal(run(others, data)[0], learned), (
        "L11 learns_from 'transitions', and reads the starts"
    )
    rewarded = data._replace(reward=data.reward + 1.0)
    assert not equal(run(starts, rewarded)[0], learned), (
        "L11 learns_from 'transitions', and other rewards change nothing"
    )
    junk = jnp.where(data.valid > 0, 0.0, 100.0)
    spoiled = data._replace(reward=data.reward + junk, discount=data.discount + junk)
    if case.batch[1] > 1:
        assert equal(run(starts, spoiled)[0], learned), (
            "L11 rows that are not valid count 0, and these were learned from"
        )


def _check_representation(case: _Case) -> None:
    """The representation loss has a gradient in its own parameters and in the model's."""
    loss, apply = case.behaviour.representation_loss, case.behaviour.apply
    assert loss is not None and apply is not None

    def total(params: PyTree, model_params: PyTree) -> tuple[Array, PyTree]:
        entries, bound = case.entries(model_params), case.bound(model_params)
        return loss(params, case.state.stats, case.key, bound, entries, case.windows)

    def step(state):
        gradient = jax.value_and_grad(total, (0, 1), has_aux=True, allow_int=True)
        (value, (stats, metrics)), (own, models) = gradient(state.params, case.model_state.params)
        return value, stats, metrics, own, models, apply(state, own, stats)

    value, stats, metrics, own, models, (learned, norm) = jax.jit(step)(case.state)
    assert jnp.shape(value) == jnp.shape(norm) == (), "L11 representation_loss: one number"
    assert_metrics(metrics, "L11 representation_loss:")
    assert_same_structure(stats, case.state.stats, "L11 representation_loss keeps the stats")
    assert_same_structure(learned, case.state, "L11 apply keeps the state's structure")
    assert _any(own), "L11 representation_loss trains no parameter of the behaviour"
    assert not equal(learned.params, case.state.params), "L11 apply changes no parameter"
    if case.behaviour.learns_from == "entries":
        assert _any(models), "L11 learns_from 'entries', and nothing flows back to the model"


def _check_named_update(case: _Case, name: str) -> None:
    """A further update keeps the structure and does something."""
    update = case.behaviour.updates[name]
    run = jax.jit(lambda state: update(state, case.key, case.bound(), case.windows))
    learned, metrics = run(case.state)
    said = f"L11 update {name!r}"
    assert_same_structure(learned, case.state, f"{said} keeps the state's structure")
    assert_metrics(metrics, f"{said}:")
    assert not equal(learned, case.state), f"{said} changes nothing"


def is_action(spec: ActionSpec, action: PyTree) -> bool:
    """Whether all actions of a stack lie in the range that the spec gives."""
    if isinstance(spec, DictActionSpec):
        return all(is_action(leaf, action[name]) for name, leaf in spec.leaves)
    found = np.asarray(action)
    if isinstance(spec, DiscreteSpec | MultiDiscreteSpec):
        return bool(((found >= 0) & (found < np.asarray(spec.num_actions))).all())
    assert isinstance(spec, BoundedSpec)
    return bool((np.abs(found) <= 1.0).all())


def _moved(x: Array) -> Array:
    """Another value of the same kind; whole numbers stay as they are."""
    return x + 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else x


def _any(gradient: PyTree) -> bool:
    """Whether a number of a gradient is not 0."""
    floats = [x for x in jax.tree.leaves(gradient) if jnp.issubdtype(x.dtype, jnp.floating)]
    return any(np.asarray(x).any() for x in floats)
