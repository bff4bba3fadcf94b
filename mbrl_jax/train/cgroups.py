"""Control groups of this process (Linux, versions 1 and 2), and what they leave of the cores."""

from collections.abc import Iterator
from pathlib import Path

OWN = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def folders(controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every group that limits this process by "memory", "cpu", …"""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, root = 2, ROOT
        elif controller in controllers.split(","):
            version, root = 1, ROOT / controller
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if root not in (folder, *folder.parents):
                break
            yield version, folder


def core_quota() -> float | None:
    """Cores' worth of time that this process may take; None without a limit."""
    found = []
    for version, folder in folders("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = ((folder / name).read_text() for name in names)
            found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such group here, or no limit ("max")
            continue
    return min((cores for cores in found if cores > 0), default=None)  # -1: no limit in version 1
