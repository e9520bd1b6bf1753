"""The recommend flow over a real graph with known scores, against a ranking of the whole catalog."""

import asyncio
import random

import numpy as np
import pytest

from service.catalog.catalog import Catalog
from service.core.graphs import PADDING
from service.core.sid import Sid
from service.errors import Overloaded, TookTooLong
from service.flows.histories import pad_left
from service.flows.recommend import widths
from service.flows.search import Query
from service.telemetry.stages import Stages
from tests.known_bundle import HISTORY_LENGTH, NUM_LEAVES, SPEC, items_without_text_twice, known_score
from tests.service.recommending import catalog_of, page_of, popular, truth


@pytest.mark.parametrize("seed", range(60))
async def test_a_page_that_calls_itself_exact_is_the_top_of_the_whole_ranking(make_recommender, seed):
    rng = random.Random(seed)
    items = items_without_text_twice(rng.choice([1, 2, 5, 30, 150, 600]), seed)
    catalog = catalog_of(items)
    beam_limit = rng.choice([4, 64, 400])
    recommender = make_recommender(catalog, num_beams=rng.choice([1, 2, 4, 50]), beam_limit=beam_limit)
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
        answer = await page_of(recommender, query)
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
async def test_asking_for_exact_widens_until_it_holds(make_recommender, seed):
    items = items_without_text_twice(200, seed)
    catalog = catalog_of(items)
    recommender = make_recommender(catalog, num_beams=1, beam_limit=400)
    history = [items[seed].item_id]
    answer = await page_of(recommender, Query(history, 10, wants_exact=True))
    assert answer.exact
    page = [(each.item_id, each.score) for each in answer.items]
    assert page == truth(catalog, history, set(history))[:10]


async def test_exclusions_that_empty_the_beams_make_the_search_wider(make_recommender):
    items = items_without_text_twice(100, 1)
    catalog = catalog_of(items)
    history = [items[0].item_id]
    best = [item_id for item_id, _ in truth(catalog, history, set())]
    recommender = make_recommender(catalog, num_beams=2, beam_limit=400)
    answer = await page_of(recommender, Query(history, 3, frozenset(best[:80])))
    kept = [item_id for item_id in best[80:] if item_id != history[0]]
    assert [each.item_id for each in answer.items] == kept[:3]
    assert answer.exact


async def test_what_the_beam_limit_hides_is_filled_up_with_popular_items_without_a_score(make_recommender):
    items = items_without_text_twice(100, 2)
    catalog = catalog_of(items)
    answer = await page_of(
        make_recommender(catalog, num_beams=2, beam_limit=2), Query([items[0].item_id], 10)
    )
    assert len(answer.items) == 10
    assert not answer.exact
    scored = [each for each in answer.items if each.score is not None]
    filled = [each.item_id for each in answer.items if each.score is None]
    assert 0 < len(scored) < 10
    shown = {each.item_id for each in scored} | {items[0].item_id}
    assert filled == popular(catalog, len(filled), shown)


async def test_items_that_share_codes_share_the_score_and_stand_in_slot_order(make_recommender):
    items = [each._replace(codes=(1, 2, 0)) for each in items_without_text_twice(6, 3)]
    catalog = catalog_of(items)
    answer = await page_of(make_recommender(catalog), Query([items[3].item_id], 4))
    assert [each.item_id for each in answer.items] == ["item-0", "item-1", "item-2", "item-4"]
    assert len({each.score for each in answer.items}) == 1
    assert answer.exact


async def test_only_the_newest_known_items_of_a_history_count(make_recommender):
    items = items_without_text_twice(50, 4)
    catalog = catalog_of(items)
    recommender = make_recommender(catalog, beam_limit=400)
    newest = [each.item_id for each in items[:HISTORY_LENGTH]]
    longer = [items[40].item_id, "never seen", *newest[:2], "nor this", *newest[2:]]
    pages = [
        await page_of(recommender, Query(history, 20, exclude_history=False, wants_exact=True))
        for history in (newest, longer)
    ]
    assert pages[0].items == pages[1].items
    assert pages[1].unknown_item_ids == ["never seen", "nor this"]
    codes = [each.codes for each in items[:HISTORY_LENGTH]]
    assert all(
        each.score == known_score(codes, catalog.sid_of(each.item_id).codes) for each in pages[0].items
    )


@pytest.mark.parametrize("history", [[], ["unknown", "unknown", "other"]])
async def test_without_a_known_item_the_popular_ones_are_answered(make_recommender, history):
    items = items_without_text_twice(30, 5)
    catalog = catalog_of(items)
    answer = await page_of(make_recommender(catalog), Query(history, 7, frozenset({"item-3"})))
    assert answer.source == "popular"
    assert not answer.exact
    assert [each.item_id for each in answer.items] == popular(catalog, 7, {"item-3"})
    assert all(each.score is None for each in answer.items)
    assert answer.unknown_item_ids == list(dict.fromkeys(history))


async def test_an_empty_catalog_gives_an_empty_page(make_recommender):
    answer = await page_of(make_recommender(Catalog(SPEC)), Query(["a"], 5))
    assert (answer.items, answer.source) == ([], "popular")


async def test_a_new_item_is_found_by_the_next_search_and_a_dropped_one_by_none(make_recommender):
    items = items_without_text_twice(40, 6)
    catalog = catalog_of(items)
    recommender = make_recommender(catalog, beam_limit=400)
    query = Query(["item-0"], 100, exclude_history=False, wants_exact=True)

    async def page():
        return [each.item_id for each in (await page_of(recommender, query)).items]

    catalog.put("new", Sid((31, 3, 2), 0))
    assert "new" in await page()
    catalog.put("new", Sid((0, 0, 0), 7))
    assert (await page()).count("new") == 1
    catalog.drop("new")
    assert "new" not in await page()


async def test_requests_at_once_get_the_answers_they_would_get_alone(make_recommender):
    items = items_without_text_twice(120, 7)
    catalog = catalog_of(items)
    recommender = make_recommender(catalog, num_beams=2, max_batch_units=64)
    rng = random.Random(7)
    queries = [
        Query(
            rng.choices([each.item_id for each in items], k=rng.randint(1, 6)),
            rng.choice([1, 5, 20]),
            wants_exact=i % 2 == 0,
        )
        for i in range(80)
    ]
    alone = [await page_of(recommender, query) for query in queries]
    together = await asyncio.gather(*(page_of(recommender, query) for query in queries))
    assert together == alone


async def test_a_full_queue_is_said_at_once_and_a_slow_search_is_given_up(make_recommender):
    catalog = catalog_of(items_without_text_twice(20, 8))
    crowded = make_recommender(catalog, max_queued_units=8)
    answers = await asyncio.gather(
        *(crowded.recommend(Query(["item-0"], 1), Stages()) for _ in range(50)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert 0 < len(refused) < 50
    with pytest.raises(TookTooLong):
        await page_of(make_recommender(catalog, timeout_s=1e-9), Query(["item-0"], 1))


async def test_a_search_that_was_let_in_may_widen_though_the_queue_is_full(make_recommender):
    items = items_without_text_twice(100, 15)
    options = {"num_beams": 1, "beam_limit": 400, "max_batch_units": 1, "max_queued_units": 8}
    recommender = make_recommender(catalog_of(items), **options)
    queries = [Query([each.item_id], 1, exclude_history=False, wants_exact=True) for each in items[:8]]
    answers = await asyncio.gather(*(recommender.recommend(query, Stages()) for query in queries))
    assert all(answer.page.exact for answer in answers)
    assert any(answer.widened for answer in answers)


async def test_the_stages_of_a_request_are_timed(make_recommender):
    stages = Stages()
    await make_recommender(catalog_of(items_without_text_twice(20, 9))).recommend(
        Query(["item-0"], 3), stages
    )
    assert list(stages.seconds) == ["queue", "history", "decode", "resolve"]


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


# --- the certificate ---


async def test_the_answer_says_what_the_search_took(make_recommender):
    items = items_without_text_twice(200, 10)
    recommender = make_recommender(catalog_of(items), num_beams=4, beam_limit=32)
    easy = await recommender.recommend(Query(["item-0"], 1, exclude_history=False), Stages())
    assert (easy.num_beams, easy.widened, easy.beam_limit_reached) == (4, 0, False)
    hard = await recommender.recommend(Query(["item-0"], 100), Stages())
    assert (hard.num_beams, hard.widened, hard.beam_limit_reached) == (32, 0, True)
    assert len(hard.page.items) == 100
    unproven = await recommender.recommend(Query(["item-0"], 30, wants_exact=True), Stages())
    assert unproven.beam_limit_reached == (not unproven.page.exact)
    wide = make_recommender(catalog_of(items), num_beams=1, beam_limit=400)
    proven = [
        await wide.recommend(Query([each.item_id], 3, wants_exact=True), Stages()) for each in items[:20]
    ]
    assert all(each.page.exact and not each.beam_limit_reached for each in proven)
    assert any(each.widened for each in proven)


@pytest.mark.parametrize("num_left", [0, 1, 3])
async def test_a_page_of_all_that_is_left_is_exact_however_narrow_the_search(make_recommender, num_left):
    items = items_without_text_twice(40, 11)
    catalog = catalog_of(items)
    recommender = make_recommender(catalog, num_beams=4, beam_limit=4)
    found = (await page_of(recommender, Query(["item-0"], 3))).items[:num_left]
    others = {each.item_id for each in items} - {each.item_id for each in found}
    answer = await recommender.recommend(Query(["item-0"], 10, frozenset(others)), Stages())
    assert answer.page.items == found
    assert all(each.score is not None for each in found)
    assert answer.page.exact
    assert answer.page.was_searched == (num_left > 0)
    assert not answer.beam_limit_reached


async def test_more_beams_than_living_codes_prove_the_page(make_recommender):
    items = items_without_text_twice(3, 12)
    catalog = catalog_of(items)
    answer = await make_recommender(catalog, num_beams=50).recommend(Query(["item-0"], 10), Stages())
    assert [each.item_id for each in answer.page.items] == [
        item_id for item_id, _ in truth(catalog, ["item-0"], {"item-0"})
    ]
    assert (answer.page.exact, answer.widened) == (True, 0)


async def test_a_page_may_be_cut_inside_a_code_of_thousands_of_items(make_recommender):
    crowd = [each._replace(codes=(7, 2, 1)) for each in items_without_text_twice(5_000, 13)]
    catalog = catalog_of(crowd)
    for place, codes in enumerate([(1, 1, 1), (30, 0, 2), (9, 3, 0)]):
        catalog.put(f"alone-{place}", Sid(codes, 0))
    everything = truth(catalog, ["alone-0"], {"alone-0"})
    excluded = frozenset(item_id for item_id, _ in everything[3:900:2])
    left = [pair for pair in everything if pair[0] not in excluded]
    for limit in (1, 10, 100):
        page = await page_of(make_recommender(catalog), Query(["alone-0"], limit, excluded))
        assert [(each.item_id, each.score) for each in page.items] == left[:limit]
        assert page.exact


async def test_excluded_items_are_made_room_for_before_the_search_where_one_doubling_does(make_recommender):
    items = items_without_text_twice(300, 14)
    catalog = catalog_of(items)
    recommender = make_recommender(catalog, num_beams=10, beam_limit=320)
    best = [item_id for item_id, _ in truth(catalog, ["item-0"], {"item-0"})]
    tried = {
        num_excluded: await recommender.recommend(
            Query(["item-0"], 10, frozenset(best[:num_excluded]), exclude_history=False), Stages()
        )
        for num_excluded in (0, 10, 100)
    }
    assert (tried[0].num_beams, tried[0].widened) == (10, 0)
    assert (tried[10].num_beams, tried[10].widened) == (20, 0)
    assert tried[100].num_beams == 20 * 2 ** tried[100].widened > 20
