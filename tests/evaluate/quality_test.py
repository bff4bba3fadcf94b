"""The measure of a world model, by models whose quality is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate import quality
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, Prediction, Step, Timestep, WorldModel

SPEC = EnvSpec(ArraySpec((2,), "float32"), DiscreteSpec(2))
CONFIG = quality.Config(lanes=2, rows=24, context=1, horizon=3, starts=21)
EPISODE = 7  # rows


def _rows(start=0, dtype="float32"):
    """Rows [T] of a counter that rises by 1 + action, in episodes of EPISODE rows."""
    t = start + np.arange(CONFIG.rows)
    action = (t % 3 == 0).astype(np.int32)
    place, value, count = t % EPISODE, [], 0.0
    for row in range(len(t)):
        count = 0.0 if place[row] == 0 or row == 0 else count + 1.0 + action[row - 1]
        value.append(count)
    is_first = (place == 0) | (np.arange(len(t)) == 0)
    last = place == EPISODE - 1
    reward = np.where(is_first, 0.0, np.array(value) % 2)
    observation = np.stack([value, 2 * np.array(value)], -1).astype(dtype)
    timestep = Timestep(observation, reward.astype(np.float32), is_first, last, last & (t % 2 == 0))
    return jax.tree.map(jnp.asarray, Step(timestep, action))


def _model(step=1.0, discount=1.0, scale=1.0):
    """A model that knows the counter and adds `step` + action to it."""

    def unused(*args):
        raise AssertionError("not part of the measure")

    names = dict.fromkeys(WorldModel._fields, unused)
    return WorldModel(
        **names
        | {
            "initial_latent": lambda: jnp.zeros(()),
            "observe_sequence": lambda state, key, latent, action, rows: (
                rows.timestep.observation[:, 0] * scale
            ),
            "latent_at": lambda entries, t: entries[t],
            "imagine": lambda state, key, latent, action: latent + step + action,
            "predict": lambda state, latent: Prediction(latent % 2, jnp.asarray(discount), {}),
            "decode": lambda state, latent: jnp.stack([latent, 2 * latent]),
        }
    )


def _measured(model, rows, spec=SPEC):
    lanes = jax.tree.map(lambda *x: jnp.stack(x), rows, rows)
    state = type("State", (), {"world_model": None})
    found = quality.measure_rows(spec, model, CONFIG, state, jax.random.key(0), lanes)
    return jax.tree.map(np.asarray, found)


def test_a_perfect_model_makes_no_errors():
    found = quality.summarise(_measured(_model(), _rows()))
    assert found["observation"] == [0.0, 0.0, 0.0] and found["reconstruction"] == 0.0
    assert found["reward"] == [0.0, 0.0, 0.0] and found["reward_accuracy"] == [1.0, 1.0, 1.0]
    assert min(found["observation_copied"]) > 1.0 and min(found["reward_constant"]) > 0.2
    assert found["observation_copied"] == sorted(found["observation_copied"])


def test_an_error_of_every_step_adds_up_with_the_horizon():
    found = quality.summarise(_measured(_model(step=1.5), _rows()))
    # Off by h/2 in the first element and by h in the second one.
    np.testing.assert_allclose(found["observation"], [(h**2 / 4 + h**2) / 2 for h in (1, 2, 3)])


def test_rows_of_the_next_episode_do_not_count():
    rows = _rows()
    found = _measured(_model(), rows)
    first = np.asarray(rows.timestep.is_first)
    for k, t in enumerate(CONFIG.possible()):
        for h in range(CONFIG.horizon):
            assert found.is_seen[0, k, h] == (not first[t + 1 : t + h + 2].any())
    assert 0.3 < found.is_seen.mean() < 1.0
    np.testing.assert_array_equal(found.is_seen, found.is_counted)


def test_a_merged_first_row_brings_the_reward_of_the_episode_before():
    spec = EnvSpec(SPEC.observation, SPEC.action, seam="merged")
    found = _measured(_model(), _rows(), spec)
    first = np.asarray(_rows().timestep.is_first)
    for k, t in enumerate(CONFIG.possible()):
        for h in range(CONFIG.horizon):
            assert found.is_seen[0, k, h] == (not first[t + 1 : t + h + 2].any())
            assert found.is_counted[0, k, h] == (not first[t + 1 : t + h + 1].any())


def test_bytes_are_compared_in_units():
    rows = _rows(dtype="uint8")
    spec = EnvSpec(ArraySpec((2,), "uint8"), SPEC.action)
    found = _measured(_model(scale=1 / 255, step=1 / 255), rows, spec)
    start = np.flatnonzero(np.asarray(rows.action)[CONFIG.possible()] == 0)
    np.testing.assert_allclose(found.reconstruction, 0.0, atol=1e-12)
    np.testing.assert_allclose(
        found.error[0, start, 0][found.is_seen[0, start, 0]], 0.0, atol=1e-12
    )


def test_ends_and_calibration_are_counted():
    discount = np.array([[0.95], [0.97], [0.2], [0.4], [0.6], [0.1]])
    terminal = np.array([[False], [False], [True], [False], [True], [True]])
    counted = np.array([[True]] * 5 + [[False]])
    zeros, seen = np.zeros((6, 1)), np.ones((6, 1), bool)
    lane = quality.Predicted(
        zeros, zeros, seen, zeros, zeros, discount, terminal, counted, np.zeros(6)
    )
    found = quality.summarise(jax.tree.map(lambda x: x[None], lane))
    ends = found["ends"]
    assert (ends["rows"], ends["found"]) == (5, 2)
    assert (ends["accuracy"], ends["precision"], ends["recall"]) == (0.6, 0.5, 0.5)
    errors = [0.05, 0.03, 0.2, 0.6, 0.6]
    np.testing.assert_allclose(ends["brier"], np.mean(np.square(errors)))
    calibration = found["calibration"]
    assert calibration["rows"] == [0, 0, 1, 0, 1, 0, 1, 0, 0, 2]
    assert calibration["found"][2:7:2] == [0.0, 1.0, 0.0] and calibration["found"][9] == 1.0
    assert calibration["predicted"][9] == pytest.approx(0.96) and calibration["found"][0] is None
    assert found["reward_accuracy"] is None  # one reward only: nothing to tell apart


def test_starts_are_drawn_anew_in_each_lane():
    config = CONFIG._replace(starts=6)
    lanes = jax.tree.map(lambda *x: jnp.stack(x), _rows(), _rows())
    state = type("State", (), {"world_model": None})
    found = quality.measure_rows(SPEC, _model(), config, state, jax.random.key(1), lanes)
    assert found.error.shape == (2, 6, 3)
    assert (found.copied[0] != found.copied[1]).any()


def test_what_cannot_be_said_is_none_and_json():
    empty = np.zeros((1, 2, 2))
    no = np.zeros((1, 2, 2), bool)
    nan = np.full((1, 2), np.nan)
    lane = quality.Predicted(empty, empty, no, empty, empty, empty, no, no, nan)
    found = quality.summarise(lane)
    json.dumps(found, allow_nan=False)
    assert found["observation"] == [None, None] and found["reconstruction"] is None
    assert found["ends"] == {
        "rows": 0,
        "found": 0,
        **dict.fromkeys(("accuracy", "precision", "recall", "brier")),
    }


def test_rows_too_few_for_the_horizon_are_refused():
    from mbrl_jax.train import trained

    with pytest.raises(ConfigError, match="160 rows hold no 36 stretches of 4 seen and 200"):
        trained.measure_quality("nowhere", measured=quality.Config(horizon=200))
