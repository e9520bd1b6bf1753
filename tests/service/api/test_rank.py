"""POST /rank and reranked pages over HTTP: orders, scores, unknown items, filters, and what is refused."""

import asyncio

import pytest

from service.core.limits import MAX_CANDIDATES
from tests.known_bundle import KNOWN_ITEMS, known_codes, known_score
from tests.known_ranker import known_ranker_score, ranker_bundle, ranker_id_of
from tests.service.running import is_problem, running

ITEMS = [{"item_id": f"i{n}", "title": f"Thing {n}", "price": n, "available": n % 3 > 0} for n in range(60)]
IDS = [item["item_id"] for item in ITEMS]
CODES = {item["item_id"]: known_codes(item) for item in ITEMS}
FIELDS = {"filter_fields": "price:number", "seed_catalog": False, "max_wait_ms": 60_000}


@pytest.fixture(scope="session")
def with_ranker(tmp_path_factory):
    return ranker_bundle(tmp_path_factory.mktemp("ranked"), KNOWN_ITEMS)


@pytest.fixture
async def shop(bundle, redis_url):
    async with running(bundle, redis_url, **FIELDS) as client:
        await client.post("/items", json={"items": ITEMS})
        yield client


@pytest.fixture
async def ranked_shop(with_ranker, redis_url):
    async with running(with_ranker, redis_url, **FIELDS) as client:
        await client.post("/items", json={"items": ITEMS})
        yield client


async def post(client, path, **body) -> dict:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def best_first(score_of, item_ids) -> list[tuple[str, float]]:
    """Equal scores in the order of the codes; items with the same codes may stand in any order."""
    return sorted(
        ((each, score_of(CODES[each])) for each in item_ids), key=lambda pair: (-pair[1], CODES[pair[0]])
    )


def scores(answer, name="score") -> list[tuple[str, float]]:
    return [(row["item_id"], row[name]) for row in answer["items"]]


def same_order(found, expected) -> bool:
    return [score for _, score in found] == [score for _, score in expected] and sorted(found) == sorted(
        expected
    )


async def test_given_items_come_in_the_order_of_the_generator(shop):
    history = ["i4", "i9"]
    answer = await post(shop, "/rank", history=history, item_ids=[*IDS, "gone", "i3"])
    codes = [CODES[each] for each in history]
    expected = best_first(lambda own: known_score(codes, own), IDS)
    assert same_order(scores(answer), expected)
    assert answer["ranked_by"] == "generator"
    assert answer["unknown_item_ids"] == ["gone"]
    assert answer["unknown_history_ids"] == []
    assert (answer["matching_items"], answer["ranker_version"]) == (None, None)
    first = await post(shop, "/rank", history=history, item_ids=IDS, limit=7)
    assert first["items"] == answer["items"][:7]


async def test_an_item_has_the_score_of_its_place_on_a_page(shop):
    page = await post(shop, "/recommend", history=["i4", "never"], limit=20)
    asked = [row["item_id"] for row in page["items"]]
    answer = await post(shop, "/rank", history=["i4", "never"], item_ids=asked[::-1])
    assert scores(answer) == scores(page)
    assert [row["semantic_id"] for row in answer["items"]] == [row["semantic_id"] for row in page["items"]]
    assert answer["unknown_history_ids"] == ["never"]
    assert answer["model_version"] == page["model_version"]
    assert answer["catalog_version"] == page["catalog_version"]
    assert (page["exact_for"], page["ranker_version"]) == ("page", None)
    assert {row["ranker_score"] for row in page["items"]} == {None}


async def test_a_posted_item_is_ranked_at_once_and_a_deleted_one_is_named(shop):
    await shop.post("/items", json={"item_id": "late", "title": "A late thing"})
    answer = await post(shop, "/rank", history=["i1"], item_ids=["late", "i2"])
    assert sorted(row["item_id"] for row in answer["items"]) == ["i2", "late"]
    await shop.delete("/items/late")
    answer = await post(shop, "/rank", history=["i1"], item_ids=["late", "i2"])
    assert [row["item_id"] for row in answer["items"]] == ["i2"]
    assert answer["unknown_item_ids"] == ["late"]


async def test_only_items_that_pass_the_filter_are_ranked(shop):
    conditions = {"attributes": {"price": {"lt": 20}}, "available": True, "exclude_item_ids": ["i4"]}
    answer = await post(shop, "/rank", history=["i1"], item_ids=IDS, filter=conditions)
    passing = [item["item_id"] for item in ITEMS if item["price"] < 20 and item["available"]]
    assert sorted(row["item_id"] for row in answer["items"]) == sorted({*passing} - {"i4"})
    assert answer["matching_items"] == len(passing)


async def test_without_a_known_history_popular_items_come_first(bundle, redis_url):
    popularity = {each.item_id: each.popularity for each in KNOWN_ITEMS}
    async with running(bundle, redis_url) as client:
        answer = await post(client, "/rank", history=["gone"], item_ids=list(popularity))
    assert (answer["ranked_by"], answer["unknown_history_ids"]) == ("popularity", ["gone"])
    assert {row["score"] for row in answer["items"]} == {None}
    found = [popularity[row["item_id"]] for row in answer["items"]]
    assert found == sorted(popularity.values(), reverse=True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"item_ids": ["i1"]}, "history"),
        ({"history": []}, "item_ids"),
        ({"history": [], "item_ids": "i1"}, "item_ids"),
        ({"history": [], "item_ids": [""]}, "item_ids.0"),
        ({"history": [], "item_ids": ["i1"] * (MAX_CANDIDATES + 1)}, "item_ids"),
        ({"history": ["i1"] * 501, "item_ids": []}, "history"),
        ({"history": [], "item_ids": [], "limit": 0}, "limit"),
        ({"history": [], "item_ids": [], "limit": MAX_CANDIDATES + 1}, "limit"),
        ({"history": [], "item_ids": [], "rerank": True}, "rerank"),
    ],
)
async def test_a_body_of_another_shape_is_refused_by_its_field(shop, body, field):
    answer = await shop.post("/rank", json=body)
    assert is_problem(answer, 422, "invalid-request")
    assert [each["field"] for each in answer.json()["errors"]] == [field]


async def test_an_undeclared_field_of_a_filter_is_refused(shop):
    body = {"history": [], "item_ids": ["i1"], "filter": {"attributes": {"weight": {"lt": 1}}}}
    assert is_problem(await shop.post("/rank", json=body), 422, "unknown-filter-field")


async def test_the_largest_request_is_answered_whole(shop):
    many = [*IDS, *(f"none-{n}" for n in range(MAX_CANDIDATES - len(IDS)))]
    answer = await post(shop, "/rank", history=["i1"], item_ids=many)
    assert len(answer["items"]) == len(IDS)
    assert answer["unknown_item_ids"] == many[len(IDS) :]


async def test_a_ranking_tells_its_stages_and_counts_in_the_metrics(shop):
    answer = await shop.post("/rank", json={"history": ["i1"], "item_ids": IDS})
    told = [each.partition(";")[0] for each in answer.headers["server-timing"].split(", ")]
    assert told == ["parse", "queue", "history", "decode", "resolve", "write", "total"]
    metrics = (await shop.get("/metrics")).text
    for line in (
        'glyphrec_http_requests_total{method="POST",route="/rank",status="200"} 1.0',
        'glyphrec_rankings_total{by="generator",filtered="false"} 1.0',
        'glyphrec_stage_seconds_count{flow="rank",stage="decode"} 1.0',
        'glyphrec_batch_units_sum{queue="rankings"} 60.0',
        "glyphrec_ranked_items_sum 60.0",
    ):
        assert line in metrics
    info = (await shop.get("/info")).json()
    assert (info["ranker"], info["limits"]["rank_items"]) == (None, MAX_CANDIDATES)


async def test_a_page_is_not_reranked_without_a_ranker(shop):
    answer = await shop.post("/recommend", json={"history": ["i1"], "rerank": True})
    assert is_problem(answer, 409, "no-ranker")
    assert "docs/export.md" in answer.json()["detail"]


# --- with a ranker ---


async def test_a_ranker_orders_given_items_also_without_a_history(ranked_shop):
    for history in (["i4", "i9", "i2", "i7"], [], ["gone"]):
        answer = await post(ranked_shop, "/rank", history=history, item_ids=[*IDS, "missing"])
        codes = [CODES[each] for each in history if each in CODES]
        expected = best_first(lambda own, codes=codes: known_ranker_score(codes, own, 0), IDS)
        assert same_order(scores(answer), expected)
        assert (answer["ranked_by"], answer["ranker_version"]) == ("ranker", ranker_id_of(1))
        assert answer["unknown_item_ids"] == ["missing"]


async def test_a_ranker_knows_the_popularity_of_the_bundles_items(with_ranker, redis_url):
    codes = {each.item_id: each.codes for each in KNOWN_ITEMS}
    async with running(with_ranker, redis_url) as client:
        answer = await post(client, "/rank", history=["item-3"], item_ids=list(codes))
    for row in answer["items"]:
        (item,) = (each for each in KNOWN_ITEMS if each.item_id == row["item_id"])
        assert row["score"] == known_ranker_score([codes["item-3"]], item.codes, item.popularity)


@pytest.mark.parametrize("guarantee", ["none", "exact"])
async def test_a_reranked_page_has_the_same_items_in_the_rankers_order(ranked_shop, guarantee):
    body = {"history": ["i4", "i9"], "limit": 20, "guarantee": guarantee}
    page = await post(ranked_shop, "/recommend", **body)
    reranked = await post(ranked_shop, "/recommend", **body, rerank=True)
    assert sorted(scores(reranked)) == sorted(scores(page))
    codes = [CODES[each] for each in body["history"]]
    expected = best_first(lambda own: known_ranker_score(codes, own, 0), [each for each, _ in scores(page)])
    assert same_order(scores(reranked, "ranker_score"), expected)
    assert scores(reranked) != scores(page)
    assert (reranked["exact"], reranked["exact_for"]) == (page["exact"], "candidates")
    assert reranked["ranker_version"] == ranker_id_of(1)
    if guarantee == "exact":
        assert reranked["exact"]


async def test_what_fills_a_page_up_is_reranked_with_it(ranked_shop):
    page = await post(ranked_shop, "/recommend", history=["gone"], limit=60, rerank=True)
    assert page["source"] == "popular"
    assert {row["score"] for row in page["items"]} == {None}
    expected = best_first(lambda own: known_ranker_score([], own, 0), IDS)
    assert same_order(scores(page, "ranker_score"), expected)


async def test_a_reranked_page_keeps_filter_and_diversity(ranked_shop):
    body = {
        "history": ["i4"],
        "limit": 10,
        "filter": {"available": True},
        "diversity": {"max_per_first_code": 1},
    }
    page = await post(ranked_shop, "/recommend", **body)
    reranked = await post(ranked_shop, "/recommend", **body, rerank=True)
    assert sorted(scores(reranked)) == sorted(scores(page))


async def test_reranked_and_other_pages_at_once_are_those_they_would_be_alone(ranked_shop):
    bodies = [{"history": [f"i{n}"], "limit": 5 + n % 7, "rerank": n % 2 == 0} for n in range(40)]
    alone = [await post(ranked_shop, "/recommend", **body) for body in bodies]
    together = await asyncio.gather(*(post(ranked_shop, "/recommend", **body) for body in bodies))
    assert together == alone


async def test_a_reranked_page_tells_its_stage_and_the_service_its_ranker(ranked_shop):
    answer = await ranked_shop.post("/recommend", json={"history": ["i4"], "limit": 10, "rerank": True})
    assert "rerank" in answer.headers["server-timing"]
    metrics = (await ranked_shop.get("/metrics")).text
    assert "glyphrec_reranked_pages_total 1.0" in metrics
    (labels,) = (line for line in metrics.splitlines() if line.startswith("glyphrec_ranker_info{"))
    assert f'ranker_id="{ranker_id_of(1)}"' in labels
    info = (await ranked_shop.get("/info")).json()
    assert info["ranker"]["ranker_id"] == ranker_id_of(1)
