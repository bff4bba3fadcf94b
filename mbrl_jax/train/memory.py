"""How much memory is free for a run: on accelerators that of each device, on CPU the host's."""

from pathlib import Path
from typing import NamedTuple

import jax

from mbrl_jax.train import runtime

_MEMINFO = Path("/proc/meminfo")


class Memory(NamedTuple):
    """Memory that seeds can be put into."""

    free: int | None  # bytes of one pool; None where nobody tells
    pools: int  # devices, or hosts whose devices share their memory, over all processes
    place: str  # what a pool is, in words

    def seeds_that_fit(self, bytes_of_seed: int) -> int | None:
        """The largest number of seeds; None where it is not known."""
        return None if self.free is None else self.pools * (self.free // bytes_of_seed)

    def seeds_of_pool(self, num_seeds: int) -> int:
        """Seeds that the fullest pool holds."""
        return -(-num_seeds // self.pools)


def find_memory() -> Memory:
    """What is free now."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return Memory(host_memory(), jax.process_count(), "this machine's memory")
    stats = [device.memory_stats() or {} for device in devices]
    free = None
    if all("bytes_limit" in found for found in stats):
        free = min(found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats)
    return Memory(free, jax.device_count(), f"the memory of a {devices[0].device_kind}")


def host_memory() -> int | None:
    """Bytes that this process can still have: of the machine, and within its control groups.

    None where the system does not tell (it is Linux that does).
    """
    found = [free for free in (_available(), *_left_in_cgroups()) if free is not None]
    return max(min(found), 0) if found else None


def _available() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    numbers = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(numbers[0]) * 1024 if numbers else None


# Of each version: limit, usage, and the pages of files that the kernel gives up if need be.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def _left_in_cgroups() -> list[int]:
    """What the limits of the process' control groups leave."""
    left = []
    for version, folder in runtime.cgroups("memory"):
        limit, usage, reclaimable = _FILES[version]
        try:
            used = int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            stat = dict(line.split()[:2] for line in lines)
            left.append(int((folder / limit).read_text()) - used + int(stat.get(reclaimable, 0)))
        except (OSError, ValueError):  # no such group here, or no limit ("max")
            continue
    return left
