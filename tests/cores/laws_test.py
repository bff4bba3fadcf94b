"""Laws L1 to L3 of every core; prefilling a part and stepping on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.cores import (
    block_gru,
    dplr,
    gru,
    mamba,
    mamba2,
    mamba3,
    memoryless,
    s4,
    s5,
    storm,
    transformer,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

CORES = {
    "mamba2": mamba2.Config(width=8, layers=1, state_size=3, head_size=4, chunk_size=4),
    "mamba3": mamba3.Config(width=8, layers=1, state_size=4, head_size=4, chunk_size=4),
    "mamba": mamba.Config(width=8, layers=1, state_size=3, chunk_size=4),
    "gru": gru.Config(width=8, layers=2),
    "block_gru": block_gru.Config(width=8, layers=1, hidden=4, blocks=2),
    "memoryless": memoryless.Config(width=8),
    "s4": s4.Config(width=8, layers=1),
    "s5": s5.Config(width=8, layers=1),
    "dplr": dplr.Config(width=8, layers=2, state_size=6, chunk_size=4),
    "rotary": transformer.Config(width=8, layers=1, heads=2, window=3, block_size=2),
    "relative": transformer.Config(8, layers=1, heads=2, window=16, positions="relative"),
    "storm": storm.Config(width=8, layers=2, heads=2, window=4, block_size=3),
    "storm_long": storm.Config(width=8, layers=1, heads=2, window=16),
}


@pytest.mark.parametrize("name", CORES)
def test_core_keeps_the_laws(name):
    testing.check_core(CORES[name])


@pytest.mark.parametrize("prefix", [1, 4, 6])
def test_prefill_and_steps_equal_the_parallel_pass(prefix):
    core = CORES["mamba2"].make(5)
    params = jax.jit(core.init)(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (9, 5))
    never = jnp.zeros(9, bool)

    @jax.jit
    def both_ways():
        carry, head, _ = core.unroll(params, None, xs[:prefix], never[:prefix])

        def body(carry, x):
            return core.step(params, carry, x, None)

        _, tail = jax.lax.scan(body, carry, xs[prefix:])
        return jnp.concatenate([head, tail]), core.unroll(params, None, xs, never)[1]

    stepped, unrolled = both_ways()
    np.testing.assert_allclose(stepped, unrolled, atol=1e-5)


def test_a_memoryless_core_reads_its_row_alone():
    core = CORES["memoryless"].make(5)
    params = jax.jit(core.init)(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (9, 5))
    never = jnp.zeros(9, bool)
    unroll = jax.jit(lambda xs: core.unroll(params, None, xs, never)[1])
    outputs, others = unroll(xs), unroll(xs.at[:4].add(1.0))
    np.testing.assert_array_equal(outputs[4:], others[4:])
    assert (outputs[:4] != others[:4]).any(axis=-1).all()
    np.testing.assert_allclose(outputs[::-1], unroll(xs[::-1]), atol=1e-6)
