"""The control groups that this process is in, versions 1 and 2, which limit a container.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    is_v2: bool
    group: PurePosixPath  # the control group that is seen at the mount point
    point: PurePosixPath


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's control groups and of all groups around them.

    `controller`: "cpu" or "memory". `root` holds the files as they lie below the root of the file system.
    """
    path_of = _paths(lines_of(root / "proc/self/cgroup"), controller)
    for mount in _mounts(lines_of(root / "proc/self/mountinfo"), controller):
        path = path_of.get(mount.is_v2)
        if path is None:
            continue
        point = root / mount.point.relative_to("/")
        # A container may see its own group at the mount point, under a path that is the host's.
        below = path.relative_to(mount.group) if path.is_relative_to(mount.group) else PurePosixPath()
        for part in (below, *below.parents):
            if ".." not in part.parts:  # outside of what this container sees
                yield point / part


def _paths(lines: list[str], controller: str) -> dict[bool, PurePosixPath]:
    """Of /proc/self/cgroup, `id:controllers:path` -> whether it is v2, and the path of the group."""
    found = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_v2 = number == "0" and not controllers
        if is_v2 or controller in controllers.split(","):
            found[is_v2] = PurePosixPath(path or "/")
    return found


def _mounts(lines: list[str], controller: str) -> Iterator[_Mount]:
    """Of /proc/self/mountinfo: `id parent device root point options … - type source options`; see proc(5)."""
    for line in lines:
        before, _, after = line.partition(" - ")
        place, kind = before.split(" "), after.split(" ")
        is_v2 = kind[0] == "cgroup2"
        if is_v2 or (kind[0] == "cgroup" and controller in kind[-1].split(",")):
            yield _Mount(is_v2, PurePosixPath(_plain(place[3])), PurePosixPath(_plain(place[4])))


def _plain(escaped: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), escaped)


def lines_of(path: Path) -> list[str]:
    """The lines of a file of the kernel; none if there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or no such controller
        return []
