"""Observations of named leaves, and what an environment says beside the reward."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import drama_catch
from mbrl_jax.envs.doctor import check
from mbrl_jax.envs.spec import example_observation, flat_observation, from_flat, make_environment
from mbrl_jax.evaluate import quality
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build, with_settings
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import trained
from mbrl_jax.train.run import run
from mbrl_jax.types import ArraySpec, BoundedSpec, DictSpec, DiscreteSpec, Environment
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compile")

LENGTH = 5


@dataclasses.dataclass(frozen=True)
class Cart:
    """A cart that is pushed for five steps; each push costs its size."""

    name: str = "cart"

    def make(self) -> Environment:
        return make(self)


def make(config: Cart = Cart()) -> Environment:
    del config

    def see(place, t):
        return {"place": place[None], "clock": jnp.stack([t, LENGTH - t]).astype(jnp.float32)}

    def reset(key):
        place = jax.random.uniform(key)
        return (place, jnp.int32(0)), see(place, jnp.int32(0))

    def step(key, state, action):
        place, t = state[0] + action[0], state[1] + 1
        extras = {"cost": jnp.abs(action[0]), "right": action[0] > 0}
        return (place, t), see(place, t), -jnp.abs(place), False, t == LENGTH, extras

    return make_environment(BoundedSpec(1), reset, step, extras=("cost", "right"))


def test_the_spec_lists_the_leaves_in_the_order_of_their_names():
    spec = make().spec
    leaves = (("clock", ArraySpec((2,), "float32")), ("place", ArraySpec((1,), "float32")))
    assert spec.observation == DictSpec(leaves) and spec.extras == ("cost", "right")
    observation = {"place": jnp.ones((4, 1)), "clock": jnp.zeros((4, 2))}
    flat = flat_observation(spec.observation, observation)
    np.testing.assert_array_equal(flat, np.tile([0.0, 0.0, 1.0], (4, 1)))
    back = from_flat(spec.observation, jnp.arange(3.0))
    assert jax.tree.structure(back) == jax.tree.structure(example_observation(spec.observation))
    np.testing.assert_array_equal(back["place"], [2.0])


def test_the_doctor_finds_nothing_wrong():
    assert not [f.sentence for f in check(make()) if f.severity == "error"]


def test_other_structures_are_refused_in_a_sentence():
    def nested(key):
        return (), {"camera": {"left": jnp.zeros(2)}}

    with pytest.raises(ValueError, match="'camera' is no array"):
        make_environment(BoundedSpec(1), nested, None)
    with pytest.raises(ValueError, match="not tuple"):
        make_environment(BoundedSpec(1), lambda key: ((), (jnp.zeros(2),)), None)


def test_a_model_of_one_array_says_what_to_do_instead():
    base = drama_catch.get_experiment()
    with pytest.raises(ValueError, match="a dictionary of clock, place: use encoder=auto"):
        build(dataclasses.replace(base, env=Cart()))


def test_an_ensemble_learns_from_all_leaves_and_extras_are_summed(tmp_path):
    experiment = dataclasses.replace(small.pendulum(), env=Cart(), eval_max_steps=20)
    run(experiment, tmp_path, num_seeds=2)
    rows = [row for row in read_metrics(tmp_path) if row.get("episode/cost") is not None]
    assert rows and all(0 < row["episode/cost"] <= LENGTH for row in rows)
    assert all(0 <= row["episode/right"] <= LENGTH for row in rows)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert sorted(found["extras"]) == ["cost", "right"] and found["finished"] == [2, 2]
    assert (tmp_path / "open_loop.png").is_file()  # of vectors: curves
    measured = quality.Config(lanes=2, rows=12, context=1, horizon=2, starts=4)
    (first, _) = trained.measure_quality(tmp_path, measured=measured)["seeds"]
    assert first["reconstruction"] == pytest.approx(0.0, abs=1e-9)
    assert all(error >= 0 for error in first["observation"])
    trained.animate_open_loop(tmp_path, tmp_path / "x.gif", told=trained.Imagined(1, rows=8))
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == LENGTH + 1
    with pytest.raises(config.ConfigError, match="a dictionary without images, .* no pictures"):
        trained.film_run(tmp_path, tmp_path / "play.gif")


@dataclasses.dataclass(frozen=True)
class Cameras:
    """A dot that moves to the right, seen by two cameras of different kinds, and a number."""

    name: str = "cameras"

    def make(self) -> Environment:
        def see(place):
            dot = jnp.zeros((5, 5)).at[2, place % 5].set(1.0)
            wide = jnp.repeat((255 * dot).astype(jnp.uint8)[..., None], 3, axis=-1)
            return {"near": dot, "wide": wide, "speed": jnp.ones(1)}

        def reset(key):
            place = jax.random.randint(key, (), 0, 3)
            return (place, jnp.int32(0)), see(place)

        def step(key, state, action):
            place, t = state[0] + action, state[1] + 1
            return (place, t), see(place), action.astype(jnp.float32), False, t == LENGTH, {}

        return make_environment(DiscreteSpec(2), reset, step)


@pytest.mark.slow
def test_all_cameras_are_drawn_measured_and_filmed(tmp_path):
    base = with_settings(
        small.catch(),
        ["model.encoder=auto", "model.decoder=auto", "model.reconstruction=auto"],
    )
    experiment = dataclasses.replace(base, env=Cameras(), eval_max_steps=20)
    path = tmp_path / "run"
    run(experiment, path)
    with Image.open(path / "open_loop.png") as strips:
        assert strips.height > 500  # three rows of each camera
    trained.animate_open_loop(path, tmp_path / "x.gif", told=trained.Imagined(1, rows=5))
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 5 and gif.height > 400  # one camera below the other
    (film,) = trained.film_run(path, tmp_path / "play.gif")
    assert film.frames["wide"].shape == (LENGTH + 1, 5, 5, 3)
    with Image.open(tmp_path / "play.gif") as gif:
        assert gif.size == (190 + 4 + 190, 190)  # beside each other
    measured = quality.Config(lanes=2, rows=12, context=1, horizon=2, starts=4)
    (found,) = trained.measure_quality(path, measured=measured)["seeds"]
    assert 0 < found["reconstruction"] < 1  # bytes are compared as numbers in [0, 1]
