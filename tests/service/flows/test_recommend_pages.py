"""The items of a page and their order: ties, diversity, filters."""

import random
from collections import Counter

import numpy as np
import pytest

from service.catalog.catalog import Catalog
from service.core.filters import Attributes, Equals, Filter, Range
from service.core.graphs import FILLER_SCORE
from service.core.sid import Sid
from service.errors import UnknownFilterField
from service.flows.search import Query, Search, SearchesInBatches
from service.flows.selection import Diversity, Ranked, Selection
from service.inference.runtime import Beams
from service.telemetry.stages import Stages
from tests.known_bundle import HISTORY_LENGTH, SPEC, items_without_text_twice
from tests.service.recommending import catalog_of, page_of, popular, truth


class CoarseSession:
    """Scores in steps of 20, so that most are equal, in any order, as another device may return them."""

    def __init__(self, session, seed):
        self.session, self.rng = session, np.random.default_rng(seed)

    def run(self, history, tables, widths, neighbors):
        beams = self.session.run(history, tables, widths, neighbors)
        order = self.rng.permutation(beams.scores.shape[1])
        scores = np.where(beams.scores > FILLER_SCORE, beams.scores // 20 * 20, beams.scores)
        return Beams(beams.codes[:, order], scores[:, order], beams.bound)


async def test_equal_scores_stand_in_trie_order_on_every_replica(make_recommender, session):
    items = items_without_text_twice(150, 15)
    one = catalog_of(items)
    other = Catalog(SPEC, {each.item_id: each.popularity for each in items})
    for each in random.Random(0).sample(items, k=len(items)):
        other.put(each.item_id, one.sid_of(each.item_id))
    query = Query(["item-3", "item-5"], 100)
    pages = [
        await page_of(
            make_recommender(catalog, session=CoarseSession(session, seed), num_beams=400, beam_limit=400),
            query,
        )
        for seed, catalog in enumerate([one, other, one, other])
    ]
    assert all(page == pages[0] for page in pages)
    keys = [(-each.score, one.sid_of(each.item_id)) for each in pages[0].items]
    assert keys == sorted(keys)
    assert len({each.score for each in pages[0].items}) < 10


# --- diversity ---


def greedy(ranked, limit, most_per_first_code, first_code_of):
    """The slow truth of a diverse page."""
    page, taken = [], Counter()
    for item_id, score in ranked:
        if len(page) < limit and taken[first_code_of(item_id)] < most_per_first_code:
            taken[first_code_of(item_id)] += 1
            page.append((item_id, score))
    return page


@pytest.mark.parametrize("seed", range(20))
async def test_a_diverse_page_is_the_greedy_choice_from_the_whole_ranking(make_recommender, seed):
    rng = random.Random(seed)
    items = items_without_text_twice(rng.choice([5, 40, 300]), seed)
    catalog = catalog_of(items)
    beam_limit = rng.choice([8, 400])
    recommender = make_recommender(catalog, num_beams=4, beam_limit=beam_limit)
    for _ in range(8):
        most = rng.choice([1, 2, 5])
        query = Query(
            rng.choices([each.item_id for each in items], k=3),
            rng.choice([3, 10, 100]),
            diversity=Diversity(max_per_first_code=most),
            wants_exact=rng.random() < 0.5,
        )
        page = await page_of(recommender, query)
        ranked = truth(catalog, query.history, query.excluded)
        best = greedy(ranked, query.limit, most, lambda item_id: catalog.sid_of(item_id).codes[0])
        shown = Counter(catalog.sid_of(each.item_id).codes[0] for each in page.items)
        assert max(shown.values(), default=0) <= most
        assert len(page.items) == len(best), "what is missing is filled up, within the limits"
        if page.exact:
            assert [(each.item_id, each.score) for each in page.items] == best
        if beam_limit == 400:
            assert page.is_settled
        if query.wants_exact and beam_limit == 400:
            assert page.exact


async def test_a_page_that_diversity_cuts_short_is_no_reason_to_search_wider(make_recommender):
    items = items_without_text_twice(300, 16)
    recommender = make_recommender(catalog_of(items), num_beams=200, beam_limit=400)
    query = Query(["item-0"], 100, diversity=Diversity(max_per_first_code=1))
    answer = await recommender.recommend(query, Stages())
    assert len(answer.page.items) == SPEC.levels[0]
    assert answer.widened == 0


async def test_popular_items_are_as_diverse_as_asked_for(make_recommender):
    items = items_without_text_twice(60, 17)
    catalog = catalog_of(items)
    query = Query([], 10, diversity=Diversity(max_per_first_code=1))
    page = await page_of(make_recommender(catalog), query)
    ranked = [(item_id, None) for item_id in catalog.by_popularity()]
    best = greedy(ranked, 10, 1, lambda item_id: catalog.sid_of(item_id).codes[0])
    assert [(each.item_id, each.score) for each in page.items] == best


# --- filters ---


def attributes_of(item_id):
    number = int(item_id.removeprefix("item-"))
    categories = (f"kind {number % 5}", "all") if number % 5 else ()
    return Attributes(categories, number % 3 > 0, {"price": float(number % 50)})


def filtered_catalog_of(items):
    catalog = catalog_of(items)
    for each in items:
        catalog.put(each.item_id, catalog.sid_of(each.item_id), attributes_of(each.item_id))
    return catalog


def random_filter(rng, ids):
    kinds = [f"kind {number}" for number in range(7)]
    few = frozenset(rng.sample(ids, k=rng.choice([1, len(ids) // 2])))
    return Filter(
        categories_any=frozenset(rng.sample(kinds, k=rng.choice([0, 0, 3]))),
        categories_none=frozenset(rng.sample(kinds, k=rng.choice([0, 0, 2]))),
        attributes=(("price", Range(lt=rng.choice([5, 40]))),) if rng.random() < 0.5 else (),
        available=rng.choice([None, None, True, False]),
        item_ids=few if rng.random() < 0.2 else None,
    )


@pytest.mark.parametrize("seed", range(30))
async def test_a_filtered_page_is_full_of_what_passes_and_exact_where_it_says_so(make_recommender, seed):
    rng = random.Random(seed)
    items = items_without_text_twice(rng.choice([5, 60, 600]), seed)
    catalog = filtered_catalog_of(items)
    beam_limit = rng.choice([4, 64, 400])
    recommender = make_recommender(catalog, num_beams=rng.choice([1, 4, 50]), beam_limit=beam_limit)
    ids = [each.item_id for each in items]
    for _ in range(10):
        query = Query(
            rng.choices([*ids, "unknown"], k=rng.randint(0, 4)),
            rng.choice([1, 10, 100]),
            frozenset(rng.sample(ids, k=rng.randint(0, len(ids)))),
            filter=random_filter(rng, ids),
            diversity=Diversity(rng.choice([None, 2]), rng.choice([None, 3])),
            wants_exact=rng.random() < 0.5,
        )
        passing = {each for each in ids if query.filter.passes(each, attributes_of(each))}
        page = await page_of(recommender, query)
        assert page.matching_items == len(passing)
        shown = [each.item_id for each in page.items]
        assert set(shown) <= passing - query.excluded
        assert len(set(shown)) == len(shown)
        assert page.source == ("model" if any(map(catalog.has, query.history)) else "popular")
        ranked = (
            truth(catalog, query.history, query.excluded)
            if page.source == "model"
            else [(each, None) for each in popular(catalog, len(ids), query.excluded)]
        )
        best = Selection(
            query.limit,
            frozenset(),
            query.diversity,
            first_code_of=lambda packed: catalog.unpacked(packed).codes[0],
            category_of=catalog.views.category_of,
        )
        best.offer(
            Ranked(each, catalog.packed_sid_of(each), score) for each, score in ranked if each in passing
        )
        if page.exact or page.source == "popular":
            assert page.items == best.page
        if query.diversity == Diversity():
            assert len(page.items) == len(best.page), "never short while something passes"


@pytest.mark.parametrize(
    "asked",
    [
        Filter(item_ids=frozenset()),
        Filter(item_ids=frozenset({"nobody"})),
        Filter(categories_any=frozenset({"no such"})),
    ],
)
async def test_a_filter_that_nothing_passes_gives_an_empty_page_and_says_so(make_recommender, asked):
    recommender = make_recommender(filtered_catalog_of(items_without_text_twice(50, 18)))
    answer = await recommender.recommend(Query(["item-0"], 10, filter=asked), Stages())
    assert (answer.page.items, answer.page.matching_items) == ([], 0)
    assert (answer.page.exact, answer.page.was_searched, answer.beam_limit_reached) == (True, False, False)


async def test_requests_share_a_run_where_they_share_a_filter(session):
    catalog = filtered_catalog_of(items_without_text_twice(100, 19))
    sizes = []

    class Counting:
        def run(self, history, tables, widths, neighbors):
            sizes.append(len(history))
            return session.run(history, tables, widths, neighbors)

    run = SearchesInBatches(Counting(), catalog, history_length=HISTORY_LENGTH).run
    halves = [Filter(item_ids=frozenset(f"item-{i}" for i in range(start, 100, 2))) for start in (0, 1)]
    searches = [
        Search(Query([f"item-{i}"], 5, filter=asked), num_beams, True)
        for i, (asked, num_beams) in enumerate([(None, 8), (halves[0], 8), (halves[1], 8), (None, 16)] * 3)
    ]
    together = run(searches)
    assert sizes == [3, 3, 3, 3]
    assert together == [page for search in searches for page in run([search])]


@pytest.mark.parametrize("num_passing", [3, 60])  # of the 100 whose popularity is known
async def test_popular_items_of_a_filter_come_in_the_same_order_however_few_pass(
    make_recommender, num_passing
):
    items = items_without_text_twice(100, 20)
    catalog = filtered_catalog_of(items)
    catalog.put("item-100", Sid((0, 0, 0), 9))
    passing = frozenset([*(each.item_id for each in items[:num_passing]), "item-100"])
    query = Query([], 100, filter=Filter(item_ids=passing))
    shown = [each.item_id for each in (await page_of(make_recommender(catalog), query)).items]
    assert shown == [item_id for item_id in catalog.by_popularity() if item_id in passing]
    assert shown[-1] == "item-100", "of unknown popularity"


async def test_a_field_that_is_not_declared_is_refused_before_the_search(make_recommender):
    asked = Filter(attributes=(("color", Equals("red")),))
    with pytest.raises(UnknownFilterField, match=r"'color'.*price:number"):
        await page_of(make_recommender(Catalog(SPEC)), Query([], 5, filter=asked))
