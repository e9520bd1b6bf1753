"""The values at /metrics, of whole services with a real Redis."""

import asyncio
import re
import threading
import time
from collections import Counter
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import ResponseError

from model_export.local_service import local_service
from service.catalog.catalog import Catalog
from service.core.sid import Sid
from service.core.trie import SidTrie
from service.store.client import connect
from service.telemetry.coverage import HALF_WINDOW_S, Coverage
from service.telemetry.gpu import find_nvml
from service.telemetry.metrics import Metrics
from tests.known_bundle import KNOWN_ITEMS, SPEC
from tests.service.catalogs import until
from tests.service.running import is_problem, running, starting, until_ready
from tests.service.scraping import by_label, read, scrape, value

# A metric's name ends, before _total, with a unit of Prometheus or with the counted things.
QUEUES = ("recommender", "rankings", "tokenizer", "query", "vectors", "beam")
UNITS = ("seconds", "bytes", "ratio")
COUNTED = (
    *("requests", "in_flight", "rejections", "units", "admissions", "jobs", "recommendations", "beams"),
    *("widenings", "items", "views", "hits", "misses", "evictions", "entries", "version", "in_use", "values"),
    *("calls", "swaps", "events", "attributed", "pairs", "pages", "rank", "info", "quality", "ready"),
    *("behind", "may_evict", "failing", "damaged", "pictures", "searches", "rows", "rankings", "queries"),
)


async def test_after_known_requests_every_metric_has_the_value_it_must_have(bundle, redis_url):
    trained = {each.item_id for each in KNOWN_ITEMS if each.popularity}
    assert 0 < len(trained) < len(KNOWN_ITEMS)
    async with running(bundle, redis_url, max_queued_beams=777, max_queued_strips=99) as client:
        bodies = [
            {"history": ["item-0", "item-1", "gone"], "limit": 5},
            {"history": ["item-7"], "limit": 20},
            {"history": ["item-3"], "filter": {"available": True}},
            {"history": ["nobody", "knows"], "limit": 4},
        ]
        pages = [(await client.post("/recommend", json=body)).json() for body in bodies]
        assert (await client.get("/items/item-0/similar")).status_code == 200
        assert (await client.post("/search", json={"query": "Thing"})).status_code == 200
        ranked = {"history": ["item-0"], "item_ids": ["item-1", "item-2", "gone"]}
        assert (await client.post("/rank", json=ranked)).status_code == 200
        assert (await client.post("/recommend", json={"history": 1})).status_code == 422
        for title in ("One", "One", "Two"):
            assert (await client.post("/items", json={"item_id": "new", "title": title})).status_code == 200
        assert (await client.delete("/items/new")).status_code == 200
        found = await scrape(client)

        shown = [item["item_id"] for page in pages for item in page["items"]]
        leaves = {each.codes for each in KNOWN_ITEMS}
        counts = {
            "recommended_items_total": {
                "trained": sum(item_id in trained for item_id in shown),
                "new": sum(item_id not in trained for item_id in shown),
            },
            "admissions_total": {
                **{"recommender": 4, "rankings": 1, "tokenizer": 2, "query": 1, "vectors": 2, "beam": 0},
            },
            "queue_limit_units": {
                **dict.fromkeys(("recommender", "rankings"), 777),
                **dict.fromkeys(("tokenizer", "query", "vectors"), 99),
                "beam": 4,
            },
            "queue_units": dict.fromkeys(QUEUES, 0),
            "running_units": dict.fromkeys(QUEUES, 0),
            "reserved_units": dict.fromkeys(QUEUES, 0),
            "batch_jobs_sum": {
                **{"recommender": 4, "rankings": 1, "tokenizer": 2, "query": 1, "vectors": 2, "beam": 0},
            },
            "rankings_total": {"ranker": 0, "generator": 1, "popularity": 0},
            "item_searches_total": {"text": 1, "item": 1},
            "bundle_swaps_total": {"switched": 0, "failed": 0},
            "feedback_events_total": {"taken": 0, "duplicate": 0},
            "offline_quality": {"recall@10": 0.5},
        }
        label_of = {
            "recommended_items_total": "novelty",
            "rankings_total": "by",
            "item_searches_total": "by",
            "bundle_swaps_total": "result",
            "feedback_events_total": "outcome",
            "offline_quality": "metric",
        }
        for name, expected in counts.items():
            assert by_label(found, name, label_of.get(name, "queue")) == expected, name
        outcomes = {("model", "true", "false"): 2, ("model", "true", "true"): 1}
        outcomes |= {("popular", "false", "false"): 1, ("similar", "true", "false"): 1}
        for (source, exact, filtered), count in outcomes.items():
            labels = {"source": source, "exact": exact, "filtered": filtered}
            assert value(found, "recommendations_total", **labels) == count, labels
        assert sum(by_label(found, "recommendations_total", "source").values()) == 5
        singles = {
            "valid_beams_count": 3,
            "valid_beams_sum": 3 * len(leaves),
            "widenings_total": 0,
            "ranked_items_sum": 2,
            "unknown_ranked_items_total": 1,
            "reranked_pages_total": 0,
            "recommended_distinct_items": len(set(shown)),
            "unknown_history_items_total": 3,
            "filter_views": 1,
            "filter_view_misses_total": 1,
            "catalog_items": len(KNOWN_ITEMS),
            "vector_items": len(KNOWN_ITEMS),
            "vector_missing_items": 0,
            "vector_pending_rows": 0,
            "catalog_version": len(KNOWN_ITEMS) + 3,
            "catalog_lag_entries": 0,
            "catalog_lag_seconds": 0,
            "catalog_stale_seconds": 0,
            "catalog_colliding_items": sum(
                [each.codes for each in KNOWN_ITEMS].count(each.codes) > 1 for each in KNOWN_ITEMS
            ),
            "catalog_slots_in_use": max(Counter(each.codes for each in KNOWN_ITEMS).values()),
            "ready": 1,
            "behind": 0,
            "catalog_damaged": 0,
            "http_requests_in_flight": 1,  # the scrape itself
            "feedback_remembered_pages": 4,
        }
        for name, expected in singles.items():
            assert value(found, name) == expected, name
        for level, num_codes in enumerate(SPEC.levels):
            used = len({codes[level] for codes in leaves}) / num_codes
            assert value(found, "codebook_used_ratio", level=str(level + 1)) == used
        assert abs(value(found, "bundle_loaded_timestamp_seconds") - time.time()) < 60
        for stage in ("parse", "history", "queue", "decode", "resolve", "write"):
            assert value(found, "stage_seconds_count", flow="recommend", stage=stage) == 4, stage
        for stage, count in {"render": 1, "queue": 1, "encode": 1, "wait": 2, "find": 2, "write": 1}.items():
            assert value(found, "stage_seconds_count", flow="search", stage=stage) == count, stage
        index = dict.fromkeys(("parse", "held", "follow", "write"), 3)
        index |= {"render": 2, "queue": 2, "tokenise": 2, "store": 3}
        for stage, count in index.items():
            assert value(found, "stage_seconds_count", flow="index", stage=stage) == count, stage
        assert value(found, "indexed_items_total", status="unchanged") == 1
        assert by_label(found, "rejections_total", "reason").total() == 0
        calls = {"put": len(KNOWN_ITEMS) + 3, "drop": 1}
        for command, count in calls.items():
            assert value(found, "redis_calls_total", command=command, result="ok") == count, command
            assert value(found, "redis_call_seconds_count", command=command) >= 1
        assert by_label(found, "redis_calls_total", "result")["error"] == 0
        assert value(found, "redis_calls_total", command="xread", result="ok") > 0


async def test_what_alerts_count_begins_at_zero(client):
    """A counter that is born above 0 shows no increase to Prometheus, so a first burst would page nobody."""
    found = await scrape(client)
    for status in ("500", "503", "507", "429", "200"):
        for route in ("/recommend", "/search", "/items", "/events"):
            labels = {"route": route, "method": "POST", "status": status}
            assert value(found, "http_requests_total", **labels) == 0, labels
    for outcome in ("answered", "refused"):
        labels = {"route": "/recommend", "method": "POST", "outcome": outcome}
        assert value(found, "http_request_seconds_count", **labels) == 0
    for status in ("created", "moved", "updated", "unchanged", "failed"):
        assert value(found, "indexed_items_total", status=status) == 0
    assert value(found, "http_requests_total", route="unread", method="other", status="503") == 0


async def test_the_time_of_a_refusal_does_not_count_as_that_of_an_answer(client):
    before = await scrape(client)
    await client.post("/recommend", json={"history": ["item-1"]}, headers={"X-Request-Timeout": "0.000001"})
    await client.post("/recommend", json={"history": 1})
    await client.post("/recommend", json={"history": ["item-1"]})
    after = await scrape(client)

    def num(found, outcome):
        labels = (("method", "POST"), ("outcome", outcome), ("route", "/recommend"))
        return found.get(("glyphrec_http_request_seconds_count", tuple(sorted(labels))), 0)

    for outcome in ("answered", "refused", "invalid"):
        assert num(after, outcome) - num(before, outcome) == 1, outcome


async def test_every_metric_has_a_help_and_says_what_it_counts(client):
    text = (await client.get("/metrics")).text
    families = [each for each in text_string_to_metric_families(text) if each.name.startswith("glyphrec_")]
    assert len(families) > 50
    for family in families:
        if family.name.endswith("_created"):
            continue
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.name.endswith((*UNITS, *COUNTED)), family.name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name


async def test_no_label_takes_a_value_from_a_request(client):
    mark = "zzyzx"
    headers = {"X-Request-ID": mark}
    await client.post("/items", json={"item_id": mark, "title": mark, mark: mark}, headers=headers)
    body = {"history": [mark], "exclude_item_ids": [mark], "filter": {"item_ids": [mark]}}
    await client.post("/recommend", json=body, headers=headers)
    await client.post("/recommend", json={mark: mark})
    for path in (
        f"/{mark}",
        f"/items/{mark}",
        f"/items/{mark}/similar",
        f"/items?cursor={mark}",
        f"/info?{mark}",
    ):
        for method in ("GET", "DELETE", mark.upper()):
            await client.request(method, path)
    event = {"event_id": mark, "request_id": mark, "item_id": mark}
    await client.post("/events", json={"events": [event]})
    assert mark not in (await client.get("/metrics")).text.lower()


async def test_what_is_turned_away_is_counted_by_its_reason(bundle, redis_url, tmp_path):
    async with starting(bundle, f"unix://{tmp_path}/nowhere.sock") as (app, client):
        for _ in range(2):
            assert is_problem(await client.post("/recommend", json={"history": []}), 503, "not-ready")
        found = read(generate_latest(app.state.service.metrics.registry).decode())
        assert value(found, "rejections_total", reason="not-ready") == 2
        assert value(found, "ready") == 0

        def failed():
            name = "glyphrec_redis_calls_total"
            return app.state.service.metrics.registry.get_sample_value(
                name, {"command": "info", "result": "error"}
            )

        await until(lambda: bool(failed()))
    async with starting(bundle, redis_url, recommend_timeout_s=0.001) as (app, client):
        await until_ready(app)
        async with app.state.service.model().catalog.lock:  # no search comes to its turn
            late = await client.post("/recommend", json={"history": []})
        assert is_problem(late, 503, "took-too-long")
        assert is_problem(await client.post("/nowhere"), 404, "no-such-route")
        refused = by_label(await scrape(client), "rejections_total", "reason")
        assert {reason: count for reason, count in refused.items() if count} == {"took-too-long": 1}


@pytest.mark.slow
async def test_a_catalog_that_cannot_take_in_the_log_shows_how_far_behind_it_is(bundle, redis_url):
    async with (
        running(bundle, redis_url) as writer,
        starting(bundle, redis_url) as (app, client),
    ):
        await until_ready(app)
        catalog = app.state.service.model().catalog

        async def lag():
            found = await scrape(client)
            return value(found, "catalog_lag_entries"), value(found, "catalog_lag_seconds")

        assert await lag() == (0, 0)
        seen = []
        async with catalog.lock:
            for n in range(1, 4):
                await writer.post("/items", json={"item_id": f"late-{n}", "title": f"Late {n}"})
                async with asyncio.timeout(20):
                    while (now := await lag())[0] < n:
                        await asyncio.sleep(0.05)
                seen.append(now)
        assert [entries for entries, _ in seen] == [1, 2, 3]
        assert 0 < seen[0][1] < seen[1][1] < seen[2][1]
        await until(lambda: catalog.has("late-3"))
        assert await lag() == (0, 0)


@pytest.mark.alone
async def test_the_event_loop_tells_how_long_it_was_held_up(bundle, redis_url):
    async with starting(bundle, redis_url) as (app, _):
        registry = app.state.service.metrics.registry
        await asyncio.sleep(0)  # the watch has begun
        time.sleep(0.75)

        def late_s():
            return registry.get_sample_value("glyphrec_event_loop_lag_seconds_sum")

        await until(lambda: late_s() >= 0.4)


async def test_calls_of_redis_are_counted_by_command_and_result(redis_server):
    told = []
    redis = connect(redis_server.url, observe=lambda *call: told.append(call))
    await redis.set("here", "1")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await redis.lpush("here", "2")
    with pytest.raises(ResponseError, match="no such key"):
        await redis.xinfo_stream("nowhere")  # an error is an answer too
    await redis.xread({"nowhere": "$"}, block=1)
    await redis.delete("here")
    await redis.aclose()
    assert [call[:3] for call in told] == [
        ("set", 1, 0),
        ("lpush", 0, 1),
        ("xinfo stream", 1, 0),
        ("xread", 1, 0),
        ("del", 1, 0),
    ]
    assert [call[3] is not None for call in told] == [True, True, True, False, True]


def test_the_window_of_recommended_items_counts_as_two_sets_would():
    now = 0.0
    coverage = Coverage(clock=lambda: now)
    noted = []  # (half, ids)
    pages = [(0, "ab"), (0, "bc"), (1, "cd"), (1, ""), (2, "a"), (2, "e"), (5, "f"), (6, "fg"), (7, "")]
    for half, ids in pages:
        now = half * HALF_WINDOW_S + 1
        coverage.note(ids)
        noted.append((half, ids))
        lately = {each for when, some in noted for each in some if when >= half - 1}
        assert coverage.num_items() == len(lately), (half, ids)
    now += 2 * HALF_WINDOW_S
    assert coverage.num_items() == 0


def test_without_a_gpu_there_are_no_metrics_of_one():
    if find_nvml() is not None:
        pytest.skip("this machine has a GPU")
    assert "glyphrec_gpu" not in generate_latest(Metrics().registry).decode()


def test_a_gpu_is_told_by_its_number_and_keeps_to_itself_what_it_does_not_know():
    class Unknown(Exception):
        pass

    def utilization(handle):
        if handle == "second":
            raise Unknown
        return SimpleNamespace(gpu=37)

    nvml = SimpleNamespace(
        NVMLError=Unknown,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=["first", "second"].__getitem__,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=len(handle), total=1000),
        nvmlDeviceGetUtilizationRates=utilization,
    )
    metrics = Metrics()
    metrics.watch_gpus(nvml)
    found = read(generate_latest(metrics.registry).decode())
    assert by_label(found, "gpu_memory_used_bytes", "gpu") == {"0": 5, "1": 6}
    assert by_label(found, "gpu_memory_total_bytes", "gpu") == {"0": 1000, "1": 1000}
    assert by_label(found, "gpu_utilization_ratio", "gpu") == {"0": 0.37}


def test_codes_are_read_from_the_tables_once_for_each_version(monkeypatch):
    reads = []
    truly = SidTrie.num_used_codes
    monkeypatch.setattr(SidTrie, "num_used_codes", lambda trie: reads.append(1) or truly(trie))
    catalog, metrics = Catalog(SPEC), Metrics()
    follower = SimpleNamespace(stale_for_s=0, lag=SimpleNamespace(num_changes=0, seconds=0), num_unreadable=0)
    metrics.watch_catalog(catalog, follower)
    for version in (1, 2):
        catalog.put(f"item-{version}", Sid((version, 0, 0), 0))
        catalog.version = version
        for _ in range(3):
            found = read(generate_latest(metrics.registry).decode())
            assert value(found, "codebook_used_ratio", level="1") == version / SPEC.levels[0]
        assert len(reads) == version


@pytest.mark.slow
def test_two_services_on_one_host_share_nothing_and_no_counter_goes_back(bundle, redis_url, tmp_path):
    with (
        local_service(bundle, redis_url=redis_url, log=tmp_path / "a.log") as busy,
        local_service(bundle, redis_url=redis_url, log=tmp_path / "b.log") as calm,
    ):
        is_over = threading.Event()
        sent = []

        def load():
            with httpx.Client(base_url=busy.url) as client:
                while not is_over.is_set():
                    sent.append(client.post("/recommend", json={"history": ["item-0"]}).status_code)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        before = {busy: {}, calm: {}}
        try:
            for _ in range(20):
                for service, samples in before.items():
                    text = service.client.get("/metrics").text
                    now = read(text)
                    growing = r"(_total|_count|_sum|_bucket)$"
                    for key, last in samples.items():
                        if re.search(growing, key[0]):
                            assert now.get(key, -1) >= last, key
                    before[service] = now
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        last = [read(service.client.get("/metrics").text) for service in (busy, calm)]
        assert set(sent) == {200}
        route = {"route": "/recommend", "method": "POST", "status": "200"}
        assert value(last[0], "http_requests_total", **route) == len(sent)
        assert by_label(last[1], "http_requests_total", "route")["/recommend"] == 0
        assert value(last[1], "recommended_distinct_items") == 0
