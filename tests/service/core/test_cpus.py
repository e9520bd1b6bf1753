"""The processors of a container, from files as kernels of both versions of control groups write them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.core.cpus import UsableCpus, cpu_quota, usable_cpus
from tests.house import ROOT

V2 = "30 23 0:26 {group} {point} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 30 0:31 {group} {point} rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw,cpu,cpuacct"
OTHER = """\
22 28 0:21 / /proc rw,nosuid - proc proc rw
34 30 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"""


def machine(root: Path, cgroup: str, mounts: str, **limits: str) -> Path:
    """A root folder with the two tables of the process, and with the files in `limits`."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": f"{OTHER}\n{mounts}"}
    for name, content in (files | limits).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def v2(root, path="/", group="/", **limits):
    placed = {f"sys/fs/cgroup{name}": content for name, content in limits.items()}
    return machine(root, f"0::{path}", V2.format(group=group, point="/sys/fs/cgroup"), **placed)


def v1(root, path="/", group="/", **limits):
    placed = {f"sys/fs/cgroup/cpu,cpuacct{name}": content for name, content in limits.items()}
    mounts = V1.format(group=group, point="/sys/fs/cgroup/cpu,cpuacct")
    cgroup = f"9:cpuset:/\n4:cpu,cpuacct:{path}\n1:name=systemd:/elsewhere\n0::/unified"
    return machine(root, cgroup, mounts, **placed)


def test_a_container_of_v2_sees_its_own_group_at_the_mount_point(tmp_path):
    assert cpu_quota(v2(tmp_path, **{"/cpu.max": "150000 100000"})) == 1.5


def test_without_a_quota_it_is_infinite(tmp_path):
    assert cpu_quota(v2(tmp_path / "v2", **{"/cpu.max": "max 100000"})) == math.inf
    files = {"/cpu.cfs_quota_us": "-1", "/cpu.cfs_period_us": "100000"}
    assert cpu_quota(v1(tmp_path / "v1", **files)) == math.inf
    assert cpu_quota(tmp_path / "no such system") == math.inf


def test_a_group_around_it_limits_too(tmp_path):
    files = {"/pods/cpu.max": "400000 100000", "/pods/pod/cpu.max": "200000 100000"}
    root = v2(tmp_path, "/pods/pod/container", **files, **{"/pods/pod/container/cpu.max": "max 100000"})
    assert cpu_quota(root) == 2


def test_a_group_beside_it_does_not(tmp_path):
    files = {"/pods/other/cpu.max": "100000 100000", "/pods/mine/cpu.max": "300000 100000"}
    assert cpu_quota(v2(tmp_path, "/pods/mine", **files)) == 3


def test_v1_has_its_quota_in_two_files(tmp_path):
    files = {"/docker/abc/cpu.cfs_quota_us": "50000", "/docker/abc/cpu.cfs_period_us": "100000"}
    assert cpu_quota(v1(tmp_path, "/docker/abc", **files)) == 0.5


def test_a_container_of_v1_sees_its_own_group_at_the_mount_point_under_the_path_of_the_host(tmp_path):
    files = {"/cpu.cfs_quota_us": "200000", "/cpu.cfs_period_us": "100000"}
    assert cpu_quota(v1(tmp_path / "whole", "/docker/abc", "/docker/abc", **files)) == 2
    assert cpu_quota(v1(tmp_path / "other", "/docker/abc/within", "/docker/abc", **files)) == 2
    assert cpu_quota(v1(tmp_path / "strange", "/docker/abc", "/kubepods/pod", **files)) == 2


def test_a_group_outside_of_the_namespace_is_not_looked_for(tmp_path):
    assert cpu_quota(v2(tmp_path / "a", "/../other", **{"/cpu.max": "200000 100000"})) == 2


def test_both_versions_at_once_give_the_smaller_quota(tmp_path):
    files = {"/cpu.cfs_quota_us": "300000", "/cpu.cfs_period_us": "100000"}
    root = v1(tmp_path, **files)
    mounts = root / "proc/self/mountinfo"
    mounts.write_text(mounts.read_text() + V2.format(group="/", point="/sys/fs/cgroup/unified") + "\n")
    assert cpu_quota(root) == 3
    (root / "sys/fs/cgroup/unified/unified").mkdir(parents=True)
    (root / "sys/fs/cgroup/unified/unified/cpu.max").write_text("100000 100000\n")
    assert cpu_quota(root) == 1


@pytest.mark.parametrize("content", ["", "nonsense", "100000", "1 0", "-5 100000", "a b c"])
def test_a_file_of_an_unknown_form_limits_nothing(tmp_path, content):
    assert cpu_quota(v2(tmp_path, **{"/cpu.max": content})) == math.inf


def test_a_mount_point_with_a_space_is_found(tmp_path):
    placed = {"sys/fs/control groups/cpu.max": "100000 100000"}
    assert (
        cpu_quota(
            machine(tmp_path, "0::/", V2.format(group="/", point=r"/sys/fs/control\040groups"), **placed)
        )
        == 1
    )


@pytest.mark.parametrize(
    ("affinity", "quota", "count", "num_threads"),
    [(32, 2.0, 2, 2), (2, math.inf, 2, 2), (4, 1.5, 1.5, 1), (8, 0.25, 0.25, 1), (1, 64.0, 1, 1)],
)
def test_the_smaller_limit_counts_and_there_is_always_one_thread(affinity, quota, count, num_threads):
    cpus = UsableCpus(affinity, quota)
    assert (cpus.num_cpus, cpus.num_threads) == (count, num_threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has an affinity of processes")
def test_the_affinity_of_this_process_counts():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from service.core.cpus import usable_cpus\nprint(usable_cpus())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "affinity to 1," in told.stdout
    assert usable_cpus().affinity == len(os.sched_getaffinity(0))
