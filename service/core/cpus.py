"""How many processors this process may use, which in a container is less than the machine has; priorities.

Two things limit it: its affinity (cpuset, taskset), and the CPU quotas of its control groups, v1 and v2
(https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files,
https://docs.kernel.org/scheduler/sched-bwc.html). A thread pool for all processors of the machine is many
times slower there: its threads wait for each other while the kernel holds most of them back.
"""

import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

NICENESS = 10


class UsableCpus(NamedTuple):
    """What limits this process. Both are numbers of processors."""

    affinity: int
    quota: float  # infinite if no control group has one

    @property
    def num_cpus(self) -> float:
        """The smaller of both, such as 1.5."""
        return min(self.affinity, self.quota)

    @property
    def num_threads(self) -> int:
        """As many threads as can run all the time, at least 1."""
        return max(1, int(self.num_cpus))

    def __str__(self) -> str:
        by_quota = "no quota" if math.isinf(self.quota) else f"a quota of {self.quota:g}"
        return f"{self.num_cpus:g} usable processors (affinity to {self.affinity}, {by_quota})"


def usable_cpus() -> UsableCpus:
    """The limits of this process now."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return UsableCpus(len(os.sched_getaffinity(0)), cpu_quota())
    return UsableCpus(os.cpu_count() or 1, math.inf)


def cpu_quota(root: Path = Path("/")) -> float:
    """The smallest CPU quota, in processors, of the control groups that this process is in; infinite if none.

    `root` holds the files as they lie below the root of the file system.
    """
    quotas = (_quota_of(folder) for folder in _groups(root))
    return min(quotas, default=math.inf)


class _Mount(NamedTuple):
    is_v2: bool
    group: PurePosixPath  # the control group that is seen at the mount point
    point: PurePosixPath


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of all groups around them."""
    path_of = _paths(_lines(root / "proc/self/cgroup"))
    for mount in _mounts(_lines(root / "proc/self/mountinfo")):
        path = path_of.get(mount.is_v2)
        if path is None:
            continue
        point = root / mount.point.relative_to("/")
        # A container may see its own group at the mount point, under a path that is the host's.
        below = path.relative_to(mount.group) if path.is_relative_to(mount.group) else PurePosixPath()
        for part in (below, *below.parents):
            if ".." not in part.parts:  # outside of what this container sees
                yield point / part


def _paths(lines: list[str]) -> dict[bool, PurePosixPath]:
    """Of /proc/self/cgroup, `id:controllers:path` -> whether it is v2, and the path of the CPU controller."""
    found = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_v2 = number == "0" and not controllers
        if is_v2 or "cpu" in controllers.split(","):
            found[is_v2] = PurePosixPath(path or "/")
    return found


def _mounts(lines: list[str]) -> Iterator[_Mount]:
    """Of /proc/self/mountinfo: `id parent device root point options … - type source options`; see proc(5)."""
    for line in lines:
        before, _, after = line.partition(" - ")
        place, kind = before.split(" "), after.split(" ")
        is_v2 = kind[0] == "cgroup2"
        if is_v2 or (kind[0] == "cgroup" and "cpu" in kind[-1].split(",")):
            yield _Mount(is_v2, PurePosixPath(_plain(place[3])), PurePosixPath(_plain(place[4])))


def _plain(escaped: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), escaped)


def _quota_of(folder: Path) -> float:
    v2 = " ".join(_lines(folder / "cpu.max")).split()  # "max 100000" or "150000 100000"
    v1 = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]  # -1: no limit
    for pair in (v2, v1):
        if len(pair) == 2 and all(part.isdecimal() for part in pair) and int(pair[1]) > 0:
            return int(pair[0]) / int(pair[1])
    return math.inf


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or no such controller
        return []


def give_way() -> None:
    """Give the calling thread the priority of a batch job. Only Linux has priorities of single threads."""
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
