"""The published STORM: its switches, its sizes counted by hand, how often it learns.

Golden numbers: shared/specs/world_models.md sections 2.1 to 2.5. The counts are those of the
authors' own modules with 6 actions, too.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import storm_atari100k, storm_catch
from mbrl_jax.experiment import config, switches
from mbrl_jax.replay import samplers
from mbrl_jax.train.training import chunk_bounds
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

PUBLISHED = storm_atari100k.get_experiment()
SPEC = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6), "merged")


def test_the_experiment_is_as_published_in_every_switch():
    found = switches.switches(PUBLISHED)
    assert len(found) == 17
    for switch in found:
        assert switch.value == switch.published, switch.path
        config.override(PUBLISHED, [f"{switch.path}={switch.better}"])  # the other side is legal
    better = {switch.path for switch in found if switch.published != switch.better}
    assert better == {
        *("env.protocol.seam", "model.core.dropout", "model.boundaries", "model.last_row"),
        *("behaviour.mixed_value", "behaviour.ends", "behaviour.weigh_reached"),
        *("agent.starts", "agent.acting.latent", "agent.acting.rows", "agent.acting.boundaries"),
    }


def test_the_small_one_has_the_same_switches_but_for_the_games_seam():
    values = {s.path: s.value for s in switches.switches(PUBLISHED)}
    small = {s.path: s.value for s in switches.switches(storm_catch.get_experiment())}
    assert small == {path: values[path] for path in values if path != "env.protocol.seam"}


def test_updates_begin_at_step_1024_and_number_100976():
    config.validate(PUBLISHED)
    learning = [(a, b) for phase, a, b in chunk_bounds(PUBLISHED, 0) if phase.learn]
    assert learning[0][0] == 1_024 and learning[-1][1] == PUBLISHED.steps == 102_000
    assert sum(b - a for a, b in learning) == 100_976
    assert sum(p.iterations for p in PUBLISHED.phases if p.random_share == 1.0) == 1_026


def test_windows_and_contexts_have_the_published_sizes():
    ring, agent = PUBLISHED.replay, PUBLISHED.agent
    assert (ring.batch_size, ring.length, PUBLISHED.model.last_row) == (16, 64, "arrival")
    assert agent.streams() == {"imagine": (1_024, 8)} and ring.sampler == samplers.Uniform()
    assert PUBLISHED.behaviour.horizon == agent.acting.rows == 16
    assert (PUBLISHED.model.dynamics_scale, PUBLISHED.model.representation_scale) == (0.5, 0.1)


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_parameters_by_part():
    params = jax.eval_shape(PUBLISHED.model.make(SPEC).init, jax.random.key(0)).params
    trunk = 2 * (512 * 512 + 2 * 512)
    block = 4 * 512 * 512 + 2 * 512 + 2 * 512 * 1024 + 1024 + 512 + 2 * 512
    stem = (1024 + 6) * 512 + 2 * 512 + 512 * 512 + 2 * 512
    assert {name: _size(tree) for name, tree in params.items()} == {
        "encoder": 690_624,
        "posterior": 4096 * 1024 + 1024,
        "core": stem + 64 * 512 + 2 * 512 + 2 * block,
        "prior": 512 * 1024 + 1024,
        "reward": trunk + 512 * 255 + 255,
        "termination": trunk + 512 + 1,
        "decoder": 4_884_931,
    }
    assert _size(params) == 16_507_011
    for head in ("reward", "termination"):  # RMSNorm behind a bias would count as many
        assert [set(params[head][f"Dense_{i}"]) for i in (0, 1)] == [{"kernel"}] * 2
        assert {"LayerNorm_0", "LayerNorm_1"} < set(params[head])


def test_published_parameters_of_the_learner_begin_as_torchs():
    behaviour = PUBLISHED.behaviour.make(SPEC)
    state = jax.jit(behaviour.init)(jax.random.key(0), jnp.zeros(1_536))
    assert _size(state.params["actor"]) == 1_053_702
    assert _size(state.params["critic"]) == 1_181_439
    for net in state.params.values():
        for i, fan in enumerate((1_536, 512, 512)):
            assert ("bias" in net[f"Dense_{i}"]) == (i == 2)
            bound = np.abs(net[f"Dense_{i}"]["kernel"]).max()
            np.testing.assert_allclose(bound, 1 / math.sqrt(fan), rtol=0.01)
    begun = dataclasses.replace(PUBLISHED.behaviour, output_gain=0.0).make(SPEC)
    actor = jax.jit(begun.init)(jax.random.key(0), jnp.zeros(1_536)).params["actor"]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(actor["Dense_2"]))
