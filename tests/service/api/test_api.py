"""The HTTP API of a whole service with a real Redis."""

import asyncio
import json
import subprocess
import sys
import threading

import pytest

from service.app import create_app
from service.core.bundle import MANIFEST
from service.errors import ContractMismatch
from service.settings import Settings
from service.store.client import connect
from tests.known_bundle import (
    KNOWN_ITEMS,
    PAGED,
    SPEC,
    KnownItem,
    known_codes,
    ranking,
    write_known_bundle,
)
from tests.service.running import is_problem, running, starting, until_ready

# --- the two flows ---


async def test_a_new_catalog_starts_with_the_items_and_codes_of_the_bundle(client):
    info = (await client.get("/info")).json()
    assert info["catalog"]["items"] == len(KNOWN_ITEMS)
    for each in KNOWN_ITEMS:
        found = (await client.get(f"/items/{each.item_id}")).json()
        assert (tuple(found["codes"]), found["item"]) == (each.codes, each.item)


async def test_recommendations_are_the_ranking_of_the_model(client):
    history = [KNOWN_ITEMS[3], KNOWN_ITEMS[8]]
    body = {"history": [each.item_id for each in history], "limit": 5, "guarantee": "exact"}
    answer = (await client.post("/recommend", json=body)).json()
    ranked = ranking([each.codes for each in history], {each.codes for each in KNOWN_ITEMS})
    scores = {codes: score for score, codes in ranked}
    best = sorted(
        (each for each in KNOWN_ITEMS if each not in history),
        key=lambda each: (-scores[each.codes], each.codes, KNOWN_ITEMS.index(each)),
    )[:5]
    assert [item["item_id"] for item in answer["items"]] == [each.item_id for each in best]
    assert [item["score"] for item in answer["items"]] == [scores[each.codes] for each in best]
    assert answer["exact"] is True
    assert answer["search"] == {"num_beams": 50, "widened": 0, "beam_limit_reached": False}
    assert answer["matching_items"] is None
    assert answer["source"] == "model"
    assert answer["model_version"] == "ba9876543210"
    assert answer["catalog_version"] == len(KNOWN_ITEMS)
    assert answer["unknown_item_ids"] == []


async def test_a_posted_item_is_recommended_by_the_next_request_and_a_deleted_one_by_none(client):
    body = {"history": ["item-0"], "limit": 100}

    async def recommended():
        return {item["item_id"] for item in (await client.post("/recommend", json=body)).json()["items"]}

    assert "new" not in await recommended()
    answer = (await client.post("/items", json={"item_id": "new", "title": "Brand new"})).json()
    assert [item["status"] for item in answer["items"]] == ["created"]
    assert tuple(answer["items"][0]["codes"]) == known_codes({"item_id": "new", "title": "Brand new"})
    assert "new" in await recommended()
    deleted = await client.delete("/items/new")
    assert deleted.json()["catalog_version"] == answer["catalog_version"] + 1
    assert "new" not in await recommended()
    assert is_problem(await client.delete("/items/new"), 404, "item-not-found")


async def test_an_item_can_be_the_history_at_once(client):
    await client.post("/items", json={"item_id": "new", "title": "Brand new"})
    answer = (await client.post("/recommend", json={"history": ["new"]})).json()
    assert (answer["source"], answer["unknown_item_ids"], len(answer["items"])) == ("model", [], 10)


async def test_excluded_items_never_come_and_history_only_where_asked_for(client):
    excluded = [each.item_id for each in KNOWN_ITEMS[5:]]
    body = {"history": ["item-0"], "exclude_item_ids": excluded}
    answer = (await client.post("/recommend", json=body)).json()
    assert {item["item_id"] for item in answer["items"]} == {f"item-{i}" for i in range(1, 5)}
    answer = (await client.post("/recommend", json=body | {"exclude_history": False})).json()
    assert {item["item_id"] for item in answer["items"]} == {f"item-{i}" for i in range(5)}


async def test_unknown_histories_get_popular_items_and_are_reported(client):
    answer = (await client.post("/recommend", json={"history": ["nobody", "knows"], "limit": 4})).json()
    best = sorted(KNOWN_ITEMS, key=lambda each: (-each.popularity, each.item_id))[:4]
    assert [item["item_id"] for item in answer["items"]] == [each.item_id for each in best]
    assert all(item["score"] is None for item in answer["items"])
    assert (answer["source"], answer["unknown_item_ids"]) == ("popular", ["nobody", "knows"])
    assert (answer["search"], answer["exact"]) == (None, False)


async def test_a_bundle_for_fewer_beams_than_asked_for_is_served_with_those_and_a_warning(
    redis_url, tmp_path, caplog
):
    narrow = write_known_bundle(tmp_path, KNOWN_ITEMS, beam_limit=8)
    async with running(narrow, redis_url, num_beams=50) as client:
        assert "GLYPHREC_NUM_BEAMS is 50" in caplog.text
        assert "at most 8 beams" in caplog.text
        limits = (await client.get("/info")).json()["limits"]
        assert (limits["num_beams"], limits["beam_limit"]) == (8, 8)
        answer = (await client.post("/recommend", json={"history": ["item-0"], "limit": 20})).json()
        assert len(answer["items"]) == 20
        assert answer["search"] == {"num_beams": 8, "widened": 0, "beam_limit_reached": True}
        assert answer["exact"] is False


def test_a_graph_for_other_tables_than_the_manifests_spec_has_is_refused_at_start(tmp_path):
    folder = write_known_bundle(tmp_path, KNOWN_ITEMS)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sid"]["levels"] = [32, 4, 9]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    complaint = (
        r"manifest\.json: .*recommender: its tensors are not those of levels \(32, 4, 9\)\. Export again"
    )
    with pytest.raises(ContractMismatch, match=complaint):
        create_app(Settings(bundle=folder))


async def test_a_catalog_in_pages_is_served_like_one_in_rows(client, redis_url, tmp_path):
    paged = write_known_bundle(tmp_path, KNOWN_ITEMS, PAGED)
    async with running(paged, redis_url) as other:
        for item_id in ("item-0", "item-7", "item-20"):
            body = {"history": [item_id], "limit": 100}
            answers = [(await each.post("/recommend", json=body)).json() for each in (client, other)]
            assert answers[0] == answers[1]


async def test_paging_gives_every_item_once_in_trie_order(client):
    found, cursor = [], None
    while True:
        params = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/items", params=params)).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(each["item"]["item_id"] for each in found) == sorted(each.item_id for each in KNOWN_ITEMS)
    assert [each["codes"] for each in found] == sorted(each["codes"] for each in found)


async def test_similar_items_share_the_longest_prefix_first_then_popularity(client):
    params = {"limit": 100, "by": "codes"}
    for own in KNOWN_ITEMS:
        answer = (await client.get(f"/items/{own.item_id}/similar", params=params)).json()

        def shared(other, own=own):
            return next((i for i in range(3) if own.codes[i] != other.codes[i]), 3)

        expected = sorted(
            (each for each in KNOWN_ITEMS if each is not own and shared(each)),
            key=lambda each: (-shared(each), -each.popularity, each.codes, KNOWN_ITEMS.index(each)),
        )
        assert [(n["item_id"], n["shared_levels"]) for n in answer["items"]] == [
            (each.item_id, shared(each)) for each in expected
        ]
        fewer = (await client.get(f"/items/{own.item_id}/similar", params=params | {"limit": 1})).json()
        assert fewer["items"] == answer["items"][:1]


async def test_an_item_can_be_looked_at(client):
    response = await client.get("/items/item-0/image")
    assert response.headers["content-type"] == "image/png"
    assert response.content.startswith(b"\x89PNG")
    assert is_problem(await client.get("/items/nobody/image"), 404, "item-not-found")


@pytest.mark.parametrize("item_id", ["a/b", "a b", "é🍕", "%2F", "a?b#c", "..", "שלום"])
async def test_an_id_may_be_any_text(client, item_id):
    assert (await client.post("/items", json={"item_id": item_id, "title": "x"})).status_code == 200
    path = "/items/" + "".join(f"%{byte:02X}" for byte in item_id.encode())
    assert (await client.get(path)).json()["item"]["item_id"] == item_id
    assert (await client.get(path + "/similar")).json()["item_id"] == item_id
    assert (await client.delete(path)).json()["item_id"] == item_id
    assert is_problem(await client.get(path), 404, "item-not-found")


async def test_two_replicas_see_each_others_items(bundle, redis_url):
    async with running(bundle, redis_url) as one, running(bundle, redis_url) as two:
        posted = (await one.post("/items", json={"item_id": "new", "title": "From one"})).json()
        async with asyncio.timeout(5):
            while (await two.get("/info")).json()["catalog"]["version"] < posted["catalog_version"]:
                await asyncio.sleep(0.01)
        body = {"history": ["new"], "limit": 100, "exclude_history": False}
        answers = [(await each.post("/recommend", json=body)).json() for each in (one, two)]
        assert answers[0] == answers[1]
        digests = {(await each.get("/info")).json()["catalog"]["digest"] for each in (one, two)}
        assert len(digests) == 1


async def test_a_restart_keeps_what_was_posted_and_deleted(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        posted = (await client.post("/items", json={"item_id": "new", "title": "Brand new"})).json()
        await client.post("/items", json={"item_id": "item-1", "title": "Changed"})
        await client.delete("/items/item-2")
        await until_active(redis_url)
        before = (await client.get("/info")).json()["catalog"]
    async with running(bundle, redis_url) as client:
        assert (await client.get("/info")).json()["catalog"] == before
        assert (await client.get("/items/new")).json()["codes"] == posted["items"][0]["codes"]
        assert (await client.get("/items/item-1")).json()["item"]["title"] == "Changed"
        assert (await client.get("/items/item-2")).status_code == 404


async def until_active(redis_url):
    """The start ends in the background with one last write."""
    redis = connect(redis_url)
    async with asyncio.timeout(10):
        while not await redis.get("{glyphrec}:active"):
            await asyncio.sleep(0.01)
    await redis.aclose()


async def test_a_catalog_that_is_not_seeded_starts_empty(bundle, redis_url):
    async with running(bundle, redis_url, seed_catalog=False) as client:
        assert (await client.get("/info")).json()["catalog"]["items"] == 0
        answer = (await client.post("/recommend", json={"history": ["a"]})).json()
        assert (answer["items"], answer["source"]) == ([], "popular")


async def test_a_start_warns_that_it_filled_a_new_catalog_and_a_later_one_does_not(bundle, redis_url, caplog):
    """After a FLUSHALL the same start would bring deleted items back."""
    for num_warnings in (1, 0):
        caplog.clear()
        async with running(bundle, redis_url) as client:
            await until_active(redis_url)
            told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
            told = [each for each in told if "Redis had no catalog 'glyphrec'" in each]
            assert len(told) == num_warnings
            assert all(f"the bundle's {len(KNOWN_ITEMS)} items" in each for each in told)
            assert 'glyphrec_catalog_info{catalog="glyphrec"} 1.0' in (await client.get("/metrics")).text


async def test_a_new_tokenizer_reads_what_is_in_redis_and_takes_the_exports_codes_where_it_knows_them(
    bundle, redis_url, tmp_path
):
    async with running(bundle, redis_url) as client:
        await client.post("/items", json={"item_id": "new", "title": "Brand new"})
        await client.delete("/items/item-2")
        await until_active(redis_url)
    # Another tokenizer has other codes for the items that both export, an item of its own, and other ids.
    items = [each._replace(codes=(31, 3, 2)) for each in KNOWN_ITEMS[:10]]
    items.append(KnownItem("only-here", (0, 0, 0), 9, {"item_id": "only-here", "title": "Only here"}))
    other = write_known_bundle(tmp_path / "other", items)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0123456789ab", "ffffffffffff"))
    async with running(other, redis_url) as client:
        redis = connect(redis_url)
        async with asyncio.timeout(10):
            while await redis.get("{glyphrec}:active") != b"ffffffffffff":
                await asyncio.sleep(0.01)
            while (await client.get("/info")).json()["catalog"]["items"] < len(KNOWN_ITEMS):
                await asyncio.sleep(0.01)
        await redis.aclose()
        for each in KNOWN_ITEMS[:10]:
            if each.item_id != "item-2":
                assert (await client.get(f"/items/{each.item_id}")).json()["codes"] == [31, 3, 2]
        for each in KNOWN_ITEMS[10:]:
            assert tuple((await client.get(f"/items/{each.item_id}")).json()["codes"]) == known_codes(
                each.item
            )
        assert (await client.get("/items/item-2")).status_code == 404
        assert (await client.get("/items/only-here")).status_code == 404
        assert (await client.get("/items/new")).status_code == 200


# --- around every request ---


async def test_a_request_id_comes_back_where_it_is_fit_to(client):
    kept = await client.get("/health/live", headers={"X-Request-ID": "trace-1:a.b_c"})
    assert kept.headers["x-request-id"] == "trace-1:a.b_c"
    for unfit in ("with space", "x" * 129, "", "new\tline"):
        response = await client.get("/health/live", headers={"X-Request-ID": unfit})
        assert response.headers["x-request-id"] not in ("", unfit)


async def test_server_timing_gives_the_stages_of_both_flows(client):
    recommended = await client.post("/recommend", json={"history": ["item-0"]})
    told = ["parse", "queue", "history", "decode", "resolve", "write", "total"]
    assert stages_of(recommended) == told
    indexed = await client.post("/items", json={"item_id": "a", "title": "x"})
    told = ["parse", "held", "render", "queue", "tokenise", "store", "follow", "write", "total"]
    assert stages_of(indexed) == told
    assert stages_of(await client.patch("/items/a", json={"title": "y"})) == told
    assert stages_of(await client.get("/nowhere")) == ["total"]


def stages_of(response):
    return [part.split(";dur=")[0].strip() for part in response.headers["server-timing"].split(",")]


async def test_metrics_count_requests_by_route_and_describe_the_replica(client):
    for _ in range(3):
        await client.post("/recommend", json={"history": ["item-0"]})
    await client.get("/items/item-0")
    await client.get("/items/item-1")
    await client.get("/no/such/route")
    await client.request("BREW", "/items")
    text = (await client.get("/metrics")).text
    for line in (
        'glyphrec_http_requests_total{method="POST",route="/recommend",status="200"} 3.0',
        'glyphrec_http_requests_total{method="GET",route="/items/{item_id:path}",status="200"} 2.0',
        'glyphrec_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'glyphrec_http_requests_total{method="other",route="/items",status="405"} 1.0',
        'glyphrec_stage_seconds_count{flow="recommend",stage="decode"} 3.0',
        'glyphrec_recommendations_total{exact="true",filtered="false",source="model"} 3.0',
        f"glyphrec_catalog_items {len(KNOWN_ITEMS)}.0",
        f"glyphrec_catalog_version {len(KNOWN_ITEMS)}.0",
        "glyphrec_catalog_stale_seconds 0.0",
        "glyphrec_ready 1.0",
        'glyphrec_queue_units{queue="recommender"} 0.0',
        'glyphrec_model_info{config="known",data="known",generator="known",recommender_id="ba9876543210",'
        'tokenizer_id="0123456789ab"} 1.0',
    ):
        assert line in text, line
    assert "process_resident_memory_bytes" in text


async def test_info_says_what_is_served(client):
    info = (await client.get("/info")).json()
    assert (info["tokenizer_id"], info["recommender_id"]) == ("0123456789ab", "ba9876543210")
    assert info["levels"] == list(SPEC.levels)
    assert info["metrics"] == {"recall@10": 0.5}
    assert info["render"]["height_px"] == 16
    assert info["limits"]["beam_limit"] == 64
    assert info["redis"]["eviction"] == "noeviction"


async def test_the_api_describes_itself(client):
    openapi = (await client.get("/openapi.json")).json()
    assert {"/items", "/recommend", "/info", "/health/live", "/health/ready"} <= openapi["paths"].keys()
    assert "HTTPValidationError" not in openapi["components"]["schemas"]
    posted = openapi["paths"]["/items"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [each.get("title") or each["$ref"] for each in posted["oneOf"]] == [
        "#/components/schemas/ItemsRequest",
        "Item",
    ]


# --- starting, losing Redis, ending ---


async def test_until_redis_is_there_it_lives_but_is_not_ready_and_says_why(
    bundle, redis_server, redis, tmp_path
):
    late = tmp_path / "late.sock"
    async with starting(bundle, f"unix://{late}") as (app, client):
        assert (await client.get("/health/live")).json() == {"status": "alive"}
        async with asyncio.timeout(10):
            while "Redis" not in (await client.get("/health/ready")).json()["phase"]:
                await asyncio.sleep(0.01)
        response = await client.get("/health/ready")
        assert response.status_code == 503
        assert response.json()["status"] == "starting"
        assert is_problem(await client.post("/recommend", json={"history": []}), 503, "not-ready")
        assert is_problem(await client.get("/items/item-0"), 503, "not-ready")
        assert (await client.get("/metrics")).status_code == 200
        await redis.flushall()
        late.symlink_to(redis_server.url.removeprefix("unix://"))
        await until_ready(app)
        assert (await client.get("/health/ready")).json()["catalog_items"] == len(KNOWN_ITEMS)


async def test_without_redis_it_goes_on_recommending_says_so_and_refuses_changes(
    bundle, redis_server, redis, tmp_path
):
    assert await redis.dbsize() == 0
    socket = tmp_path / "redis.sock"
    socket.symlink_to(redis_server.url.removeprefix("unix://"))
    async with running(bundle, f"unix://{socket}") as client:
        before = (await client.post("/recommend", json={"history": ["item-0"]})).json()
        socket.unlink()
        await redis.client_kill_filter(_type="normal", skipme=True)
        async with asyncio.timeout(10):
            while not (await client.get("/health/ready")).json()["stale"]:
                await asyncio.sleep(0.01)
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.json()["stale_for_s"] > 0
        assert (await client.post("/recommend", json={"history": ["item-0"]})).json() == before
        refused = await client.post("/items", json={"items": [{"item_id": "a", "title": "x"}]})
        assert is_problem(refused, 503, "store-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert (await client.get("/info")).json()["redis"] == {}
        socket.symlink_to(redis_server.url.removeprefix("unix://"))
        async with asyncio.timeout(10):
            while (await client.get("/health/ready")).json()["stale"]:
                await asyncio.sleep(0.01)
        assert (await client.post("/items", json={"item_id": "a", "title": "x"})).status_code == 200


async def test_a_failure_inside_is_a_problem_that_tells_nothing_of_itself(bundle, redis_url, caplog):
    async with starting(bundle, redis_url) as (app, client):
        await until_ready(app)

        @app.get("/broken")
        async def broken():
            raise KeyError("a secret of the house")

        response = await client.get("/broken", headers={"X-Request-ID": "find-me"})
        assert is_problem(response, 500, "internal")
        assert "secret" not in response.text
        assert "find-me" in caplog.text
        assert "a secret of the house" in caplog.text


async def test_overload_is_answered_with_when_to_come_back(bundle, redis_url):
    async with running(bundle, redis_url, max_queued_beams=50, num_beams=50) as client:
        answers = await asyncio.gather(
            *(client.post("/recommend", json={"history": ["item-0"]}) for _ in range(30))
        )
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 30
        for answer in refused:
            assert is_problem(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "1e3", "soon", "", "3601", "1.5.2", "٣"])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(client, timeout):
    headers = {"X-Request-Timeout": timeout.encode()}
    for answer in (
        await client.post("/recommend", json={"history": []}, headers=headers),
        await client.get("/info", headers=headers),
    ):
        assert is_problem(answer, 400, "bad-timeout")


async def test_a_request_that_has_no_time_left_is_answered_at_once_and_its_work_is_not_done(
    bundle, redis_url
):
    async with starting(bundle, redis_url) as (app, client):
        await until_ready(app)
        parts = app.state.service.readiness.model
        in_time = {"X-Request-Timeout": "10"}
        answer = await client.post("/recommend", json={"history": ["item-0"]}, headers=in_time)
        assert answer.status_code == 200
        async with parts.catalog.lock:  # no batch begins
            too_short = {"X-Request-Timeout": "0.05"}
            answer = await client.post("/recommend", json={"history": ["item-0"]}, headers=too_short)
            assert is_problem(answer, 503, "took-too-long")
            assert "within 0.0" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) >= 1
        await client.post("/recommend", json={"history": ["item-0"]})
        batches = (await client.get("/metrics")).text
        assert 'glyphrec_batch_jobs_sum{queue="recommender"} 2.0' in batches, "the first and the last"
        assert parts.searches.queued_units == 0


def after(event, call):
    """The call, which waits for the event first."""

    def wait(*args):
        assert event.wait(30)
        return call(*args)

    return wait


async def test_a_batch_of_items_meets_the_bound_that_single_ones_meet(bundle, redis_url, monkeypatch):
    """Few of twenty items at once are accepted, as one request or as twenty."""
    num_taken = {}
    for way in ("batch", "singles"):
        async with starting(bundle, redis_url, max_queued_strips=4, max_batch_strips=1) as (app, client):
            await until_ready(app)
            items = [{"item_id": f"{way}-{n}", "title": f"{way} {n}"} for n in range(20)]
            if way == "batch":
                results = (await client.post("/items", json={"items": items})).json()["items"]
                problems = [each["error"] for each in results]
            else:
                held, tokenizer = threading.Event(), app.state.service.readiness.model.loaded.tokenizer
                monkeypatch.setattr(tokenizer, "run", after(held, tokenizer.run))
                tasks = [asyncio.create_task(client.post("/items", json=each)) for each in items]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # which can only be a refusal
                held.set()
                answers = await asyncio.gather(*tasks)
                problems = [None if each.status_code == 200 else each.json() for each in answers]
            refused = [problem for problem in problems if problem]
            assert {problem["type"] for problem in refused} == {"urn:glyphrec:problem:overloaded"}
            assert {problem["status"] for problem in refused} == {429}
            num_taken[way] = len(items) - len(refused)
    assert 1 <= num_taken["batch"] <= 10
    assert num_taken["singles"] >= 1


def test_the_service_imports_no_training_code():
    code = (
        "import sys, service.app, service.cli; "
        "print([m for m in ('torch', 'transformers', 'model_export', 'onnx') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
