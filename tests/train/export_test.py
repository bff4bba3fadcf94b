"""Every entry point lowers for accelerators that this machine does not have."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax.train import seeds
from mbrl_jax.train.experiment import build
from tests import small

PLATFORMS = ("cuda", "tpu")


@pytest.mark.parametrize("make", [small.catch, small.pendulum])
def test_entry_points_lower_for_cuda_and_tpu(make):
    entry = build(make()).entry
    init = seeds.over_seeds(entry.init, 2)
    keys = seeds.seed_keys(0, 2)
    state = jax.eval_shape(init, keys)
    chunk = seeds.over_seeds(functools.partial(entry.chunk, True), 2, num_shared=3, donate=True)
    evaluate = seeds.over_seeds(functools.partial(entry.evaluate, 2, False), 2, num_shared=1)
    number = jnp.int32(1)
    for program, arguments in (
        (init, (keys,)),
        (chunk, (state, number, number, number)),
        (evaluate, (state.agent, keys, number)),
    ):
        exported = jax.export.export(program, platforms=PLATFORMS)(*arguments)
        assert exported.platforms == PLATFORMS
