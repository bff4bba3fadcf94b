"""The laws that every core, world model and sampler keeps, for our tests and for third parties.

    from mbrl_jax import testing
    testing.check_core(my_core.Config(width=32))

Each function raises AssertionError, naming the law. Numbers as in DESIGN: L1 unroll ≡ scan(step);
L2 carry_at; L3 resets hide the past; L4 latent_at ≡ scan(observe); L5 imagine keeps structure;
L6 update keeps structure.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import random_action, zero_action
from mbrl_jax.replay.samplers import Ring
from mbrl_jax.types import EnvSpec, Key, PyTree, Step, Timestep, Trajectory

TOLERANCE = 2e-5


def assert_close(actual: PyTree, expected: PyTree, message: str, tolerance: float = TOLERANCE):
    """Leaves agree to `tolerance`, relative to the largest value of each expected leaf."""
    jax.tree.map(lambda a, e: _assert_leaf(a, e, message, tolerance), actual, expected)


def _assert_leaf(actual, expected, message, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{message}: {actual.shape} != {expected.shape}"
    if actual.size:
        error = np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())
        assert error <= tolerance, f"{message}: relative error {error:.2g} > {tolerance:.2g}"


def assert_same_structure(actual: PyTree, expected: PyTree, message: str) -> None:
    """Same tree, shapes and dtypes."""
    describe = lambda x: (jnp.shape(x), jnp.asarray(x).dtype)  # noqa: E731
    a, e = jax.tree.map(describe, actual), jax.tree.map(describe, expected)
    assert jax.tree.structure(actual) == jax.tree.structure(expected), f"{message}: tree changed"
    assert a == e, f"{message}: shapes or dtypes changed"


# ------------------------------------------------------------------------------------------ cores


def check_core(config: Any, in_size: int = 5, seed: int = 0) -> None:
    """Laws L1 to L3 at T = 1, odd lengths, whole chunks and several of them.

    Args:
      config: has `make(in_size) -> SequenceCore`; a `chunk_size` field sets the lengths.
      in_size: D of the inputs.
      seed: of parameters and inputs.
    """
    core = config.make(in_size)
    chunk = getattr(config, "chunk_size", 4)
    key = jax.random.key(seed)
    params = jax.jit(core.init)(jax.random.fold_in(key, 0))
    both_ways = jax.jit(functools.partial(_both_ways, core, params))
    for length in (1, 3, chunk, 2 * chunk + 1):
        xs = jax.random.normal(jax.random.fold_in(key, length), (length, in_size))
        for is_first in _reset_patterns(length, chunk):
            _check_unroll(core, both_ways, xs, is_first)
    _check_resets(core, params, xs, chunk)


def _reset_patterns(length: int, chunk: int) -> list[np.ndarray]:
    """No reset; at the first row; at the last and around chunk seams."""
    none = np.zeros(length, bool)
    first, seams = none.copy(), none.copy()
    first[0] = True
    seams[length - 1] = True
    seams[chunk - 1 : chunk + 1] = True
    return [none, first, seams]


def _both_ways(core, params, carry, xs, is_first):
    """(what stepping gives, what unrolling gives): outputs, last carry, carries of all rows."""

    def body(carry, row):
        carry, output = core.step(params, carry, *row)
        return carry, (carry, output)

    start = core.initial_carry() if carry is None else carry
    last, (carries, outputs) = jax.lax.scan(body, start, (xs, is_first))
    unrolled_last, unrolled, entries = core.unroll(params, carry, xs, is_first)
    rebuilt = jax.vmap(core.carry_at, (None, 0))(entries, jnp.arange(len(xs)))
    return (outputs, last, carries), (unrolled, unrolled_last, rebuilt)


def _check_unroll(core, both_ways, xs, is_first) -> None:
    where = f"T={len(is_first)}, resets at {np.flatnonzero(is_first).tolist()}"
    used = jax.tree.map(lambda x: x + 0.1, core.initial_carry())  # a carry that is not initial
    for carry in (None, used):
        stepped, unrolled = both_ways(carry, xs, jnp.asarray(is_first))
        names = ("L1 unroll ≡ scan(step)", "L1 last carry", "L2 carry_at ≡ carry after t + 1 steps")
        for name, expected, actual in zip(names, stepped, unrolled, strict=True):
            assert_close(actual, expected, f"{name}, {where}")
        assert_same_structure(unrolled[1], used, "L1 the carry's structure")


def _check_resets(core, params, xs, chunk) -> None:
    """A reset at t hides rows before t and the carry, NaN in them included, and only those."""

    @jax.jit
    def unroll(xs, is_first, carry=None):
        return core.unroll(params, carry, xs, is_first)[1]

    length = len(xs)
    for reset in sorted({0, 1, chunk - 1, chunk, chunk + 1, length - 1}):
        is_first = jnp.arange(length) == reset
        clean = unroll(xs, is_first)
        disturbed = unroll(xs.at[:reset].add(10.0), is_first)
        assert_close(disturbed[reset:], clean[reset:], f"L3 reset at {reset} hides the past")
        spoilt = unroll(xs.at[:reset].set(jnp.nan), is_first)
        assert_close(spoilt[reset:], clean[reset:], f"L3 reset at {reset} hides NaN before it")
        before = np.abs(np.asarray(disturbed[:reset] - clean[:reset])).max(axis=-1)
        assert (before > 1e-4).all(), f"L3 reset at {reset} must not act on earlier rows"
        # Padding behind keeps the shape, and with it the compiled program.
        alone = unroll(jnp.roll(xs, -reset, axis=0), jnp.zeros(length, bool))[: length - reset]
        assert_close(clean[reset:], alone, f"L3 rows from {reset} on ≡ an episode of their own")
    nothing = jax.tree.map(lambda x: jnp.full(jnp.shape(x), jnp.nan), core.initial_carry())
    clean, spoilt = unroll(xs, is_first := jnp.arange(length) == 0), unroll(xs, is_first, nothing)
    assert_close(spoilt, clean, "L3 a reset at 0 hides a carry of NaN")


# ----------------------------------------------------------------------------------- world models


def random_trajectory(spec: EnvSpec, key: Key, length: int, resets: tuple[int, ...] = ()):
    """A made-up Trajectory [T]: episodes begin at row 0 and at `resets`.

    Observations are uniform: integers over their range for uint8, else floats in [0, 1).
    """
    keys = jax.random.split(key, 3)
    shape = (length, *spec.observation.shape)
    observation = jax.random.uniform(keys[0], shape)
    if spec.observation.dtype == "uint8":
        observation = observation * 256.0
    is_first = np.isin(np.arange(length), (0, *resets))
    is_last = np.append(is_first[1:], False)
    timestep = Timestep(
        observation.astype(spec.observation.dtype),
        jnp.where(is_first, 0.0, jax.random.normal(keys[1], (length,))),
        jnp.asarray(is_first),
        jnp.asarray(is_last),
        jnp.asarray(is_last),
    )
    action = jax.vmap(lambda k: random_action(spec.action, k))(jax.random.split(keys[2], length))
    return Step(timestep, action)


def _without_first_row(trajectory: Trajectory) -> Trajectory:
    """The same rows as a continuation of the episode before."""
    timestep = trajectory.timestep
    is_first = timestep.is_first.at[0].set(False)
    return trajectory._replace(timestep=timestep._replace(is_first=is_first))


def check_world_model(config: Any, spec: EnvSpec, length: int = 7, seed: int = 0) -> None:
    """Laws L4 to L6 on made-up data.

    Args:
      config: has `make(spec) -> WorldModel`.
      spec: of the environment to make up.
      length: T of the trajectories.
      seed: of parameters and data.
    """
    model = config.make(spec)
    key = jax.random.key(seed)
    state = jax.jit(model.init)(jax.random.fold_in(key, 0))
    pieces = [
        random_trajectory(spec, jax.random.fold_in(key, i), length, resets)
        for i, resets in enumerate(((), (1,), (3, length - 1)))
    ]
    pieces.append(_without_first_row(pieces[-1]))
    _check_latents(model, spec, state, jax.random.fold_in(key, 2), pieces)
    _check_imagine(model, spec, state, jax.random.fold_in(key, 3))
    _check_update(model, spec, state, jax.random.fold_in(key, 4), length)


def _scan_observe(model, state, key, latent, prev_action, trajectory: Trajectory):
    def body(carry, row):
        latent, prev_action = carry
        row_key, timestep, action = row
        latent = model.observe(state, row_key, latent, timestep, prev_action)
        return (latent, action), latent

    keys = jax.random.split(key, len(trajectory.timestep.reward))
    rows = (keys, trajectory.timestep, trajectory.action)
    return jax.lax.scan(body, (latent, prev_action), rows)[1]


def _check_latents(model, spec, state, key, trajectories) -> None:
    def both_ways(latent, action, rows):
        expected = _scan_observe(model, state, key, latent, action, rows)
        entries = model.observe_sequence(state, key, latent, action, rows)
        length = len(rows.timestep.reward)
        return expected, jax.vmap(model.latent_at, (None, 0))(entries, jnp.arange(length))

    both_ways = jax.jit(both_ways)
    latent, action = model.initial_latent(), zero_action(spec.action)
    for rows in trajectories:
        expected, actual = both_ways(latent, action, rows)
        assert_close(actual, expected, "L4 latent_at(observe_sequence(…), t) ≡ scan(observe)")
        latent = jax.tree.map(lambda x: x[-1], expected)  # the next one goes on from here


def _check_imagine(model, spec, state, key) -> None:
    latent = model.initial_latent()
    stack = lambda x: jnp.broadcast_to(x, (3, *jnp.shape(x)))  # noqa: E731
    latents, actions = jax.tree.map(stack, (latent, zero_action(spec.action)))
    imagine = jax.jit(jax.vmap(model.imagine, (None, 0, 0, 0)))
    imagined = imagine(state, jax.random.split(key, 3), latents, actions)
    assert_same_structure(imagined, latents, "L5 imagine keeps the latent's structure")
    prediction = jax.jit(jax.vmap(model.predict, (None, 0)))(state, imagined)
    assert prediction.reward.shape == prediction.discount.shape == (3,), "L5 predict: scalars"
    discount = np.asarray(prediction.discount)
    assert ((discount >= 0) & (discount <= 1)).all(), "L5 a discount lies in [0, 1]"
    decoded = jax.jit(jax.vmap(model.decode, (None, 0)))(state, imagined)
    assert decoded.shape == (3, *spec.observation.shape), "L5 decode: the observation's shape"
    features = jax.jit(jax.vmap(model.features, (None, 0)))(state, imagined)
    assert features.ndim == 2, "L5 features: one vector for each latent"


def _check_update(model, spec, state, key, length) -> None:
    windows = [
        random_trajectory(spec, jax.random.fold_in(key, i), length + 1, (3,)) for i in range(2)
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *windows)
    updated, entries, metrics = jax.jit(model.update)(state, key, batch)
    assert_same_structure(updated, state, "L6 update keeps the state's structure")
    latents = jax.jit(jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None)))(
        entries, jnp.arange(length)
    )
    one = jax.tree.map(lambda x: x[0, 0], latents)
    assert_same_structure(one, model.initial_latent(), "L6 entries of update give latents")
    for name, (total, count) in metrics.items():
        assert "/" in name and np.isfinite(total) and np.shape(count) == (), f"metric {name}"


# --------------------------------------------------------------------------------------- samplers


def check_sampler(config: Any, capacity: int = 40, num_envs: int = 2, seed: int = 0) -> None:
    """Windows are complete, lie in written rows, never cross the write head, and all are reached.

    Args:
      config: has `make() -> Sampler` and `least_rows(length, num, num_envs)`.
      capacity: C of the made-up ring.
      num_envs: N.
      seed: of the draws.
    """
    sampler = config.make()
    length, num = 5, 6

    @jax.jit
    def sample(counters, key, position):
        ring = Ring(capacity, num_envs, position)
        return sampler.sample(counters, key, ring, length, num, "model")

    least = config.least_rows(length, num, num_envs)
    for position in (least, capacity - 1, capacity, 2 * capacity + 7):
        counters = sampler.init(capacity, num_envs)
        written = np.arange(max(0, position - capacity), position)
        legal = {
            (row % capacity, n)
            for row in written[: len(written) - length + 1]
            for n in range(num_envs)
        }
        seen: set[tuple[int, int]] = set()
        for draw in range(80):
            key = jax.random.fold_in(jax.random.key(seed), draw)
            counters, slot, lane = sample(counters, key, jnp.int32(position))
            drawn = set(zip(np.asarray(slot).tolist(), np.asarray(lane).tolist(), strict=True))
            assert drawn <= legal, f"position {position}: {sorted(drawn - legal)} is no window"
            seen |= drawn
        assert len(seen) > 0.9 * len(legal), f"position {position}: some windows are never drawn"
