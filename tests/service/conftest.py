"""A known bundle and a client of a service that serves it."""

import pytest

from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.service.running import running


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("known"), KNOWN_ITEMS)


@pytest.fixture
async def client(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        yield client
