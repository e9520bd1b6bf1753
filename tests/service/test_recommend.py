"""The recommend flow over a real graph with known scores, against a ranking of the whole catalogue."""

import asyncio
import random

import numpy as np
import pytest

from service.batching import MicroBatcher
from service.catalog import Catalog
from service.contract import PADDING, RECOMMENDER, Sid, load_bundle
from service.errors import Overloaded, TookTooLong
from service.metrics import Metrics, Stages
from service.recommend import Query, Recommender, pad_left, search_in_batches, widths
from service.runtime import RecommenderSession
from tests.known_bundle import (
    BEAM_LIMIT,
    HISTORY_LENGTH,
    NUM_LEAVES,
    SPEC,
    items_without_text_twice,
    known_score,
    ranking,
    write_known_bundle,
)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    bundle = load_bundle(write_known_bundle(tmp_path_factory.mktemp("known"), []))
    return RecommenderSession(bundle.file(RECOMMENDER), bundle.manifest.recommender, threads=1)


def catalog_of(items):
    """Slots are given in the order of the items."""
    catalog = Catalog(SPEC, {each.item_id: each.popularity for each in items})
    for each in items:
        catalog.put(each.item_id, Sid(each.codes, len(catalog.items_at(each.codes))))
    return catalog


@pytest.fixture
async def make(session):
    batchers = []

    def make(catalog, *, num_beams=4, beam_limit=BEAM_LIMIT, timeout_s=30.0, **batching):
        options = {"max_batch_units": 1_000, "max_queued_units": 100_000} | batching
        batcher = MicroBatcher(
            search_in_batches(session, catalog), name="test", units=lambda search: search.num_beams, **options
        )
        batcher.start()
        batchers.append(batcher)
        return Recommender(
            catalog,
            batcher,
            history_length=HISTORY_LENGTH,
            num_beams=num_beams,
            beam_limit=beam_limit,
            timeout_s=timeout_s,
            metrics=Metrics(),
        )

    yield make
    for batcher in batchers:
        await batcher.stop()


def truth(catalog, history, excluded):
    """The whole catalogue, best first: (item id, score)."""
    codes = [catalog.sid_of(item_id).codes for item_id in history if catalog.sid_of(item_id)]
    living = {catalog.sid_of(item_id).codes for item_id in catalog.popular(10**6)}
    return [
        (item_id, score)
        for score, each in ranking(codes, living)
        for item_id in catalog.items_at(each)
        if item_id not in excluded
    ]


@pytest.mark.parametrize("seed", range(60))
async def test_a_page_that_calls_itself_exact_is_the_top_of_the_whole_ranking(make, seed):
    rng = random.Random(seed)
    items = items_without_text_twice(rng.choice([1, 2, 5, 30, 150, 600]), seed)
    catalog = catalog_of(items)
    beam_limit = rng.choice([4, 64, 400])
    recommender = make(catalog, num_beams=rng.choice([1, 2, 4, 50]), beam_limit=beam_limit)
    ids = [each.item_id for each in items]
    for _ in range(12):
        history = rng.choices([*ids, "unknown"], k=rng.randint(1, 8))
        if set(history) == {"unknown"}:
            continue
        excluded = rng.sample(ids, k=rng.randint(0, len(ids)))
        query = Query(
            history,
            rng.choice([1, 3, 10, 100]),
            frozenset(excluded),
            exclude_history=rng.random() < 0.5,
            wants_exact=rng.random() < 0.5,
        )
        answer = await recommender.recommend(query, Stages())
        gone = set(excluded) | (set(history) if query.exclude_history else set())
        best = truth(catalog, history, gone)[: query.limit]
        page = [(each.item_id, each.score) for each in answer.items]
        assert len(page) == len(best), "as long as there are items, the page is full"
        assert len(set(page)) == len(page)
        assert {item_id for item_id, _ in page} & gone == set()
        scored = [(item_id, score) for item_id, score in page if score is not None]
        assert page[: len(scored)] == scored, "what fills the page up comes last"
        assert [score for _, score in scored] == sorted((score for _, score in scored), reverse=True)
        assert set(scored) <= set(truth(catalog, history, gone))
        assert answer.source == "model"
        if answer.exact:
            assert page == best
        if query.wants_exact and beam_limit > NUM_LEAVES:
            assert answer.exact, "nothing can be pruned"


@pytest.mark.parametrize("seed", range(10))
async def test_asking_for_exact_widens_until_it_holds(make, seed):
    items = items_without_text_twice(200, seed)
    catalog = catalog_of(items)
    recommender = make(catalog, num_beams=1, beam_limit=400)
    history = [items[seed].item_id]
    answer = await recommender.recommend(Query(history, 10, wants_exact=True), Stages())
    assert answer.exact
    page = [(each.item_id, each.score) for each in answer.items]
    assert page == truth(catalog, history, set(history))[:10]


async def test_exclusions_that_empty_the_beams_make_the_search_wider(make):
    items = items_without_text_twice(100, 1)
    catalog = catalog_of(items)
    history = [items[0].item_id]
    best = [item_id for item_id, _ in truth(catalog, history, set())]
    recommender = make(catalog, num_beams=2, beam_limit=400)
    answer = await recommender.recommend(Query(history, 3, frozenset(best[:80])), Stages())
    kept = [item_id for item_id in best[80:] if item_id != history[0]]
    assert [each.item_id for each in answer.items] == kept[:3]
    assert answer.exact


async def test_what_the_beam_limit_hides_is_filled_up_with_popular_items_without_a_score(make):
    items = items_without_text_twice(100, 2)
    catalog = catalog_of(items)
    answer = await make(catalog, num_beams=2, beam_limit=2).recommend(Query([items[0].item_id], 10), Stages())
    assert len(answer.items) == 10
    assert not answer.exact
    scored = [each for each in answer.items if each.score is not None]
    filled = [each.item_id for each in answer.items if each.score is None]
    assert 0 < len(scored) < 10
    shown = {each.item_id for each in scored} | {items[0].item_id}
    assert filled == catalog.popular(len(filled), shown)


async def test_items_that_share_codes_share_the_score_and_stand_in_slot_order(make):
    items = [each._replace(codes=(1, 2, 0)) for each in items_without_text_twice(6, 3)]
    catalog = catalog_of(items)
    answer = await make(catalog).recommend(Query([items[3].item_id], 4), Stages())
    assert [each.item_id for each in answer.items] == ["item-0", "item-1", "item-2", "item-4"]
    assert len({each.score for each in answer.items}) == 1
    assert answer.exact


async def test_only_the_newest_known_items_of_a_history_count(make):
    items = items_without_text_twice(50, 4)
    catalog = catalog_of(items)
    recommender = make(catalog, beam_limit=400)
    newest = [each.item_id for each in items[:HISTORY_LENGTH]]
    longer = [items[40].item_id, "never seen", *newest[:2], "nor this", *newest[2:]]
    pages = [
        await recommender.recommend(Query(history, 20, exclude_history=False, wants_exact=True), Stages())
        for history in (newest, longer)
    ]
    assert pages[0].items == pages[1].items
    assert pages[1].unknown_item_ids == ["never seen", "nor this"]
    codes = [each.codes for each in items[:HISTORY_LENGTH]]
    assert all(each.score == known_score(codes, each.sid.codes) for each in pages[0].items)


@pytest.mark.parametrize("history", [[], ["unknown", "unknown", "other"]])
async def test_without_a_known_item_the_popular_ones_are_answered(make, history):
    items = items_without_text_twice(30, 5)
    catalog = catalog_of(items)
    answer = await make(catalog).recommend(Query(history, 7, frozenset({"item-3"})), Stages())
    assert answer.source == "popular"
    assert not answer.exact
    assert [each.item_id for each in answer.items] == catalog.popular(7, {"item-3"})
    assert all(each.score is None for each in answer.items)
    assert answer.unknown_item_ids == list(dict.fromkeys(history))


async def test_an_empty_catalogue_gives_an_empty_page(make):
    answer = await make(Catalog(SPEC)).recommend(Query(["a"], 5), Stages())
    assert (answer.items, answer.source) == ([], "popular")


async def test_a_new_item_is_found_by_the_next_search_and_a_dropped_one_by_none(make):
    items = items_without_text_twice(40, 6)
    catalog = catalog_of(items)
    recommender = make(catalog, beam_limit=400)
    query = Query(["item-0"], 100, exclude_history=False, wants_exact=True)

    async def page():
        return [each.item_id for each in (await recommender.recommend(query, Stages())).items]

    catalog.put("new", Sid((31, 3, 2), 0))
    assert "new" in await page()
    catalog.put("new", Sid((0, 0, 0), 7))
    assert (await page()).count("new") == 1
    catalog.drop("new")
    assert "new" not in await page()


async def test_requests_at_once_get_the_answers_they_would_get_alone(make):
    items = items_without_text_twice(120, 7)
    catalog = catalog_of(items)
    recommender = make(catalog, num_beams=2, max_batch_units=64)
    rng = random.Random(7)
    queries = [
        Query(
            rng.choices([each.item_id for each in items], k=rng.randint(1, 6)),
            rng.choice([1, 5, 20]),
            wants_exact=i % 2 == 0,
        )
        for i in range(80)
    ]
    alone = [await recommender.recommend(query, Stages()) for query in queries]
    together = await asyncio.gather(*(recommender.recommend(query, Stages()) for query in queries))
    assert together == alone


async def test_a_full_queue_is_said_at_once_and_a_slow_search_is_given_up(make):
    catalog = catalog_of(items_without_text_twice(20, 8))
    crowded = make(catalog, max_queued_units=8)
    answers = await asyncio.gather(
        *(crowded.recommend(Query(["item-0"], 1), Stages()) for _ in range(50)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert 0 < len(refused) < 50
    with pytest.raises(TookTooLong):
        await make(catalog, timeout_s=1e-9).recommend(Query(["item-0"], 1), Stages())


async def test_the_stages_of_a_request_are_timed(make):
    stages = Stages()
    await make(catalog_of(items_without_text_twice(20, 9))).recommend(Query(["item-0"], 3), stages)
    assert list(stages.seconds) == ["history", "queue", "decode", "resolve"]


@pytest.mark.parametrize(
    ("num_beams", "limit", "expected"),
    [
        (50, 400, (50, 100, 200, 400)),
        (50, 120, (50, 100, 120)),
        (50, 20, (20,)),
        (1, 3, (1, 2, 3)),
        (7, 7, (7,)),
    ],
)
def test_widths_double_up_to_the_limit(num_beams, limit, expected):
    assert widths(num_beams, limit) == expected


def test_histories_are_padded_on_the_left():
    padded = pad_left([np.array([[1, 2]]), np.array([[3, 4], [5, 6]])])
    assert padded.tolist() == [[[PADDING, PADDING], [1, 2]], [[3, 4], [5, 6]]]
