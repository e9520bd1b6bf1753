"""`glyphrec serve` in a real process: what it ignores, where it listens, which signals end it."""

import re
import signal
from contextlib import contextmanager

import httpx
import pytest

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
def serving(bundle, redis_url, *args, url=None, **environment):
    port = free_port()
    process = command("serve", "--bundle", bundle, "--port", port, *args, REDIS_URL=redis_url, **environment)
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
    (line,) = [each for each in served.log.splitlines() if "Kubernetes" in each]
    assert re.findall(r"GLYPHREC_\w+", line) == sorted(OF_A_SERVICE | OF_ANOTHER)
