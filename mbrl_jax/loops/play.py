"""Playing episodes in lanes on the host: to be counted, to be filmed, to be looked at."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.types import HostEnvironment, PyTree, Step, Timestep

MAX_FRAMES = 2_000  # of an episode that are kept to be shown


def play_episodes(
    env: HostEnvironment, act: Callable, carry: PyTree, num_episodes: int, max_steps: int
) -> Evaluation:
    """Complete episodes; each lane plays a number fixed before, so short ones are no favourites.

    Args:
      env: lanes [S, E'] with raw rewards.
      act: (carry, timestep [S, E'], step) -> (carry, actions [S, E'], NumPy's).
      carry: to begin with, [S, E'].
      num_episodes: E of each seed; the k-th of lane i stands at k · E' + i.
      max_steps: environment steps after which an episode is cut (`finished` is False).
    """
    timestep = env.reset(None)
    seeds, lanes = timestep.reward.shape
    quota = np.array([len(range(lane, num_episodes, lanes)) for lane in range(lanes)])
    result = _nothing_played(seeds, num_episodes, timestep)
    played = np.zeros((seeds, lanes), np.int32)
    steps = _steps(env, act, carry, timestep, max_steps)
    while (played < quota).any():
        _, over, running = next(steps)
        over = over & (played < quota)
        for seed, lane in np.argwhere(over):
            _note(result, (seed, played[seed, lane] * lanes + lane), running, (seed, lane))
        played += over
    return result


def play_first_episodes(
    env: HostEnvironment, act: Callable, carry: PyTree, num_episodes: int, max_steps: int
) -> Evaluation:
    """The first episodes that end in any lane of a seed: biased to short ones.

    This is how the published Drama counts (its `eval.py`, with 32 lanes and 100 episodes): while a
    lane plays one long episode the others finish several short ones, and what is still running at
    the end is dropped. Where long episodes are the good ones, the mean is too low; where they are
    the bad ones, too high. Only the counting is the published one: there, the agent's memory is not
    emptied between episodes, and the statistics of the actor's input begin anew.

    Args as for `play_episodes`. Returns episodes [S, E] in the order in which they ended, at one
    step by lane.
    """
    timestep = env.reset(None)
    seeds = len(timestep.reward)
    result = _nothing_played(seeds, num_episodes, timestep)
    played = np.zeros(seeds, np.int32)
    steps = _steps(env, act, carry, timestep, max_steps)
    while (played < num_episodes).any():
        _, over, running = next(steps)
        for seed, lane in np.argwhere(over):
            if played[seed] < num_episodes:
                _note(result, (seed, played[seed]), running, (seed, lane))
                played[seed] += 1
    return result


class Film(NamedTuple):
    """One episode of one seed, to be looked at."""

    frames: PyTree  # [F, *observation], or pictures: every `every`-th row, and the last
    every: int
    episode_return: float
    length: int  # environment steps
    finished: bool  # False: cut at the step limit


def play_film(
    env: HostEnvironment, act: Callable, carry: PyTree, max_steps: int, rendered: bool = False
) -> list[Film]:
    """The first episode of the first lane of each seed, with what was seen.

    Args as for `play_episodes`, and
      rendered: keep what the lanes `render` instead of what the agent sees.

    Returns a Film of each seed, of at most MAX_FRAMES frames.
    """

    def look(seed: int, seen: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[seed, 0], seen)

    def show(timestep: Timestep) -> PyTree:
        if not rendered or env.render is None:
            return timestep.observation
        try:
            return env.render()
        except Exception as error:  # each environment raises what it likes
            raise ConfigError(
                f"the environment gives no pictures here ({error}): install what that asks for, "
                "or do without the film"
            ) from error

    first = env.reset(None)
    seen = show(first)
    reels = [_Reel(look(seed, seen)) for seed in range(len(first.reward))]
    films: dict[int, Film] = {}
    steps = _steps(env, act, carry, first, max_steps)
    while len(films) < len(reels):
        timestep, over, running = next(steps)
        seen = show(timestep)
        for seed, reel in enumerate(reels):
            if seed in films:
                continue
            reel.add(look(seed, seen), is_end=over[seed, 0])
            if over[seed, 0]:
                numbers = (x[seed, 0].item() for x in running[:3])
                frames = jax.tree.map(lambda *x: np.stack(x), *reel.frames)
                films[seed] = Film(frames, reel.every, *numbers)
    return [films[seed] for seed in range(len(reels))]


class _Reel:
    """Every k-th frame, where k doubles whenever there would be more than MAX_FRAMES."""

    def __init__(self, first: PyTree):
        self.frames, self.every, self._rows = [first], 1, 1

    def add(self, frame: PyTree, is_end: bool) -> None:
        if len(self.frames) == MAX_FRAMES:
            self.frames, self.every = self.frames[::2], 2 * self.every
        if is_end or self._rows % self.every == 0:
            # Copies: the rows of other lanes can go.
            self.frames.append(jax.tree.map(np.array, frame))
        self._rows += 1


def _steps(
    env: HostEnvironment, act: Callable, carry: PyTree, timestep: Timestep, max_steps: int
) -> Iterator[tuple[Timestep, np.ndarray, Evaluation]]:
    """Play lanes [S, E'] from `timestep` on, for ever.

    Yields after each step: (the rows it led to, whether an episode is over there, the episodes so
    far).
    """
    none = np.zeros(timestep.reward.shape)
    episode_return, extras = none, dict.fromkeys(timestep.extras, none)
    length, step = np.zeros(timestep.reward.shape, np.int32), 0
    while True:
        carry, action = act(carry, timestep, np.int32(step))
        env.send(action)
        timestep, step = env.receive(), step + 1
        begun = ~timestep.is_first
        episode_return = np.where(begun, episode_return + timestep.reward, 0.0)
        length = np.where(begun, length + 1, 0)
        extras = {n: np.where(begun, extras[n] + x, 0.0) for n, x in timestep.extras.items()}
        cut = (length >= max_steps) & ~timestep.is_last
        running: Any = (episode_return, length, timestep.is_last, extras)
        yield timestep, np.asarray(timestep.is_last | cut), Evaluation(*running)
        if cut.any():
            timestep = env.reset(cut)
            episode_return, length = np.where(cut, 0.0, episode_return), np.where(cut, 0, length)
            extras = {n: np.where(cut, 0.0, x) for n, x in extras.items()}


def _nothing_played(seeds: int, num_episodes: int, timestep: Timestep) -> Evaluation:
    shape = (seeds, num_episodes)
    extras: Any = {name: np.zeros(shape, np.float32) for name in timestep.extras}
    columns: Any = [np.zeros(shape, dtype) for dtype in (np.float32, np.int32, bool)]
    return Evaluation(*columns)._replace(extras=extras)


def _note(result: Evaluation, place: tuple, running: Evaluation, lane: tuple) -> None:
    """Write down the episode that is over in a lane."""
    for column, now in zip(jax.tree.leaves(result), jax.tree.leaves(running), strict=True):
        column[place] = now[lane]


def play_rows(env: HostEnvironment, act: Callable, carry: PyTree, num_rows: int) -> Step:
    """The first rows [S, E, T] of lanes [S, E] after a reset."""
    rows, timestep = [], env.reset(None)
    for step in range(num_rows):
        carry, action = act(carry, timestep, np.int32(step))
        rows.append(Step(timestep, action))
        env.send(action)
        timestep = env.receive()
    return jax.tree.map(lambda *x: np.stack(x, axis=2), *rows)
