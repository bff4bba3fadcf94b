"""Eight CPU devices and a compilation cache, set before XLA starts; a small Drama to share."""

import gc
import json
import os
import resource
from pathlib import Path

import jax
import pytest
from jax._src import compiler

from mbrl_jax import optim
from mbrl_jax.cores import mamba2
from mbrl_jax.experiment import config
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.train import compiled as module_of_compiled
from mbrl_jax.train import runtime, trained
from mbrl_jax.train.compiled import Compiled
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import drama
from tests.costly import COSTLY, stale

TESTS = Path(__file__).parent
CACHE = Path("~/.cache/mbrl_jax/tests").expanduser()


def pytest_configure(config):
    del config
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # -1: whatever the size


# Linux gives a process 65,530 memory maps, a compiled program takes several, and XLA dies of a
# segmentation fault where none is left.
MOST_MAPS = 40_000
most_bytes = [6 * 2**30]  # of memory: two workers had 18 GB at the end of the suite


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(session, config, items):
    """Mark the costly cases; of a whole suite keep those that are there no more."""
    for item in items:
        if any(f"/{name}" in item.nodeid for name in COSTLY):
            item.add_marker(pytest.mark.slow)
    # What `-m` and `-k` take away is still here.
    chosen = {Path(arg).resolve() for arg in config.args}
    left_out = any(map(config.getoption, ("ignore", "ignore_glob", "deselect")))
    if chosen & {TESTS, TESTS.parent} and not left_out and not session.testsfailed:
        config.stash[STALE] = stale(COSTLY, (item.nodeid for item in items))


STALE = pytest.StashKey[list[str]]()  # costly cases that no test has; of a whole suite alone


@pytest.fixture(scope="module", autouse=True)
def programs_forgotten():
    """Behind a module, compiled programs are given up where they take much of the process."""
    yield
    gc.collect()  # what is frozen below is never looked through again, and so never given up
    maps = Path("/proc/self/maps")
    if maps.exists():
        many = maps.read_bytes().count(b"\n") > MOST_MAPS
        if many or _bytes() > most_bytes[0]:
            gc.unfreeze()
            jax.clear_caches()
            gc.collect()
            most_bytes[0] = max(most_bytes[0], int(1.3 * _bytes()))  # not behind every module
    gc.freeze()  # what is cached by now need not be looked through time after time


def _bytes() -> int:
    """Memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(scope="module")
def quick_compile():
    """For tests of many programs that run once; they compile as those of `--debug` do.

    Kernels are tested without it, as users run them. The emitter is chosen for each program here,
    because the flags that `runtime` sets hold for a whole process: jax has no public way to that.
    """
    make = compiler.get_compile_options
    name, value = runtime.QUICK_FLAGS.removeprefix("--").split("=")

    def options(*args, **kwargs):
        found = make(*args, **kwargs)
        found.env_option_overrides = [*found.env_option_overrides, (name, value == "true")]
        return found

    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


class _Kept(Compiled):
    """Compiled programs that the next run of the same system finds."""

    def begin(self, name, *args):
        """Once for each name."""
        if name not in self._programs:
            super().begin(name, *args)

    def close(self):
        """Not yet."""


@pytest.fixture(scope="module")
def programs_kept(quick_compile):
    """Runs of one configuration share, within a module, what they trace and compile."""
    built, compiled = {}, {}
    per_run = {"phases", "stop_after", "log_every", "checkpoint_every"}

    def build(experiment):
        saved = config.to_json(experiment)
        key = json.dumps({k: v for k, v in saved.items() if k not in per_run})
        if key not in built:
            built[key] = make(experiment)
        return built[key]

    def keep(jitted, first):
        owner = jitted.__self__
        system = owner.system  # kept beside them, so that its id stays its own
        key = type(owner), id(system), repr(owner.members)
        kept = compiled.setdefault(key, (_Kept(jitted, first), system))[0]
        kept.first = first
        return kept

    make = trained.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "build", build)
        patch.setattr(module_of_compiled, "Compiled", keep)
        yield
    for one, _ in compiled.values():
        Compiled.close(one)


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
