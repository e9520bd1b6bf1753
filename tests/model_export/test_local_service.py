"""Processes of `glyphrec` run our code, from whatever folder they are started."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from model_export.local_service import glyphrec_command, local_service
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle

NOT_OURS = "raise SystemExit('this is not glyphrec')\n"


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with somebody else's folders `service` and `model_export`."""
    for package in ("service", "model_export"):
        (tmp_path / package).mkdir()
        for module in ("__init__.py", "cli.py", "commands.py"):
            (tmp_path / package / module).write_text(NOT_OURS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_runs_where_foreign_folders_have_our_names(foreign: Path) -> None:
    shadowed = subprocess.run([sys.executable, "-m", "service.cli"], capture_output=True, text=True)
    assert "this is not glyphrec" in shadowed.stderr
    shown = subprocess.run(glyphrec_command("--help"), capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert " serve " in shown.stdout
    registered = subprocess.run(glyphrec_command("evaluate", "--help"), capture_output=True, text=True)
    assert registered.returncode == 0, registered.stderr  # a command of model_export
    assert list(foreign.iterdir())


def test_a_service_starts_where_foreign_folders_have_our_names(foreign: Path, redis_url: str) -> None:
    bundle = write_known_bundle(foreign / "bundle", KNOWN_ITEMS)
    with local_service(bundle, redis_url=redis_url, log=foreign / "log") as service:
        assert service.client.get("/health/live").status_code == httpx.codes.OK
