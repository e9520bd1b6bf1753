"""POST /rank's flow over real graphs with known scores, against the scores of all items, by hand."""

import asyncio
import random

import numpy as np
import pytest

from service.core.bundle import RANKER, load_bundle
from service.core.co_counts import CoCounts, CoCountSpec
from service.core.filters import Attributes, DeclaredFields, Filter, Range
from service.core.sid import Sid
from service.errors import Overloaded, TookTooLong, UnknownFilterField
from service.flows.histories import neighbors_of, read_history
from service.flows.item_ranking import ItemRanker, Ranking, rank_in_batches, work_of
from service.flows.ranker import Ranker
from service.flows.search import Query
from service.inference.batching import MicroBatcher
from service.inference.runtime import RankerSession
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from tests.known_bundle import BEAM_LIMIT, HISTORY_LENGTH, items_without_text_twice, known_score
from tests.known_ranker import RANKER_HISTORY_LENGTH, known_ranker_score, ranker_bundle
from tests.service.recommending import catalog_of, page_of, popular

COUNTS = CoCountSpec()


@pytest.fixture(scope="module")
def ranker_session(tmp_path_factory):
    bundle = load_bundle(ranker_bundle(tmp_path_factory.mktemp("ranker"), []))
    assert bundle.manifest.ranker is not None
    return RankerSession(bundle.file(RANKER), bundle.manifest.ranker.graph, threads=1)


@pytest.fixture
async def make_item_ranker(session):
    batchers = []

    def make(catalog, *, ranker=None, beam_limit=BEAM_LIMIT, timeout_s=30.0, metrics=None, **batching):
        options = {"max_batch_units": 1_000, "max_queued_units": 100_000} | batching
        batcher = MicroBatcher(
            rank_in_batches(
                session, catalog, history_length=HISTORY_LENGTH, beam_limit=beam_limit, ranker=ranker
            ),
            name="rankings",
            units=work_of,
            lock=catalog.lock,
            **options,
        )
        batcher.start()
        batchers.append(batcher)
        fields = DeclaredFields({"price": "number"})
        return ItemRanker(batcher, fields=fields, timeout_s=timeout_s, metrics=metrics or Metrics())

    yield make
    for batcher in batchers:
        await batcher.stop()


async def ranked(item_ranker, history, item_ids, limit=1_000, **more):
    return await item_ranker.rank(Ranking(history, item_ids, limit, **more), Stages())


def shown(answer):
    return [(each.item_id, each.score) for each in answer.items]


def truth(catalog, score_of, item_ids):
    """The known ones of `item_ids`, best first; equal scores in trie order: (item id, score)."""
    known = [item_id for item_id in dict.fromkeys(item_ids) if catalog.has(item_id)]
    scored = [(item_id, score_of(catalog.sid_of(item_id).codes, item_id)) for item_id in known]
    return sorted(scored, key=lambda pair: (-pair[1], catalog.sid_of(pair[0])))


def by_generator(catalog, history, item_ids):
    codes = [catalog.sid_of(each).codes for each in history if catalog.has(each)]
    return truth(catalog, lambda own, _: known_score(codes, own), item_ids)


def by_ranker(catalog, history, item_ids, popularity):
    codes = [catalog.sid_of(each).codes for each in history if catalog.has(each)]

    def score_of(own, item_id):
        return known_ranker_score(codes, own, popularity.get(item_id, 0))

    return truth(catalog, score_of, item_ids)


@pytest.mark.parametrize("seed", range(20))
async def test_given_items_have_the_order_and_the_scores_of_the_whole_ranking(make_item_ranker, seed):
    rng = random.Random(seed)
    items = items_without_text_twice(rng.choice([1, 5, 40, 300]), seed)
    catalog = catalog_of(items)
    item_ranker = make_item_ranker(catalog, beam_limit=rng.choice([1, 7, BEAM_LIMIT]))
    ids = [each.item_id for each in items]
    for _ in range(6):
        history = [*rng.choices([*ids, "gone"], k=rng.randint(0, 6)), rng.choice(ids)]
        asked = rng.choices([*ids, "no such item"], k=rng.randint(0, 200))
        limit = rng.choice([1, 10, 1_000])
        answer = await ranked(item_ranker, history, asked, limit)
        expected = by_generator(catalog, history, asked)
        assert answer.by == "generator"
        assert shown(answer) == expected[:limit]
        assert answer.num_candidates == len(expected)
        assert answer.unknown_item_ids == ["no such item"] * ("no such item" in asked)
        assert answer.unknown_history_ids == ["gone"] * ("gone" in history)
        assert [each.sid for each in answer.items] == [catalog.sid_of(each.item_id) for each in answer.items]


async def test_an_item_has_the_score_that_a_recommendation_gives_it(make_item_ranker, make_recommender):
    items = items_without_text_twice(300, 1)
    catalog = catalog_of(items)
    page = await page_of(make_recommender(catalog, num_beams=50), Query(["item-3", "item-9"], 20))
    asked = [each.item_id for each in page.items]
    answer = await ranked(make_item_ranker(catalog), ["item-3", "item-9"], sorted(asked))
    assert shown(answer) == [(each.item_id, each.score) for each in page.items]


async def test_items_that_share_codes_share_the_score_and_stand_in_slot_order(make_item_ranker):
    items = [each._replace(codes=(1, 2, 0)) for each in items_without_text_twice(6, 3)]
    answer = await ranked(make_item_ranker(catalog_of(items)), ["item-3"], ["item-5", "item-0", "item-2"])
    assert [each.item_id for each in answer.items] == ["item-0", "item-2", "item-5"]
    assert len({each.score for each in answer.items}) == 1


@pytest.mark.parametrize("history", [[], ["unknown", "other"]])
async def test_without_a_known_history_and_a_ranker_the_order_is_that_of_popular_items(
    make_item_ranker, history
):
    items = items_without_text_twice(40, 5)
    catalog = catalog_of(items)
    catalog.put("late", Sid((0, 0, 0), 90))  # without popularity
    catalog.put("later", Sid((31, 3, 2), 90))
    asked = [each.item_id for each in items[:20]] + ["later", "late"]
    answer = await ranked(make_item_ranker(catalog), history, random.Random(0).sample(asked, k=len(asked)))
    assert answer.by == "popularity"
    expected = [item_id for item_id in popular(catalog, 100, set()) if item_id in asked]
    assert shown(answer) == [(item_id, None) for item_id in expected]
    assert answer.unknown_history_ids == history


async def test_nothing_to_rank_is_an_empty_answer(make_item_ranker):
    item_ranker = make_item_ranker(catalog_of(items_without_text_twice(3, 0)))
    for asked in ([], ["unknown"]):
        answer = await ranked(item_ranker, ["item-0"], asked)
        assert (answer.items, answer.by, answer.num_candidates) == ([], "generator", 0)
        assert answer.unknown_item_ids == asked


async def test_only_items_that_pass_the_filter_are_ranked(make_item_ranker):
    items = items_without_text_twice(60, 6)
    catalog = catalog_of(items)
    for number, each in enumerate(items):
        catalog.put(each.item_id, catalog.sid_of(each.item_id), Attributes((), True, {"price": number}))
    asked = [*(f"item-{n}" for n in range(0, 60, 3)), "item-9999"]
    cheap = Filter(attributes=(("price", Range(lt=30)),))
    item_ranker = make_item_ranker(catalog)
    answer = await ranked(
        item_ranker, ["item-1"], asked, filter=cheap, exclude_item_ids=frozenset({"item-6"})
    )
    passing = [f"item-{n}" for n in range(0, 30, 3)]
    kept = [item_id for item_id in passing if item_id != "item-6"]
    assert shown(answer) == by_generator(catalog, ["item-1"], kept)
    assert (answer.matching_items, answer.num_candidates) == (len(passing), len(kept))
    assert answer.unknown_item_ids == ["item-9999"]
    with pytest.raises(UnknownFilterField):
        await ranked(item_ranker, [], asked, filter=Filter(attributes=(("weight", Range(lt=3)),)))


async def test_rankings_at_once_get_the_answers_they_would_get_alone(make_item_ranker):
    items = items_without_text_twice(120, 7)
    item_ranker = make_item_ranker(catalog_of(items), max_batch_units=200)
    rng = random.Random(7)
    ids = [each.item_id for each in items]
    shelf = rng.sample(ids, k=30)
    asked = [shelf if n % 2 else rng.sample(ids, k=rng.randint(1, 60)) for n in range(60)]
    histories = [rng.choices([*ids, "gone"], k=rng.randint(0, 6)) for _ in asked]
    pairs = list(zip(histories, asked, strict=True))
    alone = [await ranked(item_ranker, *pair) for pair in pairs]
    assert await asyncio.gather(*(ranked(item_ranker, *pair) for pair in pairs)) == alone


async def test_counts_have_a_say_as_in_a_search(make_item_ranker, make_recommender):
    items = items_without_text_twice(80, 8)
    catalog = catalog_of(items)
    catalog.co_counts = CoCounts(COUNTS, catalog.prefix_of)
    for other in range(1, 30):
        catalog.co_counts.set_row(f"item-{other}", 2.0 + other, {"item-0": 1.0})
    catalog.co_counts.set_row("item-0", 9.0, {f"item-{other}": 1.0 + other for other in range(1, 30)})
    page = await page_of(make_recommender(catalog, num_beams=400, beam_limit=400), Query(["item-0"], 79))
    answer = await ranked(make_item_ranker(catalog), ["item-0"], [each.item_id for each in page.items])
    assert [each.item_id for each in answer.items] == [each.item_id for each in page.items]
    np.testing.assert_allclose(
        [each.score for each in answer.items], [each.score for each in page.items], atol=1e-4
    )
    without = make_item_ranker(catalog_of(items))
    assert shown(answer) != shown(await ranked(without, ["item-0"], [each.item_id for each in page.items]))


# --- with a ranker ---


@pytest.mark.parametrize("seed", range(10))
async def test_a_ranker_gives_the_order_and_the_scores(make_item_ranker, ranker_session, seed):
    rng = random.Random(seed)
    items = items_without_text_twice(rng.choice([1, 40, 200]), seed)
    catalog = catalog_of(items)
    catalog.put("new", Sid((3, 1, 1), 50))
    popularity = {each.item_id: each.popularity for each in items}
    item_ranker = make_item_ranker(catalog, ranker=Ranker(ranker_session, RANKER_HISTORY_LENGTH, popularity))
    ids = [*popularity, "new"]
    for _ in range(6):
        history = rng.choices([*ids, "gone"], k=rng.randint(0, 6))
        asked = rng.choices([*ids, "no such item"], k=rng.randint(0, 100))
        answer = await ranked(item_ranker, history, asked)
        assert answer.by == "ranker", "also without a history"
        assert shown(answer) == by_ranker(catalog, history, asked, popularity)


async def test_lists_of_different_lengths_share_a_batch_of_the_ranker(make_item_ranker, ranker_session):
    items = items_without_text_twice(150, 11)
    catalog = catalog_of(items)
    popularity = {each.item_id: each.popularity for each in items}
    item_ranker = make_item_ranker(catalog, ranker=Ranker(ranker_session, RANKER_HISTORY_LENGTH, popularity))
    rng = random.Random(3)
    ids = list(popularity)
    pairs = [
        (rng.choices(ids, k=rng.randint(0, 5)), rng.sample(ids, k=rng.randint(0, 150))) for _ in range(40)
    ]
    answers = await asyncio.gather(*(ranked(item_ranker, *pair) for pair in pairs))
    for (history, asked), answer in zip(pairs, answers, strict=True):
        assert shown(answer) == by_ranker(catalog, history, asked, popularity)


async def test_the_ranker_reads_the_neighbors_of_the_history(make_item_ranker, ranker_session):
    items = items_without_text_twice(30, 12)
    catalog = catalog_of(items)
    catalog.co_counts = CoCounts(COUNTS, catalog.prefix_of)
    catalog.co_counts.set_row("item-0", 4.0, {"item-1": 3.0, "item-2": 1.0})
    for other in (1, 2):
        catalog.co_counts.set_row(f"item-{other}", 4.0, {"item-0": 1.0})
    item_ranker = make_item_ranker(catalog, ranker=Ranker(ranker_session, RANKER_HISTORY_LENGTH, {}))
    found = neighbors_of([read_history(catalog, ["item-0"])])
    mass = {
        catalog.spec.codes_of(prefix): own
        for prefix, own in zip(found.prefixes[0].tolist(), found.mass[0].tolist(), strict=True)
    }
    assert len(mass) == 2
    own = catalog.sid_of("item-0").codes
    expected = truth(
        catalog, lambda codes, _: known_ranker_score([own], codes, 0, mass), [each.item_id for each in items]
    )
    answer = await ranked(item_ranker, ["item-0"], [each.item_id for each in items])
    assert [each.item_id for each in answer.items] == [item_id for item_id, _ in expected]
    np.testing.assert_allclose([score for _, score in shown(answer)], [s for _, s in expected], atol=1e-5)


# --- limits, stages and metrics ---


async def test_a_full_queue_is_said_at_once_and_a_slow_ranking_is_given_up(make_item_ranker):
    catalog = catalog_of(items_without_text_twice(20, 8))
    crowded = make_item_ranker(catalog, max_queued_units=8)
    answers = await asyncio.gather(
        *(ranked(crowded, ["item-0"], ["item-1", "item-2"]) for _ in range(50)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert 0 < len(refused) < 50
    with pytest.raises(TookTooLong, match="The ranking"):
        await ranked(make_item_ranker(catalog, timeout_s=1e-9), ["item-0"], ["item-1"])


async def test_the_stages_and_the_counts_of_a_ranking_are_measured(make_item_ranker):
    stages, metrics = Stages(), Metrics()
    item_ranker = make_item_ranker(catalog_of(items_without_text_twice(20, 9)), metrics=metrics)
    await item_ranker.rank(Ranking(["item-0", "gone"], ["item-1", "item-2", "none"], 5), stages)
    assert stages.flow == "rank"
    assert list(stages.seconds) == ["queue", "history", "decode", "resolve"]
    value = metrics.registry.get_sample_value
    assert value("glyphrec_rankings_total", {"by": "generator", "filtered": "false"}) == 1
    assert value("glyphrec_ranked_items_sum") == 2
    assert value("glyphrec_unknown_ranked_items_total") == 1
    assert value("glyphrec_unknown_history_items_total") == 1
