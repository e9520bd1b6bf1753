"""A known bundle, its recommender, and a client of a service that serves it."""

import pytest
from redis.asyncio import Redis

from service.core.bundle import RECOMMENDER, load_bundle
from service.core.filters import DeclaredFields
from service.flows.recommend import Recommender
from service.flows.search import SearchesInBatches
from service.inference.batching import MicroBatcher
from service.inference.runtime import RecommenderSession
from service.store.items import ItemStore
from service.telemetry.metrics import Metrics
from tests.known_bundle import BEAM_LIMIT, HISTORY_LENGTH, KNOWN_ITEMS, write_known_bundle
from tests.service.catalogs import store_on
from tests.service.running import running


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("known"), KNOWN_ITEMS)


@pytest.fixture
async def client(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        yield client


@pytest.fixture
def store(redis: Redis) -> ItemStore:
    """The store of the empty test catalog."""
    return store_on(redis)


@pytest.fixture(scope="session")
def session(bundle):
    loaded = load_bundle(bundle)
    return RecommenderSession(loaded.file(RECOMMENDER), loaded.manifest.recommender, threads=1)


@pytest.fixture
async def make_recommender(session):
    batchers = []

    def make(catalog, *, session=session, num_beams=4, beam_limit=BEAM_LIMIT, timeout_s=30.0, **batching):
        options = {"max_batch_units": 1_000, "max_queued_units": 100_000} | batching
        batches = SearchesInBatches(session, catalog, history_length=HISTORY_LENGTH)
        batcher = MicroBatcher(
            batches.run,
            prepare=batches.prepare,
            name="test",
            units=lambda search: search.num_beams,
            lock=catalog.lock,
            **options,
        )
        batcher.start()
        batchers.append(batcher)
        return Recommender(
            batcher,
            fields=DeclaredFields({"price": "number"}),
            num_beams=num_beams,
            beam_limit=beam_limit,
            timeout_s=timeout_s,
            metrics=Metrics(),
        )

    yield make
    for batcher in batchers:
        await batcher.stop()
