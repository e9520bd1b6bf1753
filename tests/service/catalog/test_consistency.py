"""Edits and requests at once, with a real Redis: every answer is right for the version that it names.

The writers note what each version changed, so the catalog of any version can be made again afterwards.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from redis.asyncio import Redis

from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.core.bundle import RECOMMENDER, load_bundle
from service.core.filters import Attributes, DeclaredFields, Equals, Filter, Range
from service.core.sid import Codes, Sid, SidSpec
from service.flows.recommend import Recommender
from service.flows.search import Page, Query, SearchesInBatches
from service.inference.batching import MicroBatcher
from service.inference.runtime import RecommenderSession
from service.store.items import ItemStore
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from tests.known_bundle import HISTORY_LENGTH, NUM_LEAVES, PAGED, SPEC, ranking, write_known_bundle
from tests.service.catalogs import put, record, store_on

NUM_ITEMS = 60
NUM_VERSIONS = 150  # that requests ask for; there are more
TIMEOUT_S = 60
ITEM_IDS = [f"i{i}" for i in range(NUM_ITEMS)]
POPULARITY = {item_id: i % 7 for i, item_id in enumerate(ITEM_IDS[::2])}
FIELDS = DeclaredFields({"price": "number", "color": "text"})
FILTERS = [
    Filter(categories_any=frozenset("ab")),
    Filter(categories_all=frozenset("ab")),
    Filter(categories_none=frozenset("a")),
    Filter(available=False),
    Filter(available=True, attributes=(("price", Range(gte=3, lt=8)),)),
    Filter(attributes=(("color", Equals("red")),)),
    Filter(item_ids=frozenset([*ITEM_IDS[:15], "nobody"]), categories_any=frozenset("abc")),
    Filter(categories_any=frozenset(["none of these"])),
]
VIEW_BYTES = 350_000  # too little for all views, so that some are rebuilt between edits


class Living(NamedTuple):
    sid: Sid
    attributes: Attributes


@dataclass
class Past:
    """Every version of the catalog."""

    changes: dict[int, tuple[str, Living | None]] = field(default_factory=dict)

    def at(self, version: int) -> dict[str, Living]:
        living: dict[str, Living] = {}
        for change in range(1, version + 1):
            item_id, became = self.changes[change]
            if became is None:
                del living[item_id]
            else:
                living[item_id] = became
        return living


async def write(store: ItemStore, past: Past, rng: random.Random, is_enough: Callable[[], bool]) -> None:
    """Puts, moves, drops, and changes of what only filters read."""
    while not is_enough():
        item_id = rng.choice(ITEM_IDS)
        if rng.random() < 0.3:
            (dropped,) = await store.drop([item_id])
            if dropped.existed:
                past.changes[dropped.version] = (item_id, None)
            continue
        # Few leaves, so that items meet at the same codes; few texts, so that often only attributes change.
        text = rng.randrange(2)
        codes = SPEC.codes_of((ITEM_IDS.index(item_id) * 11 + text * 121) % NUM_LEAVES // 3 * 3)
        fields = {
            "categories": rng.sample("abc", k=rng.randint(0, 3)),
            "available": rng.random() < 0.7,
            "price": rng.randrange(10),
            "color": rng.choice(["red", "blue"]),
        }
        result = await put(store, record(item_id, f"text {text}", **fields), codes)
        if result.status != "unchanged":
            past.changes[result.version] = (item_id, Living(result.sid, FIELDS.attributes_of(fields)))


def random_query(rng: random.Random) -> Query:
    return Query(
        history=rng.choices([*ITEM_IDS, "unknown"], k=rng.randint(1, 6)),
        limit=rng.choice([1, 5, 20, 100]),
        exclude_item_ids=frozenset(rng.sample(ITEM_IDS, k=rng.randint(0, 20))),
        exclude_history=rng.random() < 0.5,
        filter=rng.choice([None, *FILTERS]),
        wants_exact=rng.random() < 0.5,
    )


def check(query: Query, page: Page, living: dict[str, Living]) -> None:
    """The page against the slow ranking of the catalog of its version."""
    known = [living[item_id].sid.codes for item_id in query.history if item_id in living]
    passing = {
        item_id: each.sid
        for item_id, each in living.items()
        if query.filter is None or query.filter.passes(item_id, each.attributes)
    }
    assert page.matching_items == (None if query.filter is None else len(passing))
    allowed = {item_id: sid for item_id, sid in passing.items() if item_id not in query.excluded}
    unpacked = Catalog(SPEC).unpacked
    shown = {each.item_id: unpacked(each.packed_sid) for each in page.items}
    assert shown.items() <= allowed.items(), "each lived, passed, had this sid"
    assert page.unknown_item_ids == [i for i in dict.fromkeys(query.history) if i not in living]
    assert len(page.items) == min(query.limit, len(allowed)), "never short while there are items"
    in_order = sorted(allowed, key=allowed.__getitem__)  # of the trie
    popular = sorted(in_order, key=lambda i: (-POPULARITY[i], i) if i in POPULARITY else (1, ""))
    if not known:
        assert [each.item_id for each in page.items] == popular[: query.limit]
        return
    score_of: dict[Codes, float] = {
        codes: score for score, codes in ranking(known, {sid.codes for sid in allowed.values()})
    }
    best = sorted(in_order, key=lambda item_id: -score_of[allowed[item_id].codes])
    if page.exact:
        assert [each.item_id for each in page.items] == best[: query.limit]
    found = [each.item_id for each in page.items if each.score is not None]
    assert all(each.score in (None, score_of[shown[each.item_id].codes]) for each in page.items)
    fill = [item_id for item_id in popular if item_id not in found]
    assert [each.item_id for each in page.items] == found + fill[: len(page.items) - len(found)]


@pytest.fixture(params=[SPEC, PAGED], ids=["rows", "pages"])
async def served(
    request: pytest.FixtureRequest, redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[ItemStore, Recommender, CatalogFollower]]:
    """A store, and a recommender over a catalog that follows it."""
    spec: SidSpec = request.param
    bundle = load_bundle(write_known_bundle(tmp_path_factory.mktemp("known"), [], spec))
    session = RecommenderSession(bundle.file(RECOMMENDER), bundle.manifest.recommender, threads=1)
    store = store_on(redis, spec=spec, fields=FIELDS)
    catalog = Catalog(spec, POPULARITY, max_view_bytes=VIEW_BYTES)
    follower = CatalogFollower(catalog, store)
    batches = SearchesInBatches(session, catalog, history_length=HISTORY_LENGTH)
    batcher = MicroBatcher(
        batches.run,
        prepare=batches.prepare,
        name="test",
        max_batch_units=200,
        max_queued_units=10_000,
        units=lambda search: search.num_beams,
        lock=catalog.lock,
    )
    recommender = Recommender(
        batcher, fields=FIELDS, num_beams=8, beam_limit=64, timeout_s=30, metrics=Metrics()
    )
    await follower.load()
    batcher.start()
    task = asyncio.create_task(follower.run())
    yield store, recommender, follower
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await batcher.stop()


@pytest.mark.parametrize("seed", range(2))
async def test_every_answer_is_right_for_the_version_that_it_names(served, seed: int) -> None:
    store, recommender, follower = served
    past, answers, versions = Past(), list[tuple[Query, Page]](), set[int]()
    await write(store, past, random.Random(seed), lambda: len(past.changes) == NUM_ITEMS)
    assert await follower.wait_for(NUM_ITEMS, timeout_s=10)

    def is_enough() -> bool:
        return len(versions) >= NUM_VERSIONS

    async def ask(rng: random.Random) -> None:
        last = 0
        while not is_enough():
            query = random_query(rng)
            page = (await recommender.recommend(query, Stages())).page
            assert page.catalog_version >= last, "what a client has seen does not go away"
            last = page.catalog_version
            answers.append((query, page))
            versions.add(last)

    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(
            *(write(store, past, random.Random(10 * seed + i), is_enough) for i in range(3)),
            *(ask(random.Random(100 * seed + i)) for i in range(6)),
        )
    assert follower.num_loads == 1
    catalogs = {version: past.at(version) for version in versions}
    for query, page in answers:
        check(query, page, catalogs[page.catalog_version])
    assert {page.exact for _, page in answers} == {True, False}
    views = follower.catalog.views
    assert min(views.num_hits, views.num_misses, views.num_evictions) > 0

    last_version = max(past.changes)
    assert await follower.wait_for(last_version, timeout_s=10), "no edit is lost"
    living = past.at(last_version)
    assert {item_id: follower.catalog.sid_of(item_id) for item_id in living} == {
        item_id: each.sid for item_id, each in living.items()
    }
    assert all(views.attributes_of(item_id) == each.attributes for item_id, each in living.items())
    assert follower.catalog.num_items == len(living)
