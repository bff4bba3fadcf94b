"""What of an observation is shown in pictures and compared with predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import legal
from mbrl_jax.evaluate import plots, views
from mbrl_jax.types import ArraySpec, DictSpec

FRONT, WRIST = ArraySpec((8, 8, 3), "uint8"), ArraySpec((6, 6), "float32")
PLACE, CLOCK = ArraySpec((2,), "float32"), ArraySpec((), "int32")
MASK = (legal.NAME, ArraySpec((3,), "bool"))


def test_of_a_dictionary_all_images_are_shown():
    spec = DictSpec((MASK, ("front", FRONT), ("place", PLACE), ("wrist", WRIST)))
    observation = {
        legal.NAME: np.ones((5, 3), bool),
        "front": np.full((5, 8, 8, 3), 51, np.uint8),
        "place": np.zeros((5, 2), np.float32),
        "wrist": np.full((5, 6, 6), 7.0, np.float32),
    }
    found = views.views(spec, observation)
    assert list(found) == ["front", "wrist"]
    np.testing.assert_allclose(found["front"], 0.2, rtol=1e-6)
    np.testing.assert_array_equal(found["wrist"], 7.0)


def test_without_images_all_leaves_but_the_mask_are_one_vector():
    spec = DictSpec((MASK, ("clock", CLOCK), ("place", PLACE)))
    observation = {
        legal.NAME: np.ones((5, 3), bool),
        "clock": np.arange(5, dtype=np.int32),
        "place": np.ones((5, 2), np.float32),
    }
    (vector,) = views.views(spec, observation).values()
    np.testing.assert_array_equal(vector[3], [3.0, 1.0, 1.0])
    assert views.dimension_names(spec) == ["clock", "place 0", "place 1"]
    assert isinstance(vector, np.ndarray)
    traced = jax.jit(lambda x: views.views(spec, x))(jax.tree.map(jnp.asarray, observation))
    np.testing.assert_array_equal(traced[views.WHOLE], vector)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((4,), (4,)), ((), (1,)), ((1, 9), (9,)), ((2, 3, 4, 5), (120,)), ((5, 4), (5, 4))],
)
def test_an_array_is_an_image_or_a_vector(tmp_path, shape, shown):
    spec = ArraySpec(shape, "float32")
    (found,) = views.views(spec, np.zeros((6, *shape), np.float32)).values()
    assert found.shape == (6, *shown)
    example = {"real": found, "predicted": found, "first_imagined": 2}
    names = {"dimensions": views.dimension_names(spec)}
    assert plots.plot_open_loop([{**example, **names}], tmp_path / "x.png", "").is_file()


def test_images_of_different_sizes_stand_in_one_picture(tmp_path):
    def example(name, *shape):
        frames = np.zeros((5, *shape))
        return {"real": frames, "predicted": frames, "first_imagined": 1, "name": name}

    several = [example("front", 8, 8, 3), example("wide", 4, 16)]
    assert plots.plot_open_loop(several, tmp_path / "x.png", "").is_file()
