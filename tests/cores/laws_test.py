"""Laws L1 to L3 of every core."""

import pytest

from mbrl_jax import testing
from mbrl_jax.cores import gru, mamba, mamba2

pytestmark = pytest.mark.usefixtures("quick_compile")

CORES = {
    "mamba2": mamba2.Config(width=8, layers=1, state_size=3, head_size=4, chunk_size=4),
    "mamba": mamba.Config(width=8, layers=1, state_size=3, chunk_size=4),
    "gru": gru.Config(width=8, layers=2),
}


@pytest.mark.parametrize("name", CORES)
def test_core_keeps_the_laws(name):
    testing.check_core(CORES[name])
