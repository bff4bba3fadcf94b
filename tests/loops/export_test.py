"""Every entry point lowers for accelerators that this machine does not have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax.cores import mamba, mamba2
from mbrl_jax.envs import envpool
from mbrl_jax.experiment.experiment import build
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops import seeds
from mbrl_jax.loops.phases import Phase, cadence, static
from mbrl_jax.train.host_programs import HostPrograms
from tests import small

PLATFORMS = ("cuda", "tpu")
NUMBER = jnp.int32(1)
PACE = cadence(Phase(1))


def _assert_lowers(program, *arguments):
    assert jax.export.export(program, platforms=PLATFORMS)(*arguments).platforms == PLATFORMS


def _chunk(entry):
    chunk = functools.partial(entry.chunk, static(Phase(1)))
    return seeds.over_seeds(chunk, 2, num_shared=4, donate=(0,))


@pytest.mark.parametrize("make", [small.catch, small.catch_with_ppo, small.pendulum])
def test_entry_points_lower_for_cuda_and_tpu(make):
    entry = build(make()).entry
    init = seeds.over_seeds(entry.init, 2)
    keys = seeds.seed_keys(0, 2)
    state = jax.eval_shape(init, keys)
    evaluate = seeds.over_seeds(functools.partial(entry.evaluate, 2, False), 2, num_shared=1)
    _assert_lowers(init, keys)
    _assert_lowers(_chunk(entry), state, PACE, NUMBER, NUMBER, {})
    _assert_lowers(evaluate, state.agent, keys, NUMBER)


def test_programs_around_lanes_of_the_host_lower_for_cuda_and_tpu():
    experiment = dataclasses.replace(small.catch(), env=envpool.Config("CartPole-v1"))
    programs = HostPrograms(experiment, build(experiment), Members(0, 2))
    without_devices = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for name, arguments in programs.arguments(seeds.seed_keys(0, 2)).items():
        _assert_lowers(programs._jitted(name), *jax.tree.map(without_devices, arguments))


@pytest.mark.parametrize(
    "core",
    [
        mamba2.Config(width=8, layers=1, head_size=4, method="chunked"),
        mamba.Config(width=16, layers=1, method="associative"),
    ],
    ids=["mamba2", "mamba"],
)
def test_training_lowers_with_the_parallel_kernels(core):
    experiment = small.catch()
    model = dataclasses.replace(experiment.model, core=core)
    entry = build(dataclasses.replace(experiment, model=model)).entry
    state = jax.eval_shape(seeds.over_seeds(entry.init, 2), seeds.seed_keys(0, 2))
    _assert_lowers(_chunk(entry), state, PACE, NUMBER, NUMBER, {})
