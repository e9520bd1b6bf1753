"""How a run of tests goes: what is slow, what runs alone, and the last lines that say what was left out.

Markers are declared in pyproject.toml. With several workers (pytest-xdist) a file stays on one worker, which
makes the module's fixtures once; a test marked `alone` runs while no other worker runs a test.
"""

import fcntl
import os
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SLOW_TIMEOUT_S = 900  # the timeout in pyproject.toml is for all others
SLOW_FIXTURES = {"tiny_export", "studied"}  # trained models: whoever asks for one first waits for it
TESTS = Path(__file__).parent
E2E = TESTS / "e2e"
# The files that take longest, longest first (--durations=0 tells). A file stays on one worker, so a long one
# that starts late leaves the other workers idle.
LONG_FILES = [
    "model_export/generators/test_beam_search.py",
    "model_export/study/test_study.py",
    "model_export/test_export.py",
    "model_export/test_export_with_joint_space.py",
    "benchmarks/test_tiny.py",
    "model_export/test_export_with_ranker.py",
    "service/lifecycle/test_bad_bundles.py",
    "model_export/study/test_cold.py",
    "service/api/test_fuzz.py",
    "model_export/encoders/test_hub_encoders.py",
    "model_export/study/test_robustness.py",
    "service/store/test_redis_addresses.py",
    "model_export/encoders/test_compact.py",
    "model_export/test_pins.py",
]

_num_deselected: Counter[str] = Counter()  # by worker; "" is this process
_run_ids: set[str] = set()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if E2E in item.path.parents:
            item.add_marker("e2e")
            item.add_marker("alone")  # each has several processes of its own
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        is_slow = item.get_closest_marker("slow") or item.get_closest_marker("e2e")
        if is_slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    items.sort(key=lambda item: place(item.path))  # stable: the tests of a file stay together


def place(path: Path) -> int:
    """Where a file stands in a run. Long ones come first, so that none is left at the end.

    End-to-end ones come last: what runs alone waits for the test beside it, which is short by then.
    """
    if E2E in path.parents:
        return len(LONG_FILES) + 1
    name = path.relative_to(TESTS).as_posix() if TESTS in path.parents else ""
    return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the test's timeout, which does not count the wait
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with _turn(is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _turn(*, is_alone: bool) -> Iterator[None]:
    """Hold the lock of this run's workers, shared by most tests. Who waits for it keeps later ones behind."""
    lock_path, queue_path = _lock_files(os.environ["PYTEST_XDIST_TESTRUNUID"])
    with lock_path.open("ab") as lock:
        with queue_path.open("ab") as queue:
            fcntl.flock(queue, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        yield


def _lock_files(run_id: str) -> tuple[Path, Path]:
    prefix = Path(tempfile.gettempdir()) / f"glyphrec-tests-{run_id}"
    return prefix.with_suffix(".lock"), prefix.with_suffix(".queue")


def pytest_deselected(items: list[pytest.Item]) -> None:
    _num_deselected[""] += len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    told: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["num_deselected"] = _num_deselected[""]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _num_deselected[node.gateway.id] = getattr(node, "workeroutput", {}).get("num_deselected", 0)
    _run_ids.add(node.workerinput["testrunuid"])


def pytest_unconfigure() -> None:
    for run_id in _run_ids:  # of this process's workers, all of which have ended
        for path in _lock_files(run_id):
            path.unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The last lines: what was left out, and what to do so that it runs."""
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    num_deselected = max(_num_deselected.values(), default=0)  # every worker deselects the same
    if not skipped and not num_deselected:
        return
    terminalreporter.section("what did not run, and how to run it")
    for reason, count in sorted(skipped.items()):
        terminalreporter.line(f"{count} skipped: {reason}")
    if num_deselected:
        selected = config.option.markexpr or config.option.keyword or "--deselect"
        terminalreporter.line(f"{num_deselected} not selected by {selected!r}: `make test` runs all")
