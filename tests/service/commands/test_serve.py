"""`glyphrec serve` in a real process: what it ignores, where it listens, which signals end it."""

import logging
import re
import signal
import socket
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from service.commands.serve import log_threads
from service.core import cpus
from service.core.cpus import UsableCpus
from service.http.connection_limit import PROBE_RESERVE
from tests.service.core.test_service_links import OF_A_SERVICE, OF_ANOTHER
from tests.service.processes import command, free_port, wait_until_ready

pytestmark = pytest.mark.slow


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
    assert "threads of each of the two graphs: " in served.log
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


@pytest.mark.parametrize(("threads", "is_given", "words"), [(1, False, "1, half of"), (2, True, "2, set by")])
def test_the_log_says_how_many_threads_there_are_and_why(caplog, monkeypatch, threads, is_given, words):
    monkeypatch.setattr(cpus, "usable_cpus", lambda: UsableCpus(32, 2.0))
    with caplog.at_level(logging.INFO):
        log_threads(threads, is_given=is_given)
    (record,) = caplog.records
    assert f"graphs: {words}" in record.getMessage()
    assert "2 usable processors (affinity to 32, a quota of 2)" in record.getMessage()


def test_more_threads_than_processors_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(cpus, "usable_cpus", lambda: UsableCpus(32, 1.5))
    log_threads(16, is_given=True)
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "Set it to 1" in record.getMessage()
