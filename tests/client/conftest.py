"""A service in a process of its own, with its own Redis, which the tests of the client ask."""

import signal

import pytest

from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.service.processes import command, free_port, wait_until_ready


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("known"), KNOWN_ITEMS)


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    """The URL of a service with the known items. The price is a field for filters."""
    port, data = free_port(), tmp_path_factory.mktemp("redis")
    process = command(
        *("serve", "--bundle", bundle, "--port", port, "--data-dir", data),
        GLYPHREC_FILTER_FIELDS="price:number",
        GLYPHREC_MAX_ITEMS_PER_REQUEST="20",
        GLYPHREC_MAX_BODY_BYTES="100000",
    )
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    yield url
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
