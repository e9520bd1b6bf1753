"""How tests are run, by runs of pytest on a few made-up tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hooks import LONG_FILES, TESTS, place
from tests.house import ROOT

CONFTEST = """
import os
import time
from pathlib import Path

import pytest

pytest_plugins = ["tests.hooks"]


@pytest.fixture(autouse=True)
def noted(request):
    started = time.time()
    yield
    kind = "alone" if request.node.get_closest_marker("alone") else "other"
    with open(Path(__file__).with_name("times"), "a") as file:
        file.write(f"{kind} {os.environ.get('PYTEST_XDIST_WORKER')} {started} {time.time()}\\n")
"""
MANY = """
import time
import pytest

@pytest.mark.parametrize("number", range(20))
def test_short(number):
    time.sleep(0.05)
"""
ALONE = """
import time
import pytest

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    time.sleep(0.2)

@pytest.mark.slow
def test_slow():
    pass

@pytest.mark.skip(reason="no moon. Wait for night")
def test_of_the_moon():
    pass
"""


def run(folder: Path, *arguments: str) -> str:
    """What pytest says about the made-up tests, with the hooks and markers of this repository."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_many.py").write_text(MANY)
    (folder / "test_alone.py").write_text(ALONE)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments, str(folder)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_with_several_workers_nothing_runs_beside_what_runs_alone(tmp_path: Path) -> None:
    shown = run(tmp_path, "-n2", "--dist", "loadfile", "-m", "not slow")
    assert "1 skipped: no moon. Wait for night" in shown
    assert "1 not selected by 'not slow'" in shown
    rows = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    spans = [(kind, worker, float(start), float(end)) for kind, worker, start, end in rows]
    assert len(spans) == 23
    assert {worker for _, worker, _, _ in spans} == {"gw0", "gw1"}
    for kind, worker, start, end in spans:
        if kind == "alone":
            beside = [each for each in spans if each[1] != worker and each[2] < end and each[3] > start]
            assert beside == []


def test_the_last_lines_say_what_did_not_run(tmp_path: Path) -> None:
    shown = run(tmp_path, "-m", "not slow", "-k", "slow or moon")
    last = [line for line in shown.splitlines() if line][-3:]
    assert last[0] == "1 skipped: no moon. Wait for night"
    assert last[1] == "24 not selected by 'not slow': `make test` runs all"


def test_long_files_run_first_and_those_that_run_alone_last() -> None:
    long = [TESTS / name for name in LONG_FILES]
    assert [path for path in long if not path.is_file()] == []
    others = [TESTS / "test_hooks.py", TESTS / "e2e" / "test_stop.py"]
    assert sorted([*others[::-1], *long[::-1]], key=place) == [*long, *others]
