"""Starts a service process on this machine, waits until it is ready, and stops it at the end.

The demo, the benchmarks and the end-to-end tests use it, so they run the same process as operators do.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.errors import GlyphrecError

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
REDIS_VARIABLES = ("REDIS_URL", "GLYPHREC_REDIS_URL")


@dataclass(frozen=True)
class LocalService:
    """A running service."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    url: str
    ready_s: float  # from the start of the process to the first ready answer


def glyphrec_command(*arguments: object) -> list[str]:
    """The command line that runs `glyphrec` with `arguments` in this interpreter.

    `-m` alone puts the working directory first on sys.path, so a folder `service` there would be imported
    instead of ours. `-P` leaves the working directory out. PYTHONPATH still counts.
    """
    return [sys.executable, "-P", "-m", "service.cli", *map(str, arguments)]


@contextmanager
def local_service(
    bundle: Path,
    *,
    port: int | None = None,
    data_dir: Path | None = None,
    redis_url: str | None = None,
    log: Path | None = None,
    settings: Mapping[str, str] | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[LocalService]:
    """Run `glyphrec serve` until the block ends, and yield it when it is ready.

    Without `port` it gets a free port. Without `log` its output goes to this terminal. It uses the Redis at
    `redis_url`, or an embedded one in `data_dir`. `settings` are added to its environment. At the end it gets
    SIGTERM, and SIGKILL if it does not stop in time. Raises GlyphrecError if it does not become ready.
    """
    port = free_port() if port is None else port
    url = f"http://127.0.0.1:{port}"
    command = glyphrec_command("serve", "--bundle", bundle, "--port", port)
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    if redis_url is not None:
        command += ["--redis-url", redis_url]
    # If the environment names a Redis, that one belongs to somebody else.
    environment = {name: value for name, value in os.environ.items() if name not in REDIS_VARIABLES}
    environment |= settings or {}
    output = log.open("wb") if log else None
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        with httpx.Client(base_url=url, timeout=300.0) as client:
            yield LocalService(
                process, client, url, _wait_until_ready(client, process, started, log, ready_timeout_s)
            )
    finally:
        _stop(process)
        if output:
            output.close()


def free_port(first: int = 0) -> int:
    """The first free port from `first` on, or any free port. Raises GlyphrecError if there is none."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    raise GlyphrecError(f"no port from {first} to {first + 99} is free. Give another port with --port.")


def _wait_until_ready(
    client: httpx.Client,
    process: subprocess.Popen[bytes],
    started: float,
    log: Path | None,
    timeout_s: float,
) -> float:
    while time.perf_counter() - started < timeout_s and process.poll() is None:
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return time.perf_counter() - started
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.01)
    words = log.read_text() if log else "its output above says why."
    raise GlyphrecError(f"the service did not become ready within {timeout_s:.0f} s: {words}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
