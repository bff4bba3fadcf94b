"""Animated GIFs hold what they were given, at a pace that can be followed."""

import numpy as np
import pytest
from PIL import Image

from mbrl_jax.evaluate import animations, plots


def pictures_of(path):
    """(RGB pictures [F, H, W, 3], milliseconds of each)."""
    with Image.open(path) as gif:
        found, lasting = [], []
        for t in range(gif.n_frames):
            gif.seek(t)
            found.append(np.asarray(gif.convert("RGB")))
            lasting.append(gif.info["duration"])
    return np.stack(found), lasting


def test_an_animation_with_many_colours_has_one_palette_that_comes_near(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = np.zeros((6, 64, 64, 3), np.uint8)
    frames[..., 0] = frames[..., 1] = ramp  # 384 colours
    frames[..., 2] = (40 * np.arange(6))[:, None, None]
    path = animations.write_animation(frames, tmp_path / "play.gif")
    with Image.open(path) as gif:
        assert gif.n_frames == 6 and gif.size == (256, 256)
        for i, frame in enumerate(frames):
            gif.seek(i)
            seen = np.asarray(gif.convert("RGB"))[::4, ::4].astype(int)
            assert np.abs(seen - frame).mean() < 3


def test_channels_of_a_grid_become_colours(tmp_path):
    frames = np.zeros((3, 10, 10, 4), np.float32)
    for t in range(3):
        frames[t, 2, t, t] = 1.0
    with Image.open(animations.write_animation(frames, tmp_path / "play.gif")) as gif:
        assert gif.n_frames == 3 and gif.size == (250, 250)
        for t in range(3):
            gif.seek(t)
            seen = np.asarray(gif.convert("RGB"))[::25, ::25]
            np.testing.assert_array_equal(seen[2, t], np.rint(255 * plots._CHANNELS[t]))
            assert (seen != seen[0, 0]).any(-1).sum() == 1


def test_frames_that_are_alike_last_longer(tmp_path):
    frames = np.zeros((5, 8, 8), np.uint8)
    frames[4] = 255
    with Image.open(animations.write_animation(frames, tmp_path / "play.gif")) as gif:
        lasting = []
        for t in range(gif.n_frames):
            gif.seek(t)
            lasting.append(gif.info["duration"])
    assert lasting == [4 * animations.GIF_MILLISECONDS, animations.GIF_MILLISECONDS]


def test_two_cameras_stand_beside_each_other(tmp_path):
    left = np.zeros((2, 8, 8, 3), np.uint8)
    right = np.full((2, 4, 4, 1), 255, np.uint8)
    left[1, ..., 0] = 200
    seen, _ = pictures_of(animations.write_animation([left, right], tmp_path / "play.gif"))
    assert seen.shape == (2, 192, 192 + 4 + 192, 3)
    assert (seen[1, :, :192] == (200, 0, 0)).all() and (seen[:, :, 192:] == 255).all()


def episode(shape, length=4, first=2, **more):
    """A real episode, and an imagined one that has forgotten all from `first` on."""
    real = np.zeros((length, *shape), np.float32)
    real[..., 0] = 1.0
    predicted = np.where(np.arange(length).reshape(-1, *[1] * len(shape)) < first, real, 0.0)
    return {"real": real, "predicted": predicted, "first_imagined": first, **more}


ORANGE = (0xC2, 0x41, 0x0C)


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)], ids=["plain", "gray", "rgb", "grid"])
def test_real_stands_beside_imagined_and_orange_says_where_it_begins(tmp_path, channels):
    one = episode((6, 6, *channels))
    told = ([[one], [one]], tmp_path / "x.gif", "a title", 100)
    seen, lasting = pictures_of(animations.write_imagined(*told))
    # Four rows of two episodes: the last row seen and the last of all stand still for a while.
    assert lasting == [100, 400, 100, 400] * 2
    orange = (np.abs(seen.astype(int) - ORANGE).max(-1) < 8).sum((1, 2))
    assert (orange[:2] == 0).all() and (orange[2:4] > 500).all()
    np.testing.assert_array_equal(orange[:4], orange[4:])
    left, right = (seen[:, 54:246, x : x + 192] for x in (14, 220))
    same = (left == right).mean((1, 2, 3))
    assert (same[:2] == 1).all() and (same[2:4] < 0.95).all()


def test_cameras_of_real_and_imagined_stand_below_each_other(tmp_path):
    views = [episode((6, 6, 3), leaf="front"), episode((4, 4), leaf="wrist")]
    alone, _ = pictures_of(animations.write_imagined([views[:1]], tmp_path / "a.gif", "t"))
    both, _ = pictures_of(animations.write_imagined([views], tmp_path / "b.gif", "t"))
    assert both.shape[1] > alone.shape[1] + 180 and both.shape[2] == alone.shape[2]


def test_vectors_are_curves_that_grow(tmp_path):
    one = episode((6,), length=5, dimensions=["angle", *"bcdef"])
    seen, _ = pictures_of(animations.write_imagined([[one]], tmp_path / "x.gif", "a $ title"))
    ink = (np.abs(seen.astype(int) - ORANGE).max(-1) < 40).sum((1, 2))
    assert len(seen) == 5 and (np.diff(ink[2:]) > 0).all()


def test_a_title_that_a_terminal_would_obey_is_drawn_as_text(tmp_path):
    one = episode((6, 6))
    wide, _ = pictures_of(
        animations.write_imagined([[one]], tmp_path / "x.gif", "line\nbreak " + "x" * 80)
    )
    assert wide.shape[2] > 600  # as wide as its title


def test_no_episodes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        animations.write_imagined([], tmp_path / "x.gif", "")
