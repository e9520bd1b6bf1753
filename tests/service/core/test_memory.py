"""The memory of a container, from files as the kernel writes them."""

import os

from service.core.memory import usable_memory, used_memory
from tests.service.core.test_cpus import V1, machine, v2

MEMINFO = (
    "MemTotal:       16000000 kB\nMemFree:  1000 kB\nMemAvailable:    9000000 kB\nHugePages_Total:       0"
)
KB = 1024


def with_meminfo(root):
    (root / "proc/meminfo").write_text(MEMINFO)
    return root


def test_without_a_limit_it_is_the_memory_of_the_machine(tmp_path):
    root = with_meminfo(v2(tmp_path, **{"/memory.max": "max", "/memory.current": "5000"}))
    assert usable_memory(root) == (16_000_000 * KB, 9_000_000 * KB)


def test_the_smallest_limit_of_a_group_or_one_around_it_counts(tmp_path):
    files = {"/pod/memory.max": "3000000000", "/pod/memory.current": "1000000000"}
    files |= {"/pod/mine/memory.max": "2000000000", "/pod/mine/memory.current": "400000000"}
    root = with_meminfo(v2(tmp_path, "/pod/mine", **files))
    assert usable_memory(root) == (2_000_000_000, 1_600_000_000)


def test_v1_names_its_files_in_another_way(tmp_path):
    mounts = V1.format(group="/docker/abc", point="/sys/fs/cgroup/memory").replace("cpu,cpuacct", "memory")
    root = machine(
        tmp_path,
        "4:memory:/docker/abc",
        mounts,
        **{
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1200000000",
        },
    )
    assert usable_memory(with_meminfo(root)) == (1_000_000_000, 0)


def test_a_system_that_does_not_tell_has_none(tmp_path):
    assert usable_memory(tmp_path) == (0, 0)
    assert used_memory(tmp_path) == 0


def test_this_process_uses_less_than_the_machine_has():
    assert 1_000_000 < used_memory() < usable_memory().total
    assert usable_memory().total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
