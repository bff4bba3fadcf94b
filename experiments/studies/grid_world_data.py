"""Token sequences of a random walk in a walled 5×5 grid, and what counts as an error in them.

A frame is the grid read row by row (25 tokens: wall, free, agent), followed by the action taken in
it (1 token of 4), so a step is 26 tokens. Axes: `T` tokens, `F` frames (T = 26 F), `V` vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Array, Key

SIDE = 5
CELLS = SIDE * SIDE
STEP = CELLS + 1  # tokens of a frame and its action
WALL, FREE, AGENT, FIRST_ACTION = 0, 1, 2, 3
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right
VOCABULARY = FIRST_ACTION + len(MOVES)
IS_WALL = np.pad(np.zeros((SIDE - 2, SIDE - 2), bool), 1, constant_values=True)


class Errors(NamedTuple):
    """Shares of wrong predictions in the frames after the first, each in [0, 1]."""

    agent: Array  # [] frames whose token at the agent's true cell is not "agent"
    geometry: Array  # [] cells without the agent whose token is wrong
    frame: Array  # [] frames with any wrong token


def move(position: Array, action: Array) -> Array:
    """Where `action` [] leads from `position` [2]; a wall leaves the agent in place."""
    wanted = position + jnp.asarray(MOVES)[action]
    return jnp.where(jnp.asarray(IS_WALL)[wanted[0], wanted[1]], position, wanted)


def walk(key: Key, frames: int) -> tuple[Array, Array]:
    """Uniform random start and actions: positions [F, 2] and actions [F], one after each frame."""
    start_key, action_key = jax.random.split(key)
    start = jax.random.randint(start_key, (2,), 1, SIDE - 1)
    actions = jax.random.randint(action_key, (frames,), 0, len(MOVES))
    _, positions = jax.lax.scan(lambda p, a: (move(p, a), p), start, actions)
    return positions, actions


def encode(positions: Array, actions: Array) -> Array:
    """Tokens [T] of positions [F, 2] and actions [F]."""
    empty = jnp.where(jnp.asarray(IS_WALL), WALL, FREE).reshape(CELLS)
    agent = positions[:, 0] * SIDE + positions[:, 1]
    cells = jnp.where(jnp.arange(CELLS) == agent[:, None], AGENT, empty)
    return jnp.concatenate([cells, FIRST_ACTION + actions[:, None]], axis=1).reshape(-1)


def sample(key: Key, tokens: int) -> Array:
    """A fresh sequence [T]. Raises ValueError unless `tokens` is a multiple of 26."""
    if tokens % STEP:
        raise ValueError(f"{tokens} tokens are no whole number of steps of {STEP} tokens")
    return encode(*walk(key, tokens // STEP))


def is_cell(tokens: int) -> np.ndarray:
    """Mask [T] of the predictions that count: cells. Actions are random, nothing predicts them."""
    return np.arange(tokens) % STEP != CELLS


def loss(logits: Array, sequence: Array) -> Array:
    """Mean cross-entropy over the cells of all frames, the first one too.

    `logits` [T, V] at row t predict `sequence` [T] at row t and have seen rows before t only. The
    first frame teaches the geometry; its agent is a uniform draw, so a part of its loss stays.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probabilities, sequence[:, None], axis=-1)[:, 0]
    mask = is_cell(len(sequence))
    return -jnp.sum(jnp.where(mask, chosen, 0.0)) / mask.sum()


def errors(predicted: Array, sequence: Array) -> Errors:
    """Errors of the predicted tokens [T]; each was chosen knowing the true tokens before it.

    The first frame is left out: where the agent starts cannot be known.
    """
    frames = sequence.reshape(-1, STEP)[1:, :CELLS]
    wrong = predicted.reshape(-1, STEP)[1:, :CELLS] != frames
    is_agent = frames == AGENT
    return Errors(
        agent=jnp.sum(wrong & is_agent) / jnp.sum(is_agent),
        geometry=jnp.sum(wrong & ~is_agent) / jnp.sum(~is_agent),
        frame=jnp.mean(jnp.any(wrong, axis=1)),
    )


# ------------------------------------------------------------------- predictors to compare with


def copy_last(sequence: Array) -> Array:
    """Repeat the frame before: what a model does that ignores actions. Predictions [T]."""
    frames = sequence.reshape(-1, STEP)
    return jnp.concatenate([frames[:1], frames[:-1]]).reshape(-1)


def ignore_action(sequence: Array) -> Array:
    """The likeliest token given the frame before and the cells so far, actions not known. [T]."""
    positions = [tuple(p) for p in np.argwhere(~IS_WALL)]
    table = np.zeros((CELLS, CELLS))  # [from, to] probabilities of one random step
    for p in positions:
        for d in MOVES:
            q = p if IS_WALL[tuple(p + d)] else tuple(p + d)
            table[p[0] * SIDE + p[1], q[0] * SIDE + q[1]] += 1 / len(MOVES)
    # Mass that is left once the cells before this one turned out to hold no agent.
    left = 1 - np.cumsum(table, axis=1) + table
    likely = table > 0.5 * left + 1e-9
    frames = sequence.reshape(-1, STEP)
    before = jnp.argmax(copy_last(sequence).reshape(-1, STEP)[:, :CELLS] == AGENT, axis=1)
    here = jnp.argmax(frames[:, :CELLS] == AGENT, axis=1)
    cell = jnp.arange(CELLS)
    says_agent = jnp.asarray(likely)[before] & (cell <= here[:, None])  # none after it was seen
    empty = jnp.where(jnp.asarray(IS_WALL), WALL, FREE).reshape(CELLS)
    cells = jnp.where(says_agent, AGENT, empty)
    return jnp.concatenate([cells, frames[:, CELLS:]], axis=1).reshape(-1)
