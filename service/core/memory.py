"""How much memory this process may use, which in a container is less than the machine has."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.core.control_groups import control_groups, lines_of

LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1


class UsableMemory(NamedTuple):
    """In bytes. Both are 0 where the system does not tell."""

    total: int  # of the machine, or the smallest limit of a control group
    available: int  # of that, what is free or can be freed


def usable_memory(root: Path = Path("/")) -> UsableMemory:
    """The memory of this process now. `root` holds the files as they lie below the root of the system."""
    machine = dict(_machine(root / "proc/meminfo"))
    pairs = [(machine.get("MemTotal", 0), machine.get("MemAvailable", 0))]
    pairs += [pair for folder in control_groups("memory", root) for pair in _limits(folder)]
    return UsableMemory(min(total for total, _ in pairs), min(available for _, available in pairs))


def used_memory(root: Path = Path("/")) -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    return next((number for name, number in _machine(root / "proc/self/status") if name == "VmRSS"), 0)


def _machine(path: Path) -> Iterator[tuple[str, int]]:
    """Of /proc/meminfo and /proc/self/status, `Name:  123 kB` -> bytes."""
    for line in lines_of(path):
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isdecimal():
            yield name, 1024 * int(number)


def _limits(folder: Path) -> Iterator[tuple[int, int]]:
    for limit, usage in LIMITS:
        pair = [*lines_of(folder / limit)[:1], *lines_of(folder / usage)[:1]]  # "max": no limit
        if len(pair) == 2 and all(part.strip().isdecimal() for part in pair):
            total, used = map(int, pair)
            yield total, max(0, total - used)
