"""The client is a distribution of its own, and fits into that of glyphrec."""

import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

from tests.house import PROJECT, PYPROJECT, ROOT

FOLDER = ROOT / "clients/python"
OURS = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_the_client_needs_glyphrec_needs_as_well():
    """So the wheel of glyphrec, which has the client in it, brings all that it imports."""
    theirs = {each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])}
    for each in map(Requirement, OURS["dependencies"]):
        assert theirs[each.name] == each.specifier


def test_the_wheel_of_glyphrec_has_the_client_with_its_types():
    tool = PYPROJECT["tool"]["setuptools"]
    assert "clients/python" in tool["packages"]["find"]["where"]
    assert tool["package-data"]["glyphrec_client"] == ["py.typed"]
    assert (FOLDER / "glyphrec_client/py.typed").is_file()


def test_the_client_travels_with_the_license_of_the_repository():
    assert OURS["license"] == PROJECT["license"]
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_client_alone_imports_nothing_of_the_service_and_nothing_large():
    """In a Python that finds only what is named: the client's folder, and the installed packages."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import glyphrec_client.client; "
        "heavy = {'service', 'model_export', 'numpy', 'onnxruntime', 'redis', 'fastapi'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    command = [sys.executable, "-I", "-c", code, str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
