"""A service of a benchmark's own, and what its process uses."""

import os
import re
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from model_export.local_service import LocalService, glyphrec_command, local_service
from service.core.bundle import Bundle


def service_of(bundle: Bundle, folder: Path) -> AbstractContextManager[LocalService]:
    """The bundle's service on an embedded Redis in `folder`, which also takes its log."""
    return local_service(bundle.path, data_dir=folder / "redis", log=folder / "log")


def start_import(path: Path, *options: object) -> subprocess.Popen[bytes]:
    command = glyphrec_command("import", path, *options)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_import(path: Path, *options: object) -> None:
    if status := start_import(path, *options).wait():
        sys.exit(f"`glyphrec import {path.name} {' '.join(map(str, options))}` ended with status {status}")


def resident_mb(pid: int) -> float:
    return _status_kb(pid, "VmRSS") / 1_024


def peak_mb(pid: int) -> float:
    """The most it has had so far. getrusage would give that of the parent where the parent was larger."""
    return _status_kb(pid, "VmHWM") / 1_024


def cpu_seconds(pid: int) -> float:
    """That the process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that the process has started, and that have not ended."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until_idle(pid: int, window_s: float = 0.5, share: float = 0.1) -> None:
    """Wait until the process uses less than this share of a processor, for example after its start."""
    spent_s = share * window_s
    while spent_s >= share * window_s:
        spent_s = -cpu_seconds(pid)
        time.sleep(window_s)
        spent_s += cpu_seconds(pid)


def _status_kb(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise ValueError(f"/proc/{pid}/status has no {name}")
    return int(found[1])
