"""The `glyphrec` command in processes of its own, for tests of what a user starts."""

import os
import signal
import socket
import subprocess
import time

import httpx
import pytest

from model_export.local_service import glyphrec_command
from tests.house import SOURCES

READY_TIMEOUT_S = 30


def command(*args, before=(), stdin=None, **environment):
    """A process of the command, with nothing of this machine's settings.

    `before` is a command line that runs the command's own.
    """
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("GLYPHREC_", "REDIS_"))
    }
    path = os.pathsep.join([*map(str, SOURCES), environment.pop("PYTHONPATH", "")])
    return subprocess.Popen(
        [*before, *glyphrec_command(*args)],
        env=clean | {"PYTHONPATH": path} | environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(*args, **environment):
    process = command(*args, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(url, process):
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    pytest.fail("not ready")
