"""The image installs what the tests ran with, each file by its hash, from wherever the builder says."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import PROJECT, PYPROJECT, ROOT

LOCKS = {variant: ROOT / f"deploy/requirements-{variant}.txt" for variant in ("cpu", "gpu")}
ENVIRONMENT = {"python_version": "3.12", "platform_system": "Linux", "sys_platform": "linux"}  # the image's
BUILDING = PYPROJECT["build-system"]["requires"]  # what builds our own wheel in the image
EACH = re.compile(
    r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", flags=re.MULTILINE
)


def locked(path: Path) -> dict[str, str]:
    """Name -> version."""
    return {canonicalize_name(name): version for name, version, _ in EACH.findall(path.read_text())}


def constrained() -> dict[str, str]:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", constraints, flags=re.MULTILINE)
    }


@pytest.mark.parametrize("variant", LOCKS)
def test_a_lock_holds_packages_with_hashes_and_nothing_else(variant: str) -> None:
    text = LOCKS[variant].read_text(encoding="utf-8")
    assert EACH.search(text)
    rest = EACH.sub("", text)
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []
    assert "://" not in text


@pytest.mark.parametrize("variant", LOCKS)
def test_a_lock_is_current(variant: str) -> None:
    """Where this fails, `make lock` mends it."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][variant], *BUILDING]
    requirements = [Requirement(each) for each in wanted]
    names = {
        canonicalize_name(each.name)
        for each in requirements
        if each.marker is None or each.marker.evaluate(ENVIRONMENT)
    }
    found, versions = locked(LOCKS[variant]), constrained()
    assert names <= found.keys()
    differing = {
        name: found[name] for name in found.keys() & versions.keys() if found[name] != versions[name]
    }
    assert differing == {}
    for each in requirements:
        assert each.specifier.contains(found[canonicalize_name(each.name)])


def test_the_locks_differ_only_in_the_runtime_and_what_it_brings() -> None:
    cpu, gpu = locked(LOCKS["cpu"]), locked(LOCKS["gpu"])
    assert ("onnxruntime" in cpu, "onnxruntime-gpu" in cpu) == (True, False)
    assert ("onnxruntime" in gpu, "onnxruntime-gpu" in gpu) == (False, True)
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == set()


def test_the_image_installs_from_the_lock_only() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install ((?:\\\n|[^&\n])*)", dockerfile)
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert {"--no-deps", "--no-build-isolation"} <= set(installs[1].split())
