"""How many processors this process may use, which in a container is less than the machine has; priorities.

Two things limit it: its affinity (cpuset, taskset), and the CPU quotas of its control groups, v1 and v2
(https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files,
https://docs.kernel.org/scheduler/sched-bwc.html). A thread pool for all processors of the machine is many
times slower there: its threads wait for each other while the kernel holds most of them back.
"""

import math
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from service.core.control_groups import control_groups, lines_of

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
    quotas = (_quota_of(folder) for folder in control_groups("cpu", root))
    return min(quotas, default=math.inf)


def _quota_of(folder: Path) -> float:
    v2 = " ".join(lines_of(folder / "cpu.max")).split()  # "max 100000" or "150000 100000"
    v1 = [*lines_of(folder / "cpu.cfs_quota_us"), *lines_of(folder / "cpu.cfs_period_us")]  # -1: no limit
    for pair in (v2, v1):
        if len(pair) == 2 and all(part.isdecimal() for part in pair) and int(pair[1]) > 0:
            return int(pair[0]) / int(pair[1])
    return math.inf


def give_way() -> None:
    """Give the calling thread the priority of a batch job. Only Linux has priorities of single threads."""
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
