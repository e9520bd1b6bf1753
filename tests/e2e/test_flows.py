"""Both flows through real processes: a real bundle, a real Redis, HTTP over sockets."""

import concurrent.futures
import signal
import time
from typing import Any

import httpx
import pytest

from model_export.local_service import LocalService, local_service

NEW = {"item_id": "new-1", "title": "Hot sauce extra smoky 5 oz", "categories": ["Grocery", "Condiments"]}


@pytest.fixture
def pair(tiny_export, redis_url, tmp_path):
    """Two replicas on one Redis."""
    path = tiny_export.bundle.path
    with (
        local_service(path, redis_url=redis_url, log=tmp_path / "a.log") as first,
        local_service(path, redis_url=redis_url, log=tmp_path / "b.log") as second,
    ):
        yield first, second


@pytest.fixture
def history(tiny_export) -> list[str]:
    return [tiny_export.dataset.item_ids[item] for item in tiny_export.dataset.sequences[0][:5]]


def posted(server: LocalService, *items: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.client.post("/items", json={"items": list(items)}).raise_for_status().json()
    assert [row["error"] for row in answer["items"]] == [None] * len(items)
    return answer["items"]


def recommended_by_the_model(
    server: LocalService, history: list[str], everything_else: list[str]
) -> list[str]:
    """What is left of the model's ranking when all items of the export are excluded."""
    body = {"history": history, "limit": 10, "exclude_item_ids": everything_else}
    answer = server.client.post("/recommend", json=body).raise_for_status().json()
    assert answer["source"] == "model"
    return [row["item_id"] for row in answer["items"] if row["score"] is not None]


def until(claim: Any, within_s: float) -> float:
    """Seconds until `claim()` holds; fails where it does not in time."""
    started = time.perf_counter()
    while not claim():
        assert time.perf_counter() - started < within_s, "not in time"
    return time.perf_counter() - started


def test_a_posted_item_is_recommendable_at_once_here_and_within_a_second_there(pair, history, tiny_export):
    first, second = pair
    known = tiny_export.dataset.item_ids
    assert recommended_by_the_model(first, history, known) == []
    posted(first, NEW)
    assert recommended_by_the_model(first, history, known) == ["new-1"]
    until(lambda: recommended_by_the_model(second, history, known) == ["new-1"], within_s=1)
    assert first.client.delete("/items/new-1").status_code == httpx.codes.OK
    assert recommended_by_the_model(first, history, known) == []
    until(lambda: recommended_by_the_model(second, history, known) == [], within_s=1)


def test_posting_again_changes_nothing_and_new_text_moves_the_item(pair):
    first, second = pair
    (created,) = posted(first, NEW)
    assert created["status"] == "created"
    (again,) = posted(second, NEW)
    assert (again["status"], again["semantic_id"]) == ("unchanged", created["semantic_id"])
    digest = second.client.get("/info").json()["catalog"]["digest"]
    (repriced,) = posted(first, {**NEW, "title": "Motor oil 10w-40 5 qt", "categories": ["Automotive"]})
    assert repriced["status"] == "moved"
    assert repriced["codes"] != created["codes"]
    until(lambda: second.client.get("/items/new-1").json()["semantic_id"] == repriced["semantic_id"], 1)
    until(lambda: second.client.get("/info").json()["catalog"]["digest"] != digest, 1)


def test_posts_from_two_replicas_at_once_never_share_a_sid(pair):
    """Forty items that look the same, so that all of them want the same slot."""
    items = [{"item_id": f"twin-{n}", "title": "Paper towels 6 rolls"} for n in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(posted, pair[n % 2], item) for n, item in enumerate(items)]
        results = [future.result()[0] for future in futures]
    assert len({str(result["codes"]) for result in results}) == 1
    assert len({result["semantic_id"] for result in results}) == len(items)
    digests = [lambda r=r: r.client.get("/info").json()["catalog"] for r in pair]
    until(lambda: digests[0]()["digest"] == digests[1]()["digest"], 2)
    assert digests[0]()["items"] == digests[1]()["items"]


def test_the_items_of_the_bundle_are_served_from_the_start_with_their_codes(pair, tiny_export):
    for item in tiny_export.dataset.items[:20]:
        answer = pair[1].client.get(f"/items/{item['item_id']}").raise_for_status().json()
        assert answer["item"] == item
    assert pair[0].client.get("/info").json()["catalog"]["items"] == tiny_export.dataset.num_items
    # A re-post of what export had tokenized keeps the code also where collisions had been reassigned.
    results = posted(pair[0], *tiny_export.dataset.items)
    assert {result["status"] for result in results} == {"unchanged"}


def test_a_page_is_full_and_never_leaves_the_catalog(pair, history, tiny_export):
    answer = pair[0].client.post("/recommend", json={"history": history, "limit": 100}).json()
    ids = [row["item_id"] for row in answer["items"]]
    assert len(ids) == len(set(ids)) == 100
    assert set(ids) <= set(tiny_export.dataset.item_ids) - set(history)
    scores = [row["score"] for row in answer["items"] if row["score"] is not None]
    assert scores == sorted(scores, reverse=True)


def test_sigterm_ends_a_replica_with_status_zero_and_its_socket_closed(pair):
    first, _ = pair
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(15) == 0
    with pytest.raises(httpx.TransportError):
        first.client.get("/health/live")
