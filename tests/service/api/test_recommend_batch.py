"""POST /recommend/batch: each query has the outcome that POST /recommend gives it alone."""

import random

from service.core.limits import MAX_BATCH_QUERIES
from tests.service.catalogs import until_true
from tests.service.running import is_problem, running
from tests.service.scraping import by_label, scrape

QUERIES = [
    {"history": ["item-0", "gone"], "limit": 5},
    {"history": 1},
    {"history": ["item-3"], "filter": {"available": True}, "guarantee": "exact"},
    {"history": ["item-1"], "filter": {"none_such": 1}},
    {"history": [], "limit": 3},
    {},
]


async def alone(client, query):
    answer = await client.post("/recommend", json=query)
    return answer.status_code, answer.json()


async def test_each_query_has_the_page_or_the_problem_that_it_has_alone(client):
    answer = await client.post(
        "/recommend/batch", json={"queries": QUERIES}, headers={"X-Request-ID": "night"}
    )
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [each["request_id"] for each in results] == [f"night-{n}" for n in range(len(QUERIES))]
    for query, result in zip(QUERIES, results, strict=True):
        status, expected = await alone(client, query)
        if status == 200:
            assert (result["page"], result["problem"]) == (expected, None)
        else:
            assert result["page"] is None
            told = {**result["problem"], "instance": "/recommend", "request_id": expected["request_id"]}
            assert told == expected


async def test_queries_count_as_recommendations_and_as_queries_of_a_batch(client):
    before = await scrape(client)
    await client.post("/recommend/batch", json={"queries": QUERIES})
    after = await scrape(client)
    outcomes = by_label(after, "batch_queries_total", "outcome")
    outcomes.subtract(by_label(before, "batch_queries_total", "outcome"))
    assert outcomes == {"answered": 3, "invalid": 3, "refused": 0}
    stage = ("glyphrec_stage_seconds_count", (("flow", "recommend"), ("stage", "decode")))
    assert after[stage] - before.get(stage, 0) == 3


async def test_as_many_queries_as_are_allowed_are_answered_although_the_queue_holds_fewer(bundle, redis_url):
    async with running(bundle, redis_url, num_beams=10, max_batch_beams=20, max_queued_beams=40) as client:
        queries = [{"history": [f"item-{n % 30}"], "limit": 2} for n in range(MAX_BATCH_QUERIES)]
        results = (await client.post("/recommend/batch", json={"queries": queries})).json()["results"]
        assert [each["problem"] for each in results] == [None] * MAX_BATCH_QUERIES
        too_many = await client.post("/recommend/batch", json={"queries": [*queries, {}]})
        assert is_problem(too_many, 422, "invalid-request")
        assert is_problem(await client.post("/recommend/batch", json={"queries": []}), 422, "invalid-request")


async def test_an_event_finds_the_page_of_a_query_by_its_own_id(client):
    queries = {"queries": [{"history": ["item-0"]}, {"history": ["item-1"]}]}
    second = (await client.post("/recommend/batch", json=queries)).json()["results"][1]
    taken = second["page"]["items"][0]["item_id"]
    event = {"event_id": "e1", "request_id": second["request_id"], "item_id": taken}
    before = by_label(await scrape(client), "feedback_hits_total", "k")["1"]
    assert (await client.post("/events", json={"events": [event]})).status_code == 202

    async def is_attributed() -> bool:
        return by_label(await scrape(client), "feedback_hits_total", "k")["1"] == before + 1

    await until_true(is_attributed)


async def test_no_query_has_a_page_after_the_deadline_and_each_may_be_asked_again(client):
    late = await client.post(
        "/recommend/batch",
        json={"queries": [{"history": ["item-0"]}] * 3},
        headers={"X-Request-Timeout": "0.000001"},
    )
    # A query is late, or it is refused at once because its turn would come too late.
    assert [each["problem"]["status"] in (429, 503) for each in late.json()["results"]] == [True] * 3


async def test_whatever_the_queries_are_each_has_exactly_one_outcome(client):
    rng = random.Random(0)
    names = ["history", "limit", "guarantee", "filter", "exclude_item_ids", "diversity", "other"]
    values = [None, -1, 0, 3, 101, True, "exact", "item-0", [], ["item-0"], ["item-0", 1], {}, {"a": 1}]
    for _ in range(40):
        queries = [{name: rng.choice(values) for name in rng.sample(names, 3)} for _ in range(4)]
        answer = await client.post("/recommend/batch", json={"queries": queries})
        assert answer.status_code == 200, (queries, answer.text)
        results = answer.json()["results"]
        assert len(results) == len(queries)
        for result in results:
            assert (result["page"] is None) != (result["problem"] is None)
            assert result["problem"] is None or result["problem"]["status"] < 500
