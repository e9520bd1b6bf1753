"""`glyphrec serve` in a real process: what it ignores, where it listens, which signals end it."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.commands.serve import log_threads
from service.core import cpus
from service.core.cpus import UsableCpus
from service.http.connection_limit import PROBE_RESERVE
from tests.house import ROOT
from tests.service.core.test_service_links import OF_A_SERVICE, OF_ANOTHER
from tests.service.http.test_listening import needs_ipv6
from tests.service.processes import READY_TIMEOUT_S, command, finished, free_port, wait_until_ready

pytestmark = pytest.mark.slow

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


def can_unshare():
    return shutil.which("unshare") and not subprocess.run([*UNSHARE, "true"], capture_output=True).returncode


class Served:
    """A process that is ready."""

    def __init__(self, process, url):
        self.process = process
        self.url = url
        self.log = ""

    def end(self, with_signal=signal.SIGTERM):
        """-> the exit status."""
        self.process.send_signal(with_signal)
        _, self.log = self.process.communicate(timeout=30)
        assert "Traceback" not in self.log
        return self.process.returncode


@contextmanager
def serving(bundle, redis_url, *args, url=None, before=(), **environment):
    """A process that is ready. `before` is the command line in front of its own."""
    port = free_port()
    process = command(
        *("serve", "--bundle", bundle, "--port", port, *args),
        before=before,
        REDIS_URL=redis_url,
        **environment,
    )
    served = Served(process, (url or "http://127.0.0.1:{port}").format(port=port))
    try:
        wait_until_ready(served.url, process)
        yield served
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_what_platforms_put_into_the_environment_does_not_keep_it_from_starting(bundle, redis_url):
    injected = OF_A_SERVICE | OF_ANOTHER | {"WEB_CONCURRENCY": "auto", "FORWARDED_ALLOW_IPS": "everybody"}
    with serving(bundle, redis_url, **injected) as served:
        assert httpx.post(f"{served.url}/recommend", json={"history": ["item-0"]}).status_code == 200
        assert served.end() == 0
    assert "threads of each graph: " in served.log
    (line,) = [each for each in served.log.splitlines() if "Kubernetes" in each]
    assert re.findall(r"GLYPHREC_\w+", line) == sorted(OF_A_SERVICE | OF_ANOTHER)


def test_probes_are_answered_while_all_connections_are_in_use(bundle, redis_url):
    with serving(bundle, redis_url, GLYPHREC_MAX_CONNECTIONS="20") as served, ExitStack() as stack:
        address = (httpx.URL(served.url).host, httpx.URL(served.url).port)
        for _ in range(20 + 2 * PROBE_RESERVE):  # they say nothing, for the 10 s of a head
            stack.enter_context(socket.create_connection(address))
        for path in ("/health/live", "/livez", "/health/ready", "/readyz", "/healthz", "/metrics"):
            for method in ("GET", "HEAD"):
                answer = httpx.request(method, served.url + path)
                assert (answer.status_code, answer.headers["connection"]) == (200, "close"), path
        refused = httpx.post(f"{served.url}/recommend", json={"history": ["item-0"]})
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:glyphrec:problem:too-many-connections"
        stack.close()
        answer = httpx.post(f"{served.url}/recommend", json={"history": ["item-0"]})
        assert "connection" not in answer.headers
        assert served.end() == 0


def test_a_process_that_may_open_few_files_takes_fewer_connections_and_says_so(bundle, redis_url):
    few = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh"]
    with serving(bundle, redis_url, before=few) as served, ExitStack() as stack:
        address = (httpx.URL(served.url).host, httpx.URL(served.url).port)
        for _ in range(400):
            stack.enter_context(socket.create_connection(address))
        assert httpx.get(f"{served.url}/health/live").status_code == 200
        assert served.end() == 0
    assert "may open only 300 files" in served.log
    assert "Too many open files" not in served.log


def alive(**environment):
    """The exit status of the image's health check."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    name, *args = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)[1])
    assert name == "glyphrec"
    return finished(*args, **environment)[0]


@needs_ipv6
@pytest.mark.parametrize(("host", "urls"), [("::", ["127.0.0.1", "[::1]"]), ("[::1]", ["[::1]"])])
def test_it_serves_all_addresses_of_its_host_and_the_image_finds_it_there(bundle, redis_url, host, urls):
    environment = {"GLYPHREC_HOST": host, "GLYPHREC_ALLOW_ANONYMOUS": "true" if host == "::" else "false"}
    with serving(bundle, redis_url, url="http://[::1]:{port}", **environment) as served:
        port = httpx.URL(served.url).port
        for url in urls:
            assert httpx.get(f"http://{url}:{port}/health/live").status_code == 200
        assert alive(GLYPHREC_PORT=str(port), **environment) == 0
        assert served.end() == 0
        assert alive(GLYPHREC_PORT=str(port), **environment) == 1
    assert f"listening on http://{'[::]' if host == '::' else host}:{port}" in served.log


def test_it_serves_a_socket_of_the_file_system_in_place_of_an_address(bundle, redis_url, tmp_path):
    path = tmp_path / "glyphrec.sock"
    # An address that would need a key is not listened on.
    process = command(
        *("serve", "--bundle", bundle, "--unix-socket", path), REDIS_URL=redis_url, GLYPHREC_HOST="0.0.0.0"
    )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while finished("health", "--ready", GLYPHREC_UNIX_SOCKET=str(path))[0]:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
            assert client.post("/recommend", json={"history": ["item-0"]}).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    finally:
        process.kill()
        process.communicate()
    assert not path.exists()
    assert alive(GLYPHREC_UNIX_SOCKET=str(path)) == 1


def caught(pid):
    """The signals for which the process has a handler."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {number for number in signal.Signals if int(status["SigCgt"], 16) >> (number - 1) & 1}


@pytest.mark.skipif(not can_unshare(), reason="no unshare(1) with --pid. Run the tests as root")
def test_sigterm_ends_the_first_process_of_a_container_before_its_modules_are_imported(bundle, redis_url):
    process = command("serve", "--bundle", bundle, before=UNSHARE, REDIS_URL=redis_url)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (first := children.read_text().split()) or signal.SIGTERM not in caught(first[0]):
            assert time.monotonic() < deadline
        os.kill(int(first[0]), signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (0, "")


def test_the_handler_of_sigterm_is_there_before_any_slow_import():
    code = (
        "import signal, sys\n"
        "def seen(number, handler):\n"
        "    print(number == signal.SIGTERM, sorted(sys.modules)); sys.exit()\n"
        "signal.signal = seen\n"
        "sys.argv = ['glyphrec', 'serve']\n"
        "from service.cli import main\nmain()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.startswith("True ")
    for slow in ("argparse", "asyncio", "logging", "importlib.metadata", "numpy", "pydantic", "onnxruntime"):
        assert f"'{slow}'" not in told.stdout


def test_another_command_ends_by_sigterm_with_the_status_that_shells_give():
    """Such as an import that is the first process of a container."""
    process = command("import", "/dev/stdin", stdin=subprocess.PIPE)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while signal.SIGTERM not in caught(process.pid):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in err


def test_signals_that_other_servers_take_for_a_reload_end_nothing(bundle, redis_url):
    with serving(bundle, redis_url, before=["setsid"]) as served:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            served.process.send_signal(number)
        for _ in range(3):
            assert httpx.get(f"{served.url}/health/ready").status_code == 200
        assert served.end() == 0
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        assert f"{name} changes nothing" in served.log


# A session leader without a terminal gets the first one that it opens.
ON_TERMINAL = [
    *(sys.executable, "-c"),
    "import os, sys; os.setsid(); os.open(sys.argv[1], os.O_RDWR); os.execvp(sys.argv[2], sys.argv[2:])",
]


def test_a_terminal_that_closes_ends_the_service_as_sigterm_does(bundle, redis_url):
    ours, its = os.openpty()
    with serving(bundle, redis_url, before=[*ON_TERMINAL, os.ttyname(its)]) as served:
        os.close(its)
        os.close(ours)
        _, log = served.process.communicate(timeout=30)
        assert served.process.returncode == 0, log
    assert "Shutting down" in log
    assert "Traceback" not in log


def test_what_nohup_has_ignored_stays_ignored():
    code = (
        "import signal; from service.commands.signals import keep_serving_on_others\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); keep_serving_on_others(print)\n"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == "True\n"


@pytest.mark.parametrize(("threads", "is_given", "words"), [(1, False, "1, half of"), (2, True, "2, set by")])
def test_the_log_says_how_many_threads_there_are_and_why(caplog, monkeypatch, threads, is_given, words):
    monkeypatch.setattr(cpus, "usable_cpus", lambda: UsableCpus(32, 2.0))
    with caplog.at_level(logging.INFO):
        log_threads(threads, is_given=is_given)
    (record,) = caplog.records
    assert f"graph: {words}" in record.getMessage()
    assert "2 usable processors (affinity to 32, a quota of 2)" in record.getMessage()


def test_more_threads_than_processors_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(cpus, "usable_cpus", lambda: UsableCpus(32, 1.5))
    log_threads(16, is_given=True)
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "Set it to 1" in record.getMessage()
