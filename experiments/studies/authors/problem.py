"""What both sides are given: sizes, weights, windows of frames, and every random draw.

All of it comes from seeds, so that a test can make it again without the authors' code. Axes: `B`
windows of `L` rows, `M` starts of imagination behind contexts of `C` rows, `H` imagined steps, `G`
one-hot groups, `A` actions.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from mbrl_jax.keys import named
from mbrl_jax.networks import running
from mbrl_jax.types import Key

Arrays = dict[str, np.ndarray]
UPDATES = 3
CAPACITY, FILLED = 3_000, 2_500  # of the replay whose sampling frequencies are compared


class Sizes(NamedTuple):
    """Of the nets, and of what they are given; published ones by default."""

    depth: int = 16  # channels of the first convolution
    classes: int = 32  # of a group, and groups
    width: int = 512  # of the sequence core
    layers: int = 2  # of the core
    head: int = 256  # width of reward and termination heads
    actor: int = 256
    critic: int = 512
    positions: int = 128  # that the transformer has learned
    actions: int = 6
    windows: int = 3
    rows: int = 40  # published: 128
    starts: int = 24  # published: 1,024
    context: int = 8
    horizon: int = 16


PUBLISHED = Sizes()
SMALL = Sizes(
    depth=2,
    classes=8,
    width=64,
    layers=1,
    head=16,
    actor=16,
    critic=16,
    positions=16,
    actions=3,
    windows=2,
    rows=6,
    starts=6,
    context=3,
    horizon=4,
)


class Windows(NamedTuple):
    """Stored rows in the authors' convention: what an action brought stands beside it."""

    frame: np.ndarray  # [B, L, 64, 64, 3] uint8
    action: np.ndarray  # [B, L] int
    reward: np.ndarray  # [B, L] float32
    end: np.ndarray  # [B, L] float32, 0 or 1


def windows(seed: int, num: int, length: int, actions: int) -> Windows:
    """Frames of coloured blocks and noise; rewards of all sizes; an end in about every 7th row."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num, length, 8, 8, 3)).repeat(8, 2).repeat(8, 3)
    frame = np.clip(blocks + rng.normal(0, 12, blocks.shape), 0, 255).astype(np.uint8)
    action = rng.integers(0, actions, (num, length))
    reward = rng.choice([0.0, 0.0, 0.0, 1.0, -1.0, 0.1, 7.0, 400.0, -21.0], (num, length))
    reward += (rng.random((num, length)) < 0.3) * rng.normal(0, 3, (num, length))
    end = (rng.random((num, length)) < 0.15).astype(np.float32)
    return Windows(frame, action, reward.astype(np.float32), end)


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Arrays:
    """Values for a state dict of the authors'; none is special (0 or 1), activations stay near 1.

    A tensor depends on its name, its shape and the seed alone.
    """
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    last = name.rpartition(".")[2]
    if last == "A_log":  # as they begin: decay rates of 1 to 16
        return np.log(rng.uniform(1.0, 16.0, shape)).astype(np.float32)
    if last == "dt_bias" or name.endswith("dt_proj.bias"):  # step sizes of 0.001 to 0.1
        return rng.uniform(-6.9, -2.25, shape).astype(np.float32)
    normal = rng.normal(size=shape)
    if last == "running_var":
        return np.exp(0.3 * normal).astype(np.float32)
    if len(shape) > 1:
        return (normal / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    around = 1.0 if last in ("scale", "D") or last == "weight" else 0.0
    if name == "termination_decoder.head.bias":
        around = -0.8  # most imagined rollouts go on, and some end
    return (around + 0.1 * normal).astype(np.float32)


class Draws(NamedTuple):
    """What one update of a behaviour draws."""

    context: np.ndarray  # [M, C, G] uniforms of the posteriors
    expected: np.ndarray  # [M, G] of the state behind the context
    gumbels: np.ndarray  # [M, H, A] of the actions
    imagined: np.ndarray  # [M, H, G] of the imagined states


def window_uniforms(key: Key, num: int, length: int, groups: int) -> np.ndarray:
    """[B, L, G]: row (b, t) draws with `split(split(key, B)[b], L)[t]`."""
    keys = jax.vmap(lambda k: jax.random.split(k, length))(jax.random.split(key, num))
    return np.asarray(jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (groups,))))(keys))


def behaviour_key(key: Key) -> Key:
    """The key with which a behaviour updates, as `agents.apart` derives it."""
    return named(key, "behaviour")


def behaviour_draws(key: Key, sizes: Sizes, learner: str) -> Draws:
    """What our side draws with `key` in observing, expecting and imagining."""
    starts, groups = sizes.starts, sizes.classes
    context = window_uniforms(named(key, "observe"), starts, sizes.context, groups)
    expect = jax.random.split(named(key, "expect"), starts)
    expected = jax.vmap(lambda k: jax.random.uniform(k, (groups,)))(expect)
    own = behaviour_key(key)

    def step(step_key):
        policy, model = jax.random.split(step_key)
        return (
            jax.random.gumbel(policy, (sizes.actions,)),
            jax.random.uniform(model, (groups,)),
        )

    rollouts = jax.random.split(named(own, "imagine") if learner == "ppo" else own, starts)
    steps = jax.vmap(lambda k: jax.random.split(k, sizes.horizon))(rollouts)
    gumbels, imagined = jax.vmap(jax.vmap(step))(steps)
    return Draws(context, *(np.asarray(x) for x in (expected, gumbels, imagined)))


def window_problem(sizes: Sizes) -> tuple[list, list[Windows]]:
    """(keys, batches) of the updates of a world model.

    A draw that falls within rounding of the boundary of two classes gives other samples on the two
    sides. With these keys all are further away than that, with one in ten others they are not.
    """
    keys = [jax.random.key(66 + i) for i in range(UPDATES)]
    shape = (sizes.windows, sizes.rows, sizes.actions)
    return keys, [windows(10 + i, *shape) for i in range(UPDATES)]


def context_problem(sizes: Sizes) -> tuple[list, list[Windows]]:
    """(keys, contexts) of the updates of a behaviour."""
    keys = [jax.random.key(900 + i) for i in range(UPDATES)]
    shape = (sizes.starts, sizes.context, sizes.actions)
    return keys, [windows(200 + i, *shape) for i in range(UPDATES)]


def normaliser_state(sizes: Sizes, word: str) -> running.Running:
    """What the actor's inputs are normalised by: "empty", or "warm" after very many rows."""
    one_hot = sizes.classes**2
    size = one_hot + sizes.width
    if word == "empty":
        return running.Running(*(np.float32(1e-4), np.zeros(size, "f4"), np.ones(size, "f4")))
    rng, is_sample = np.random.default_rng(3), np.arange(size) < one_hot
    mean = rng.normal(0, 0.05, size) + is_sample / sizes.classes
    variance = np.exp(rng.normal(0, 0.3, size)) * np.where(is_sample, 1 / sizes.classes, 1.0)
    return running.Running(np.float32(1e9), np.float32(mean), np.float32(variance))


def replay_counts() -> list[np.ndarray]:
    """[model, imagine] how often each row was drawn."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, most, CAPACITY).astype(np.int32) for most in (60, 5_000)]
