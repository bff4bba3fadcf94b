"""Laws L4 to L6 and L9: what every world model keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import example_observation, zero_action
from mbrl_jax.testing.asserts import assert_close, assert_metrics, assert_same_structure
from mbrl_jax.testing.rows import noisy, random_trajectory, random_windows, without_first_row
from mbrl_jax.types import Array, EnvSpec, Key, LearnerState, PyTree, Trajectory, WorldModel


def check_world_model(config: Any, spec: EnvSpec, length: int = 7, seed: int = 0) -> None:
    """Laws L4 to L6 and L9 on made-up data.

    L9 asks for a gradient only where features of observed rows change with the parameters (while
    the state that `features` gets stays as it is): features that are standardised observations, as
    a Markov model's may be, have none, and an encoder's have one whatever `markov` says.

    Args:
      config: has `make(spec) -> WorldModel`; or a WorldModel.
      spec: of the environment to make up.
      length: T of the trajectories.
      seed: of parameters and data.
    """
    model = config if isinstance(config, WorldModel) else config.make(spec)
    key = jax.random.key(seed)
    state = jax.jit(model.init)(jax.random.fold_in(key, 0))
    pieces = [
        random_trajectory(spec, jax.random.fold_in(key, i), length, resets)
        for i, resets in enumerate(((), (1,), (3, length - 1)))
    ]
    pieces.append(without_first_row(pieces[-1]))
    _check_latents(model, spec, state, jax.random.fold_in(key, 2), pieces)
    _check_imagine(model, spec, state, jax.random.fold_in(key, 3))
    key = jax.random.fold_in(key, 4)
    batch = random_windows(spec, key, 2, length + 1, (3,))
    entries = _check_update(model, state, key, batch)
    if model.apply is not None:
        _check_gradient(model, state, key, batch)
    if model.decode is not None:
        _check_decoder(model, state, key, entries, length)


# --------------------------------------------------------------------------------------- latents


def _scan_observe(
    model: WorldModel,
    state: LearnerState,
    key: Key,
    latent: PyTree,
    prev_action: PyTree,
    trajectory: Trajectory,
) -> PyTree:
    def body(carry, row):
        latent, prev_action = carry
        row_key, timestep, action = row
        latent = model.observe(state, row_key, latent, timestep, prev_action)
        return (latent, action), latent

    keys = jax.random.split(key, len(trajectory.timestep.reward))
    rows = (keys, trajectory.timestep, trajectory.action)
    return jax.lax.scan(body, (latent, prev_action), rows)[1]


def _check_latents(
    model: WorldModel, spec: EnvSpec, state: LearnerState, key: Key, trajectories: list[Trajectory]
) -> None:
    @jax.jit
    def both_ways(latent, action, rows):
        expected = _scan_observe(model, state, key, latent, action, rows)
        entries = model.observe_sequence(state, key, latent, action, rows)
        length = len(rows.timestep.reward)
        return expected, jax.vmap(model.latent_at, (None, 0))(entries, jnp.arange(length))

    latent, action = model.initial_latent(), zero_action(spec.action)
    for rows in trajectories:
        expected, actual = both_ways(latent, action, rows)
        assert_close(actual, expected, "L4 latent_at(observe_sequence(…), t) ≡ scan(observe)")
        latent = jax.tree.map(lambda x: x[-1], expected)  # the next one goes on from here


def _check_imagine(model: WorldModel, spec: EnvSpec, state: LearnerState, key: Key) -> None:
    latent = model.initial_latent()
    stack = lambda x: jnp.broadcast_to(x, (3, *jnp.shape(x)))  # noqa: E731
    latents, actions = jax.tree.map(stack, (latent, zero_action(spec.action)))

    @jax.jit
    @jax.vmap
    def ahead(key, latent, action):
        imagined = model.imagine(state, key, latent, action)
        return imagined, model.predict(state, imagined), model.features(state, imagined)

    one = jax.eval_shape(model.imagine, state, key, latent, zero_action(spec.action))
    assert_same_structure(one, latent, "L5 imagine keeps the latent's structure")
    imagined, prediction, features = ahead(jax.random.split(key, 3), latents, actions)
    assert_same_structure(imagined, latents, "L5 imagine keeps the latent's structure under vmap")
    assert prediction.reward.shape == prediction.discount.shape == (3,), "L5 predict: scalars"
    discount = np.asarray(prediction.discount)
    assert ((discount >= 0) & (discount <= 1)).all(), "L5 a discount lies in [0, 1]"
    assert features.ndim == 2, "L5 features: one vector for each latent"
    if model.decode is not None:
        decoded = jax.eval_shape(model.decode, state, latent)
        wanted = example_observation(spec.observation)
        shapes = [jax.tree.map(jnp.shape, x) for x in (decoded, wanted)]
        assert shapes[0] == shapes[1], "L5 decode: the observation's shape"


# ---------------------------------------------------------------------------------------- learning


def _check_update(model: WorldModel, state: LearnerState, key: Key, batch: Trajectory) -> PyTree:
    """L6 for all updates; the entries of the main one."""
    updated, entries, metrics = jax.jit(model.update)(state, key, batch)
    assert_same_structure(updated, state, "L6 update keeps the state's structure")
    assert_metrics(metrics, "L6")
    row = jax.eval_shape(lambda x: jax.vmap(model.latent_at, (0, None))(x, jnp.int32(0)), entries)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), row)
    assert_same_structure(one, model.initial_latent(), "L6 entries of update give latents")
    for name, named_update in model.updates.items():
        updated, metrics = jax.jit(named_update)(state, key, batch)
        assert_same_structure(updated, state, f"L6 update {name!r} keeps the state's structure")
        assert_metrics(metrics, f"L6 update {name!r}:")
    return entries


def _latents(model: WorldModel, entries: PyTree, length: int) -> PyTree:
    """All latents [B, L] of entries [B]."""
    at = jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None))
    return at(entries, jnp.arange(length))


def _check_gradient(model: WorldModel, state: LearnerState, key: Key, batch: Trajectory) -> None:
    """L9: what the loss hands on lets a gradient through to the parameters."""
    batch = jax.tree.map(lambda x: x[:1, :3], batch)  # an episode's first rows: little to compute
    length = batch.timestep.reward.shape[1] - 1

    def through(params: PyTree) -> tuple[Array, Array]:
        assert model.loss is not None
        _, (entries, _, _) = model.loss(params, state.stats, key, batch)
        read = jax.vmap(jax.vmap(lambda latent: model.features(state, latent)))
        features = read(_latents(model, entries, length))
        weights = jax.random.normal(key, features.shape)
        return (features * weights).sum(), features

    gradient = jax.jit(jax.grad(through, has_aux=True, allow_int=True))
    _, before = gradient(state.params)
    found, after = gradient(noisy(state.params, key))
    if np.array_equal(before, after):
        return  # observations as they are
    floats = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert any(np.asarray(x).any() for x in floats), (
        "L9 features of the loss's entries depend on the parameters, but have no gradient: "
        "entries of `loss` stay differentiable, and `update` stops them"
    )


def _check_decoder(
    model: WorldModel, state: LearnerState, key: Key, entries: PyTree, length: int
) -> None:
    """L9: different latents are drawn as different observations."""
    assert model.decode is not None
    decode = model.decode
    if model.apply is not None:
        state = state._replace(params=noisy(state.params, key))

    @jax.jit
    def draw(entries):
        return jax.vmap(jax.vmap(lambda x: decode(state, x)))(_latents(model, entries, length))

    for leaf in jax.tree.leaves(draw(entries)):
        rows = np.asarray(leaf, np.float64).reshape(2 * length, -1)
        assert (rows != rows[0]).any(), "L9 a decoder varies with the latent; this one is constant"
