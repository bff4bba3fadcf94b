"""Data sets: which steps of a file are transitions, with which s', and what does not fit."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from mbrl_jax import datasets
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import ArraySpec, BoundedSpec, DictSpec, DiscreteSpec, EnvSpec, Step, Timestep

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))


def _observation(index):
    """[…, 2] that tell their number, and that of what follows where they are not in a file."""
    index = np.asarray(index, np.float64)
    return np.stack([index, -index], axis=-1)


def _seven(**changes):
    """A file of 7 steps: a terminal at step 2, a time limit at step 5. s' of 2 is 102, of 5 105."""
    following = np.array([1, 2, 102, 4, 5, 105, 106])
    columns = {
        "observations": _observation(np.arange(7)),
        "actions": np.linspace(-1, 1, 7)[:, None],
        "rewards": 10.0 + np.arange(7),
        "terminals": np.arange(7) == 2,
        "timeouts": np.arange(7) == 5,
        "next_observations": _observation(following),
    }
    return {name: x for name, x in (columns | changes).items() if x is not None}


def _load(tmp_path, columns, spec=SPEC, **settings):
    path = tmp_path / "data.npz"
    np.savez(path, **columns)
    return datasets.load(datasets.Config(str(path), **settings), spec)


def _transitions(rows):
    """{step: transition} of the valid ones, by the number that the observation tells."""
    found = jax.tree.map(np.asarray, transitions(rows))
    keep = found.valid > 0
    found = jax.tree.map(lambda x: x[keep], found)
    return {int(o[0]): jax.tree.map(lambda x, i=i: x[i], found) for i, o in enumerate(found[0])}


def _check_marks(rows):
    timestep = rows.timestep
    assert timestep.is_first[0] and timestep.is_last[-1]
    np.testing.assert_array_equal(timestep.is_first[1:], timestep.is_last[:-1])
    assert not (timestep.is_terminal & ~timestep.is_last).any()
    np.testing.assert_array_equal(timestep.reward[timestep.is_first], 0)


# ------------------------------------------------------------------------------------ D4RL, flat


@pytest.mark.parametrize(
    "changes, settings, survive, terminal",
    [
        ({}, {}, [0, 1, 2, 3, 4], [2]),
        ({"next_observations": None}, {}, [0, 1, 3, 4], []),
        ({}, {"timeouts": "keep"}, [0, 1, 2, 3, 4, 5, 6], [2]),
        ({"timeouts": None, "next_observations": None}, {"max_episode_steps": 3}, [0, 1, 3, 4], []),
        ({"timeouts": None}, {"max_episode_steps": 3}, [0, 1, 3, 4], []),
        ({"timeouts": None}, {}, [0, 1, 2, 3, 4, 5], [2]),  # 105 is not 6: an episode ends there
        (
            {"timeouts": None, "next_observations": None},
            {"max_episode_steps": 0},
            [0, 1, 3, 4, 5],
            [],
        ),
        ({}, {"num_rows": 3}, [0, 1], []),
    ],
)
def test_steps_that_survive_as_transitions(tmp_path, changes, settings, survive, terminal):
    rows = _load(tmp_path, _seven(**changes), **settings)
    _check_marks(rows)
    found = _transitions(rows)
    assert list(found) == survive
    assert [step for step, one in found.items() if one.discount == 0] == terminal
    following = {2: 102, 5: 105 if "next_observations" not in changes else 6, 6: 106}
    for step, one in found.items():
        assert one.reward == 10 + step
        assert one.next_observation[0] == following.get(step, step + 1)
        assert one.action[0] == np.float32(np.linspace(-1, 1, 7)[step])


def _conversion(terminals, timeouts, has_next):
    """{step: done} as a loop over a file in D4RL's `qlearning_dataset` keeps them."""
    kept = {}
    for step in range(len(terminals) - 1):
        if timeouts[step] or (terminals[step] and not has_next):
            continue
        kept[step] = bool(terminals[step])
    return kept


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("has_next", [True, False])
def test_random_files_are_read_as_d4rl_converts_them(tmp_path, seed, has_next):
    draw = np.random.default_rng(seed)
    terminals, timeouts = draw.random((2, 40)) < 0.2
    following = _observation(np.where(terminals | timeouts, 100, 1) + np.arange(40))
    columns = {
        "observations": _observation(np.arange(40)),
        "actions": np.zeros((40, 1)),
        "rewards": np.arange(40.0),
        "terminals": terminals,
        "timeouts": timeouts,
    }
    rows = _load(tmp_path, columns | ({"next_observations": following} if has_next else {}))
    _check_marks(rows)
    found = _transitions(rows)
    done = {step: bool(one.discount == 0) for step, one in found.items()}
    assert done == _conversion(terminals, timeouts, has_next)
    for step, one in found.items():
        assert one.next_observation[0] == following[step, 0] and one.reward == step


def test_leaves_are_float32_and_flags_bool(tmp_path):
    rows = _load(tmp_path, _seven())
    floats = (rows.timestep.observation, rows.timestep.reward, rows.action)
    assert {x.dtype for x in floats} == {np.dtype("float32")}
    flags = (rows.timestep.is_first, rows.timestep.is_last, rows.timestep.is_terminal)
    assert {x.dtype for x in flags} == {np.dtype(bool)}
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(rows))
    assert rows.extras == {} and rows.timestep.extras == {}


def test_a_file_in_which_nothing_says_how_episodes_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_episode_steps"):
        _load(tmp_path, _seven(timeouts=None, next_observations=None))


def test_steps_in_no_order_become_episodes_of_two_rows(tmp_path):
    following = _observation(np.arange(7) + 100)
    rows = _load(tmp_path, _seven(timeouts=None, next_observations=following), timeouts="keep")
    assert rows.timestep.is_first.tolist() == [True, False] * 7
    assert [one.next_observation[0] for one in _transitions(rows).values()] == [*range(100, 107)]


def test_extras_arrive_with_the_reward(tmp_path):
    spec = dataclasses.replace(SPEC, extras=("cost",))
    columns = _seven() | {"infos/cost": np.arange(7.0) + 1}
    rows = _load(tmp_path, columns, spec)
    cost, reward = rows.timestep.extras["cost"], rows.timestep.reward
    np.testing.assert_array_equal(cost, np.where(rows.timestep.is_first, 0, reward - 9))
    with pytest.raises(ValueError, match="lacks 'cost'"):
        _load(tmp_path, _seven(), spec)


def test_bounded_actions_are_rescaled_or_checked(tmp_path):
    torque = 2 * np.linspace(-1, 1, 7)[:, None]
    rows = _load(tmp_path, _seven(actions=torque), action_low=(-2.0,), action_high=(2.0,))
    np.testing.assert_allclose(rows.action[:3], np.linspace(-1, 1, 7)[:3, None], atol=1e-6)
    with pytest.raises(ValueError, match=r"data.npz: actions are not in \[-1, 1\].*action_low"):
        _load(tmp_path, _seven(actions=torque))
    with pytest.raises(ValueError, match="outside of action_low"):
        _load(tmp_path, _seven(actions=torque), action_low=(-1.0,), action_high=(1.0,))


def test_discrete_actions_are_int32_in_range(tmp_path):
    spec = dataclasses.replace(SPEC, action=DiscreteSpec(7))
    rows = _load(tmp_path, _seven(actions=np.arange(7)), spec)
    assert rows.action.dtype == np.int32 and rows.action[:3].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="0 … 6.*6"):
        _load(
            tmp_path,
            _seven(actions=np.arange(7)),
            dataclasses.replace(spec, action=DiscreteSpec(6)),
        )
    with pytest.raises(ValueError, match="float64"):
        _load(tmp_path, _seven(actions=np.zeros(7)), spec)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"observations": np.zeros((7, 3))}, r"data.npz: .*\(3,\) in the file and \(2,\)"),
        ({"observations": np.zeros((7, 2), np.uint8)}, r"data.npz: .*uint8.*float32"),
        ({"observations": _observation([0, 1, 2, np.nan, 4, 5, 6])}, "not finite in row 3"),
        ({"actions": np.zeros((7, 2))}, r"data.npz: .*\(2,\) in the file and \(1,\)"),
        ({"rewards": np.zeros(6)}, r"data.npz holds arrays of different lengths: \[6, 7\]"),
        ({"rewards": None}, "data.npz holds no 'rewards'; it has observations"),
        ({"rewards": np.array([None] * 7)}, "data.npz cannot be read"),
        ({"terminals": np.ones(7, bool), "next_observations": None}, "holds no transition"),
    ],
)
def test_what_does_not_fit_is_told_with_the_file(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        _load(tmp_path, _seven(**changes))


def test_what_is_no_data_set_is_told(tmp_path, monkeypatch):
    for name in ("broken.npz", "broken.hdf5"):
        (tmp_path / name).write_text("no data")
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            datasets.load(datasets.Config(str(tmp_path / name)), SPEC)
    with pytest.raises(ValueError, match="is not there"):
        datasets.load(datasets.Config(str(tmp_path / "absent.npz")), SPEC)
    with pytest.raises(ValueError, match="neither a data set nor a run"):
        datasets.load(datasets.Config(str(tmp_path)), SPEC)
    merged = dataclasses.replace(SPEC, seam="merged")
    with pytest.raises(ValueError, match="seam=separate"):
        datasets.load(datasets.Config(str(tmp_path)), merged)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"broken.hdf5 needs h5py: pip install 'mbrl_jax\[data\]'"):
        datasets.load(datasets.Config(str(tmp_path / "broken.hdf5")), SPEC)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"action_low": (-1.0,)}, "action_high 0"),
        ({"action_low": (1.0,), "action_high": (-1.0,)}, "must lie below"),
        ({"path": ""}, "empty"),
    ],
)
def test_settings_that_fit_no_file_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        datasets.Config(**({"path": "x"} | settings)).validate()


# ----------------------------------------------------------------------------------------- Minari


def _minari(path, lengths=(3, 2), terminal=(True, False), one_too_few=0):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for i, (steps, ends) in enumerate(zip(lengths, terminal, strict=True)):
            group = file.create_group(f"episode_{i}")
            now = 100 * i + np.arange(steps + 1 - one_too_few)
            group["observations/sensor"] = _observation(now)
            group["observations/mask"] = np.ones((len(now), 3), np.int8)
            group["actions"] = np.full((steps, 1), 0.5, np.float32)
            group["rewards"] = 10.0 + 100 * i + np.arange(steps)
            group["terminations"] = ends & (np.arange(steps) == steps - 1)
            group["truncations"] = ~ends & (np.arange(steps) == steps - 1)
            group["infos/cost"] = 1000.0 + np.arange(steps + 1)
    return path


def test_minari_episodes_keep_their_last_observation(tmp_path):
    leaves = (("mask", ArraySpec((3,), "uint8")), ("sensor", SPEC.observation))
    spec = EnvSpec(DictSpec(leaves), BoundedSpec(1), extras=("cost",))
    _minari(tmp_path / "data" / "main_data.hdf5")
    rows = datasets.load(datasets.Config(str(tmp_path)), spec)
    _check_marks(rows)
    timestep = rows.timestep
    assert timestep.observation["sensor"][:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102]
    assert timestep.observation["mask"].dtype == np.uint8
    assert timestep.reward.tolist() == [0, 10, 11, 12, 0, 110, 111]
    assert timestep.extras["cost"].tolist() == [0, 1001, 1002, 1003, 0, 1001, 1002]
    assert np.flatnonzero(timestep.is_terminal).tolist() == [3]
    assert datasets.summarise(rows)[:4] == (7, 2, 5, 1)
    short = datasets.load(datasets.Config(str(tmp_path), num_rows=4), spec)
    assert short.timestep.reward.tolist() == [0, 10, 11, 12, 0, 110]
    _check_marks(short)
    datasets.save_npz(rows, tmp_path / "same.npz")
    again = datasets.load(datasets.Config(str(tmp_path / "same.npz")), spec)
    jax.tree.map(np.testing.assert_array_equal, again, rows)
    with np.load(tmp_path / "same.npz") as saved:
        columns = {name: saved[name] for name in saved.files if "next_" not in name}
    cut = _load(tmp_path, columns, spec)
    assert cut.timestep.observation["sensor"][:, 0].tolist() == [0, 1, 2, 100, 101]
    file = _minari(tmp_path / "odd.hdf5", one_too_few=1)
    with pytest.raises(ValueError, match="episode_0 holds 3 rewards and 3 observations"):
        datasets.load(datasets.Config(str(file)), spec)


def test_many_minari_episodes_come_in_the_order_of_their_numbers(tmp_path):
    path = _minari(tmp_path / "some.h5", (2,) * 12, (False,) * 12)
    rows = datasets.load(
        datasets.Config(str(path)), EnvSpec(DictSpec((("sensor", SPEC.observation),)), SPEC.action)
    )
    numbers = rows.timestep.observation["sensor"][rows.timestep.is_first, 0]
    assert numbers.tolist() == [100.0 * i for i in range(12)]


# ---------------------------------------------------------------------------------------- writing


def _lanes(steps=23, lanes=3, seed=0):
    """Rows [T, N] of random episodes, in the convention of the package."""
    draw = np.random.default_rng(seed)
    last = draw.random((steps, lanes)) < 0.3
    last[0] = last[-2] = False
    first = np.concatenate([np.ones((1, lanes), bool), last[:-1]])
    last &= ~first
    first = np.concatenate([np.ones((1, lanes), bool), last[:-1]])
    number = np.arange(steps * lanes, dtype=np.float32).reshape(steps, lanes)
    reward = np.where(first, 0, number + 0.5).astype(np.float32)
    terminal = last & (draw.random((steps, lanes)) < 0.5)
    timestep = Timestep(_observation(number).astype(np.float32), reward, first, last, terminal)
    action = draw.uniform(-1, 1, (steps, lanes, 1)).astype(np.float32)
    return Step(timestep, np.where(last[..., None], 0, action).astype(np.float32))


def test_lanes_follow_each_other_with_marked_seams():
    stored = _lanes()
    cut = jax.tree.map(lambda x: x[1:], stored)  # as of a ring that has lost its oldest row
    rows = datasets.from_lanes(cut)
    _check_marks(rows)
    expected = {}
    for lane in range(3):
        expected |= _transitions(jax.tree.map(lambda x, n=lane: x[:, n], cut))
    found = _transitions(rows)
    assert list(found) == list(expected) and len(found) > 30
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    wrong = stored.timestep._replace(is_first=np.zeros_like(stored.timestep.is_first))
    with pytest.raises(ValueError, match="is_first"):
        datasets.from_lanes(stored._replace(timestep=wrong))


@pytest.mark.parametrize("save, name", [(datasets.save_npz, "a.npz"), (datasets.save_hdf5, "a.h5")])
def test_saved_rows_come_back_with_their_metadata(tmp_path, save, name):
    rows = datasets.from_lanes(_lanes())
    rows = rows._replace(action=np.where(rows.timestep.is_last[:, None], 0, rows.action))
    save(rows, tmp_path / name, env_id="Test-v0", reference_max=7.5)
    again = datasets.load(datasets.Config(str(tmp_path / name)), SPEC)
    assert jax.tree.structure(again) == jax.tree.structure(rows)
    jax.tree.map(np.testing.assert_array_equal, again, rows)
    metadata = datasets.read_metadata(tmp_path / name)
    assert metadata == {"env_id": "Test-v0", "reference_max": 7.5, "true_last": True}
    dropped = datasets.load(datasets.Config(str(tmp_path / name), timeouts="drop"), SPEC)
    lost = datasets.summarise(rows).transitions - datasets.summarise(dropped).transitions
    assert lost == (rows.timestep.is_last & ~rows.timestep.is_terminal).sum()
    other = {"a.npz": "a.h5", "a.h5": "a.npz"}[name]
    with pytest.raises(ValueError, match="ends in .npz"):
        save(rows, tmp_path / other)


def test_parts_are_joined_without_a_transition_between_them(tmp_path):
    one, two = _load(tmp_path, _seven()), datasets.from_lanes(_lanes())
    both = datasets.summarise(datasets.concatenate(one, two))
    assert both.transitions == sum(datasets.summarise(part).transitions for part in (one, two))
    assert both.episodes == sum(datasets.summarise(part).episodes for part in (one, two))
    assert datasets.summarise(one).largest_return == 10 + 11 + 12
    assert datasets.summarise(one).least_return == 13 + 14


# ----------------------------------------------------------------------------------------- scores


def test_scores_are_scaled_and_shifted_and_deviations_only_scaled():
    references = datasets.REFERENCES
    scores = {
        name: float(datasets.normalised_score(1000.0, references[name])) for name in references
    }
    expected = {"hopper": 31.3488904036, "halfcheetah": 10.3114015339, "walker2d": 21.7478227854}
    assert scores == pytest.approx(expected, abs=1e-9)
    deviation = datasets.normalised_deviation(100.0, references["halfcheetah"])
    assert float(deviation) == pytest.approx(0.8055, abs=5e-5)
    np.testing.assert_allclose(datasets.normalised_score([1.0, 3.0], (1.0, 3.0)), [0, 100])
    with pytest.raises(ValueError, match="not above"):
        datasets.normalised_score(1.0, (2.0, 2.0))
