"""Service processes as an operator starts them, for tests that need more than one or signals."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_TIMEOUT_S = 60


@dataclass(frozen=True)
class Replica:
    process: subprocess.Popen[bytes]
    client: httpx.Client
    ready_s: float  # from the start of the process to the first ready answer


@contextmanager
def replica(bundle: Path, redis_url: str, log: Path) -> Iterator[Replica]:
    """`glyphrec serve` on a free port, ready. Ended with SIGTERM."""
    port = free_port()
    started = time.perf_counter()
    command = [sys.executable, "-m", "service.cli", "serve", "--bundle", str(bundle), "--port", str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen([*command, "--redis-url", redis_url], stderr=output, stdout=output) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            yield Replica(process, client, _wait_until_ready(client, process, started, log))
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(
    client: httpx.Client, process: subprocess.Popen[bytes], started: float, log: Path
) -> float:
    while time.perf_counter() - started < READY_TIMEOUT_S and process.poll() is None:
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return time.perf_counter() - started
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.01)
    raise AssertionError(f"the service did not get ready:\n{log.read_text()}")
