"""Eight CPU devices and a compilation cache, set before jax starts; a small Drama to share."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from pathlib import Path

import jax
import pytest

from mbrl_jax import optim
from mbrl_jax.cores import mamba2
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import drama

CACHE = Path("~/.cache/mbrl_jax/tests").expanduser()


def pytest_configure(config):
    del config
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # -1: whatever the size


@pytest.fixture(scope="module")
def quick_compile():
    """For tests of many programs that run once: LLVM's optimiser would take half their time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def tiny_spec():
    """Vectors of three numbers, two actions."""
    return EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2))


@pytest.fixture(scope="session")
def tiny_drama():
    """The smallest Drama that still has every part."""
    return drama.Config(
        core=mamba2.Config(width=8, layers=1, state_size=4, head_size=4, chunk_size=4),
        encoder=encoders.Dense(width=8),
        decoder=decoders.Dense(width=8),
        groups=3,
        classes=4,
        head_width=8,
        num_bins=9,
        reconstruction="squared",
        free_nats=0.0,
        optimiser=optim.Config("adam", 1e-3, warmup=0, eps=1e-8),
    )
