"""How good a world model is: its predictions beside what really came, row by row and in sum.

The agent plays E lanes of T rows from a reset, a share of its actions at random if asked for. The
model sees all of them; from K rows drawn among them it then imagines H rows with the actions that
were really taken, one sampled future each. Of an observation in several parts the images are
compared, or else all numbers: see `views`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.acting import observe_from_nothing, with_random_actions
from mbrl_jax.evaluate.open_loop import play_rows
from mbrl_jax.evaluate.views import views
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    BoundModel,
    Environment,
    EnvSpec,
    Key,
    PyTree,
    Step,
    WorldModel,
    bind,
)

BINS = 10  # of the discount's calibration
_MOST_REWARDS = 20  # different ones that count as a set to choose from


class Config(NamedTuple):
    """What is played and predicted."""

    lanes: int = 16  # E of each seed
    rows: int = 160  # T of each lane
    context: int = 4  # rows that the model has seen before it first imagines
    horizon: int = 15  # H
    starts: int = 36  # K of each lane; drawn, for a fixed distance could miss every end
    random_share: float = 0.0  # of the actions, to see beside the policy's own path

    def possible(self) -> np.ndarray:
        """Rows from which H rows can be imagined.

        Raises ValueError where they are too few, or for a share of random actions that is none.
        """
        if not 0 <= self.random_share <= 1:
            raise ValueError(f"random_share={self.random_share} must lie between 0 and 1")
        found = np.arange(self.context - 1, self.rows - self.horizon)
        if min(self.lanes, self.context, self.horizon, self.starts) < 1 or len(found) < self.starts:
            raise ValueError(
                f"{self.rows} rows hold no {self.starts} stretches of {self.context} seen and "
                f"{self.horizon} imagined ones; play more rows, or imagine fewer"
            )
        return found


class Predicted(NamedTuple):
    """Predictions from K starts beside the truth."""

    error: Array  # [K, H] mean squared error over the observation's elements
    copied: Array  # [K, H] the same for the start's own observation
    is_seen: Array  # [K, H] bool: within the episode of the start, so that these two count
    reward: Array  # [K, H] predicted
    real_reward: Array  # [K, H]
    discount: Array  # [K, H] predicted
    is_terminal: Array  # [K, H] what came
    is_counted: Array  # [K, H] bool: the last five count
    reconstruction: Array  # [K] mean squared error of the start, decoded


def measure(
    env: Environment,
    agent: Agent,
    world_model: WorldModel,
    config: Config,
    state: AgentState,
    key: Key,
) -> Predicted:
    """Play and predict E lanes of one seed; Predicted [E]."""
    agent = with_random_actions(agent, env.spec.action, config.random_share)
    play = lambda lane_key: play_rows(env, agent, config.rows, state, lane_key)  # noqa: E731
    rows = jax.vmap(play)(jax.random.split(named(key, "play"), config.lanes))
    return measure_rows(env.spec, world_model, config, state, key, rows)


def measure_rows(
    spec: EnvSpec, world_model: WorldModel, config: Config, state: AgentState, key: Key, rows: Step
) -> Predicted:
    """Predict E lanes of one seed, rows [E, T] that each begin with a reset; Predicted [E]."""

    def lane(lane_key, lane_rows):
        return predict_ahead(spec, world_model, config, state.world_model, lane_key, lane_rows)

    return jax.vmap(lane)(jax.random.split(key, config.lanes), rows)


def predict_ahead(
    spec: EnvSpec, world_model: WorldModel, config: Config, state: PyTree, key: Key, rows: Step
) -> Predicted:
    """Compare one lane's rows [T], the first of which follows a reset, with what is imagined.

    Observations of bytes are brought to [0, 1], as models decode them.
    """
    model = bind(world_model, state)
    entries = observe_from_nothing(spec, model, named(key, "observe"), rows)
    drawn = jax.random.permutation(named(key, "starts"), config.possible())[: config.starts]
    keys = jax.random.split(named(key, "imagine"), config.starts)

    def of_start(start_key, t):
        latent = model.latent_at(entries, t)
        return _from_start(spec, model, config.horizon, start_key, latent, _ahead(rows, t, config))

    return jax.vmap(of_start)(keys, jnp.sort(drawn))


def _ahead(rows: Step, t: Array, config: Config) -> Step:
    """Rows t … t + H."""
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, t, config.horizon + 1)  # noqa: E731
    return jax.tree.map(cut, rows)


def _from_start(
    spec: EnvSpec, model: BoundModel, horizon: int, key: Key, latent: PyTree, rows: Step
) -> Predicted:
    """Imagine from one start; rows [H+1] begin with it."""
    assert model.decode is not None  # see `train.report.require_drawn`
    decode = model.decode
    real = rows.timestep
    observation = views(spec.observation, real.observation)
    seen = lambda latent: views(spec.observation, decode(latent))  # noqa: E731
    row = lambda t: jax.tree.map(lambda x: x[t], observation)  # noqa: E731

    def body(latent, scanned):  # decoded row by row: images of all of them would fill the memory
        step_key, action, observed = scanned
        latent = model.imagine(step_key, latent, action)
        told = model.predict(latent)
        errors = _apart(seen(latent), observed), _apart(row(0), observed)
        return latent, (*errors, told.reward, told.discount)

    actions = jax.tree.map(lambda x: x[:-1], rows.action)
    scanned = jax.random.split(key, horizon), actions, row(slice(1, None))
    _, (error, copied, reward, discount) = jax.lax.scan(body, latent, scanned)
    seams = jnp.cumsum(real.is_first[1:])
    # Where episodes merge, their first row brings the reward and the end of the one before.
    before = seams if spec.seam == "separate" else seams - real.is_first[1:]
    return Predicted(
        error,
        copied,
        seams == 0,
        reward,
        real.reward[1:],
        discount,
        real.is_terminal[1:],
        before == 0,
        _apart(seen(latent), row(0)),
    )


def _apart(one: dict[str, Array], other: dict[str, Array]) -> Array:
    """Mean squared error of an element, whichever part it belongs to: []."""
    pairs = [(one[name].astype(jnp.float32), other[name].astype(jnp.float32)) for name in one]
    total = sum((jnp.square(a - b).sum() for a, b in pairs), jnp.zeros(()))
    return total / sum(a.size for a, _ in pairs)


# ------------------------------------------------------------------------------------ in numbers


def summarise(predicted: Predicted) -> dict[str, Any]:
    """The numbers of one seed, from all its lanes [E, K, …] as NumPy arrays.

    Returns, with None for what cannot be said (no row counts):
      observation, observation_copied: [H] mean squared error of an element at 1 … H rows ahead,
        predicted, and with the last seen observation for a prediction.
      reward, reward_constant: [H] mean absolute error, predicted, and with the mean reward.
      reward_accuracy: [H] share of rewards that are nearer than a quarter of the smallest
        difference between rewards; None where rewards are one, or more than a handful.
      ends: one row ahead, with an end expected where the discount is below one half: rows, found
        (ends that came), accuracy, precision, recall, brier (mean squared error of the discount).
      calibration: of all rows ahead, by tenths of the predicted discount: its mean ("predicted"),
        the share of rows that went on ("found"), their number ("rows").
      reconstruction: mean squared error of an element of what was just seen.
    """
    flat: Any = jax.tree.map(lambda x: np.reshape(x, (-1, *np.shape(x)[2:])), predicted)
    seen, counted = flat.is_seen, flat.is_counted
    real = flat.real_reward[counted]
    constant = real.mean() if real.size else 0.0
    off = np.abs(flat.reward - flat.real_reward)
    gap = _smallest_gap(real)
    return {
        "observation": _by_horizon(flat.error, seen),
        "observation_copied": _by_horizon(flat.copied, seen),
        "reward": _by_horizon(off, counted),
        "reward_constant": _by_horizon(np.abs(flat.real_reward - constant), counted),
        "reward_accuracy": None if gap is None else _by_horizon(off < gap / 4, counted),
        "ends": _ends(flat.discount[:, 0], flat.is_terminal[:, 0], counted[:, 0]),
        "calibration": _calibration(flat.discount[counted], ~flat.is_terminal[counted]),
        "reconstruction": _mean(flat.reconstruction),
    }


def _mean(values: np.ndarray) -> float | None:
    """The mean, or None where there is nothing, or nothing finite, to take it of."""
    mean = float(np.mean(values, dtype=float)) if values.size else np.nan
    return mean if np.isfinite(mean) else None


def _by_horizon(values: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [_mean(values[counts[:, h], h]) for h in range(values.shape[1])]


def _smallest_gap(rewards: np.ndarray) -> float | None:
    """The smallest difference between rewards; None unless they are few different ones."""
    different = np.unique(rewards)
    if not 2 <= len(different) <= _MOST_REWARDS:
        return None
    return float(np.diff(different).min())


def _ends(discount: np.ndarray, is_terminal: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    discount, is_terminal = discount[counts], is_terminal[counts].astype(bool)
    expected = discount < 0.5
    return {
        "rows": int(counts.sum()),
        "found": int(is_terminal.sum()),
        "accuracy": _mean(expected == is_terminal),
        "precision": _mean(is_terminal[expected]),
        "recall": _mean(expected[is_terminal]),
        "brier": _mean(np.square(discount - ~is_terminal)),
    }


def _calibration(discount: np.ndarray, went_on: np.ndarray) -> dict[str, list]:
    place = np.clip((discount * BINS).astype(int), 0, BINS - 1)
    inside = [place == b for b in range(BINS)]
    return {
        "predicted": [_mean(discount[rows]) for rows in inside],
        "found": [_mean(went_on[rows]) for rows in inside],
        "rows": [int(rows.sum()) for rows in inside],
    }
