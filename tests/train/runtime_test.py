"""Runtime settings; the module must be cheap and must respect what the user set."""

import os
import platform
import subprocess
import sys

import pytest

from mbrl_jax.train import runtime

SHOW = (
    "import mbrl_jax.train.runtime as r, sys; assert 'jax' not in sys.modules; "
    "print(r.configure_runtime()); import jax; print(jax.config.jax_compilation_cache_dir)"
)


def show(tmp_path, **environment):
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env=env | {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_where_compiled_programs_are_kept(tmp_path):
    default = str(tmp_path / ".cache" / "mbrl_jax" / "xla")
    assert show(tmp_path) == [default, default]
    chosen = str(tmp_path / "xdg" / "mbrl_jax" / "xla")
    assert show(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg")) == [chosen, chosen]
    chosen = str(tmp_path / "mine")
    assert show(tmp_path, JAX_COMPILATION_CACHE_DIR=chosen) == [chosen, chosen]


def test_a_cache_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert show(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")) == ["None", "None"]


DEVICES = (
    "import mbrl_jax.train.runtime as r; r.configure_runtime(num_seeds={}); import jax; "
    "print(len(jax.devices()), jax.config.values['jax_cpu_enable_async_dispatch'])"
)


def count_devices(tmp_path, num_seeds, cores=None, quota=None, **environment):
    env = untouched_environment()
    code = DEVICES.format(num_seeds)
    if cores:
        code = f"import os; os.sched_getaffinity = lambda _: set(range({cores})); " + code
        code = f"import mbrl_jax.train.runtime as c; c.core_quota = lambda: {quota}; " + code
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"XDG_CACHE_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    devices, dispatches_alone = done.stdout.split()
    assert (dispatches_alone == "True") == (num_seeds > 1)
    return int(devices)


def untouched_environment():
    """Without what the user may have set of devices and threads."""
    unset = ("XLA_FLAGS", "PJRT_NPROC", "NPROC", "JAX_NUM_CPU_DEVICES")
    return {k: v for k, v in os.environ.items() if k not in unset}


FAULTS = """
import resource, mbrl_jax.train.runtime as r
r.configure_runtime()
import jax, jax.numpy as jnp
x = jnp.zeros(2**23)
double = jax.jit(lambda x: x * 2)
for _ in range(3):
    double(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    double(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are settings of glibc")
def test_memory_that_xla_frees_is_not_faulted_in_again():
    command = [sys.executable, "-c", FAULTS]
    found = subprocess.run(command, env=untouched_environment(), capture_output=True, check=True)
    # A result has 8,192 pages. Other threads' blocks may push the heap up once or twice.
    assert int(found.stdout) < 4 * 8_192


def test_each_core_gets_seeds_of_its_own(tmp_path):
    assert count_devices(tmp_path, num_seeds=6, cores=4) == 3
    assert count_devices(tmp_path, num_seeds=1, cores=4) == 1
    assert count_devices(tmp_path, num_seeds=6, cores=4, quota=2.5) == 2


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/box/job", {"box/cpu.max": "250000 100000", "box/job/cpu.max": "max 100000"}, 2),
        ("0::/box", {"box/cpu.max": "50000 100000"}, 1),
        ("0::/box", {"box/cpu.max": "max 100000"}, 8),
        (
            "4:cpu,cpuacct:/box",
            {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "4:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
        ("4:cpuset:/box", {}, 8),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, group, files, cores):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(runtime, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(runtime, "_CGROUPS", tmp_path / "sys")
    (tmp_path / "cgroup").write_text(group + "\n")
    for name, text in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(text + "\n")
    assert runtime.num_cores() == cores


def test_the_users_devices_and_threads_stay(tmp_path):
    flag = "--xla_force_host_platform_device_count=5"
    assert count_devices(tmp_path, num_seeds=4, cores=4, XLA_FLAGS=flag) == 5
    assert count_devices(tmp_path, num_seeds=4, cores=4, PJRT_NPROC="2") == 1


def test_versions_name_what_decides_results():
    found = runtime.versions()
    assert found["jax"]
    assert found["python"]
    assert "git" in found
    assert set(runtime.PACKAGES) <= set(found)


USE = """
from mbrl_jax.errors import ConfigError
from mbrl_jax.train import runtime
try:
    runtime.configure_runtime()
    runtime.require_devices()
except ConfigError as error:
    print(error)
except ValueError as error:
    print(runtime.refused_by_jax(error))
"""


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("JAX_NUM_CPU_DEVICES", "eight", "JAX_NUM_CPU_DEVICES=eight is no value for JAX"),
        ("JAX_NUM_CPU_DEVICES", "0", "JAX_NUM_CPU_DEVICES=0 leaves no device"),
        ("JAX_ENABLE_X64", "maybe", "JAX_ENABLE_X64=maybe is no value for JAX"),
        ("JAX_DEFAULT_PRNG_IMPL", "dice", "JAX_DEFAULT_PRNG_IMPL=dice is no value for JAX"),
        ("JAX_PLATFORMS", "abacus", "JAX_PLATFORMS=abacus names a device that cannot be used"),
    ],
)
def test_variables_that_jax_cannot_read_are_a_sentence(name, value, words):
    env = untouched_environment() | {name: value}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(words), done.stderr


def test_other_errors_are_no_variables():
    assert not runtime.refused_by_jax(ValueError("shapes do not fit"))
