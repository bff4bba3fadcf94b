"""Pictures are written, at a sensible size, without a display and without global state."""

import struct
import sys

import numpy as np
import pytest

from experiments import drama_catch
from mbrl_jax.evaluate import plots
from mbrl_jax.train.report import write_pictures

RNG = np.random.default_rng(0)


def size_of(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def rows(num_seeds=4, first=1, last=9):
    return [
        {
            "step": 10 * k,
            "seed": seed,
            "env_steps": 9 * k + seed,
            "episode/return": None if k == 2 else float(k),
            "episode/count": 2,
        }
        for k in range(first, last)
        for seed in range(num_seeds)
    ]


@pytest.mark.parametrize("data", [rows(), rows(1), rows(1, 1, 2), rows(3, 2, 3), []])
def test_learning_curve_is_drawn(tmp_path, data):
    path = plots.plot_learning_curve(data, tmp_path / "curve.png", "catch")
    width, height = size_of(path)
    assert width > height > 300


def test_a_run_leaves_its_curve_as_vectors_too(tmp_path):
    experiment = drama_catch.get_experiment()
    (path,) = write_pictures(
        tmp_path, experiment, experiment.env.make().spec.observation, None, rows()
    )
    assert path.name == "learning_curve.png"
    assert "<svg" in path.with_suffix(".svg").read_text()


def test_mean_curve_covers_what_all_seeds_have():
    curves = [
        (np.array([0.0, 10, 20]), np.array([0.0, 1, 2])),
        (np.array([5.0, 15]), np.array([1.0, 1])),
    ]
    steps, mean, error = plots._mean_curve(curves)
    np.testing.assert_array_equal(steps, [5, 10, 15])
    np.testing.assert_allclose(mean, [0.75, 1.0, 1.25])
    np.testing.assert_allclose(error, [0.25, 0.0, 0.25])


def example(shape, dtype=float, first=3):
    real = (255 * RNG.random(shape)).astype(dtype) if dtype == np.uint8 else RNG.random(shape)
    return {"real": real, "predicted": np.roll(real, 1, 0), "first_imagined": first}


@pytest.mark.parametrize(
    "examples",
    [
        [example((9, 10, 5))],
        [example((20, 10, 10, c)) for c in (4, 4)],
        [example((6, 8, 8, 1)), example((4, 8, 8, 1))],
        [example((14, 16, 16, 3), np.uint8)],
        [example((12, 4, 4, 10)), example((1, 4, 4, 10), first=1)],
        [example((30, 4)), example((12, 4))],
        [example((12, 40))],
        [example((12,))],
    ],
    ids=["catch", "minatar", "unequal", "pixels", "ten", "vector", "wide", "scalar"],
)
def test_open_loop_is_drawn(tmp_path, examples):
    path = plots.plot_open_loop(examples, tmp_path / "open_loop.png", "a title")
    width, height = size_of(path)
    assert width > 300
    assert height > 200
    assert max(width, height) < 3000


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_open_loop([], tmp_path / "x.png", "")


@pytest.mark.parametrize("first", [0, 1, 7, 29, 30])
def test_columns_hold_the_border_of_what_was_seen(first):
    columns = plots._columns(30, 12, first)
    assert len(columns) <= 12
    assert {0, 29} <= set(columns)
    assert {t for t in (first - 1, first) if 0 <= t < 30} <= set(columns)
    np.testing.assert_array_equal(plots._columns(5, 12, first), np.arange(5))


def test_channels_of_a_grid_are_told_apart():
    frames = np.eye(10)[:, None, None, :]  # one channel on in each frame
    colours = {tuple(plots.to_colour(frame)[0, 0]) for frame in frames}
    assert len(colours) == 10
    assert all(0 <= value <= 1 for colour in colours for value in colour)


def test_global_plotting_state_is_left_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules  # other tests of this process may have it
    plots.plot_learning_curve(rows(), tmp_path / "curve.png", "catch")
    assert ("matplotlib.pyplot" in sys.modules) == before
