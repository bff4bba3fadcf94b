"""An environment of two cameras, a vector and a mask: which action is right is shown by all three.

Of four actions the left camera shows the upper bit of the right one and the right camera the lower
bit, by the side of the picture that is bright; the vector, in thousands, says whether all counts
backwards. Every row forbids one of the three wrong actions. A right action is rewarded with 1, and
what was forbidden counts as "illegal".
"""

import dataclasses

import jax
import jax.numpy as jnp

from experiments import drama_catch, dreamerv3_catch
from mbrl_jax.cores import gru
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, build
from mbrl_jax.loops import fused
from mbrl_jax.loops.phases import Exploration, Phase
from mbrl_jax.loops.steps import Parts
from mbrl_jax.types import DiscreteSpec, Environment

NUM_ACTIONS, SIDE, LENGTH = 4, 5, 8
AUTO = ("model.encoder=auto", "model.decoder=auto", "model.reconstruction=auto")
SMALL = tuple(
    f"model.{setting}"
    for setting in (
        *("encoder.grid.depth=4", "encoder.grid.width=32", "encoder.dense.width=32"),
        *("decoder.grid.depth=4", "decoder.dense.width=32"),
    )
)


@dataclasses.dataclass(frozen=True)
class Config:
    """`stuck` is the row of an episode that allows nothing; -1: none."""

    stuck: int = -1
    name: str = "signals"

    def make(self) -> Environment:
        """Build it."""
        return make(self)


def make(config: Config = Config()) -> Environment:
    """Episodes of eight rows, each of which shows something new."""

    def draw(key, t):
        bits_key, mask_key = jax.random.split(key)
        upper, lower, backwards = jax.random.bernoulli(bits_key, shape=(3,)).astype(jnp.int32)
        right = 2 * upper + lower
        right = jnp.where(backwards == 1, NUM_ACTIONS - 1 - right, right)
        wrong = (right + jax.random.randint(mask_key, (), 1, NUM_ACTIONS)) % NUM_ACTIONS
        mask = (jnp.arange(NUM_ACTIONS) != wrong) & (t != config.stuck)
        observation = {
            "left": _camera(upper),
            "right": _camera(lower),
            "order": jnp.array([1.0, -2.0]) * jnp.where(backwards == 1, 1e3, -1e3),
            "action_mask": mask,
        }
        return (right, mask, t), observation

    def step(key, state, action):
        right, mask, t = state
        state, observation = draw(key, t + 1)
        extras = {"illegal": ~mask[action]}
        return state, observation, action == right, False, t + 1 == LENGTH, extras

    return make_environment(
        DiscreteSpec(NUM_ACTIONS), lambda key: draw(key, 0), step, extras=("illegal",)
    )


def _camera(bit):
    """[5, 5, 1] bytes: bright on the left for 0, on the right for 1."""
    bright = (jnp.arange(SIDE) > SIDE // 2) == (bit == 1)
    return jnp.broadcast_to(255 * bright[None, :, None], (SIDE, SIDE, 1)).astype(jnp.uint8)


def drama(env: Config = Config()) -> Experiment:
    """Drama with a GRU."""
    base = drama_catch.get_experiment()
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, core=gru.Config(32)))
    return _on_signals(base, env)


def dreamer(env: Config = Config()) -> Experiment:
    """DreamerV3."""
    return _on_signals(dreamerv3_catch.get_experiment(), env)


def _on_signals(base: Experiment, env: Config) -> Experiment:
    phases = (Phase(300, learn=False, random_share=1.0), Phase(700, random_share=0.5), Phase(500))
    base = dataclasses.replace(base, env=env, name="signals", phases=phases, debug=())
    settings = [*AUTO, *SMALL, "behaviour.horizon=3", "num_envs=4", "eval_max_steps=20"]
    return config.override(base, settings)


def assert_legal(experiment: Experiment, episodes: int) -> None:
    """In 40 rows of four lanes nothing forbidden is done by chance, by the policy or greedily.

    At least so many episodes end in them; the environment counts "illegal".
    """
    system = build(experiment)
    parts = Parts(system.env, system.agent, system.replay, 4)
    pace = Exploration(jnp.float32(0.5), jnp.uint32(3))

    @jax.jit
    def play(key):
        def row(state, t):
            state, metrics = fused.collect(parts, state, pace, t)
            return state, metrics["episode/illegal"]

        state, illegal = jax.lax.scan(row, system.entry.init(key), jnp.arange(40, dtype=jnp.uint32))
        return illegal, system.entry.evaluate(8, False, state.agent, key, 10)

    (illegal, ended), greedy = play(jax.random.key(0))
    assert ended.sum() >= episodes and not illegal.any()
    assert greedy.finished.all() and not greedy.extras["illegal"].any()
