"""POST /recommend over a socket, where ordinary requests take the shortcut, against the route of the app."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from itertools import pairwise

import httpx
import pytest

from service.api.recommend_shortcut import PreparedItems, ordinary_body
from service.app import create_app
from service.core.sid import Sid
from service.errors import StoppedServing
from service.flows.selection import Ranked
from service.http import connection
from service.http.connection import BODY_WAIT_S, MAX_WHOLE_BYTES
from service.http.listening import listen, tcp_sockets
from service.server import http_server
from service.settings import Settings
from tests.known_bundle import items_without_text_twice
from tests.service.recommending import catalog_of
from tests.service.running import is_problem, until_ready
from tests.service.scraping import scrape

KEY = "a-key-that-may-read-this"
JSON = {"content-type": "application/json"}


class Served:
    """One app, asked over a socket and without one."""

    def __init__(self, app, server, socket_client, app_client):
        self.app, self.server, self.socket, self.plain = app, server, socket_client, app_client
        self.num_taken = 0
        (self.shortcut,) = app.state.service.shortcuts.values() or (None,)
        if self.shortcut is not None:
            begin = self.shortcut.begin

            def counted(request):
                is_taken = begin(request)
                self.num_taken += is_taken
                return is_taken

            self.shortcut.begin = counted

    async def both(self, content, headers=JSON):
        """The answers of both ways, which are the same but for times."""
        headers = {"x-request-id": "the-same", **headers}
        told, expected = [
            await each.post("/recommend", content=content, headers=headers)
            for each in (self.socket, self.plain)
        ]
        assert told.status_code == expected.status_code, (content, told.text, expected.text)
        assert told.content == expected.content, content
        assert headers_of(told) == headers_of(expected)
        stages = [
            [part.partition(";")[0] for part in each.headers["server-timing"].split(", ")]
            for each in (told, expected)
        ]
        assert stages[0] == stages[1]
        return told


def headers_of(answer):
    changing = {"server-timing", "date"}  # the date is the server's
    return {name: value for name, value in answer.headers.items() if name not in changing}


@asynccontextmanager
async def served(bundle, redis_url, **settings):
    settings = Settings(bundle=bundle, redis_url=redis_url, threads=1, **settings)
    app = create_app(settings)
    server = http_server(app, settings)
    with tcp_sockets("127.0.0.1", 0) as sockets:
        listen(sockets)
        serving = asyncio.create_task(server.serve(sockets))
        try:
            await until_ready(app)
            url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            plain = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=url, timeout=30)
            async with httpx.AsyncClient(base_url=url, timeout=30) as client, plain:
                yield Served(app, server, client, plain)
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
async def service(bundle, redis_url):
    async with served(bundle, redis_url) as service:
        yield service


def random_body(rng):
    """Mostly good, often with something that only the app understands, or that is wrong."""
    known = [f"item-{n}" for n in range(30)]
    body = {"history": rng.choices([*known, "gone", "é-ö", 'quo"te', "x" * 256], k=rng.choice([0, 1, 5, 20]))}
    for name, values in {
        "limit": [1, 3, 100, 10.0, 0, 101, "3", True, None, 1.5],
        "exclude_item_ids": [[], ["item-1", "item-2"], known, None, ["" * 2], [1], "item-1"],
        "exclude_history": [True, False, 1, None],
        "guarantee": ["none", "exact", "both", None],
        "filter": [None, {"available": True}, {"nonsense": 1}],
        "diversity": [None, {"max_per_first_code": 1}],
        "rerank": [False, True],
        "surplus": [1],
    }.items():
        if rng.random() < 0.25:
            good = values[: max(1, len(values) // 2)]
            body[name] = rng.choice(good if rng.random() < 0.7 else values)
    return body


def random_content(rng):
    body = random_body(rng)
    if rng.random() < 0.1:
        body = rng.choice([[], "text", None, 3, {"history": "item-1"}, {"history": ["x" * 257]}, {}])
    content = json.dumps(body, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
    wrong = [
        content[:-1],
        b"",
        b"\xef\xbb\xbf" + content,
        content + b" x",
        b'{"history": ["item-1"], "history": ["item-2"]}',
        b'{"history": ["item-1"], "hist\\u006fry": ["item-2"]}',
        b'{"history": ["\\ud800"]}',
        b'{"history": ["\xff"]}',
        b'{"history": [], "limit": NaN}',
        b'{"history": [], "limit": 1e400}',
        b'{"history": ["limit"], "limit": 3}',
    ]
    return rng.choice(wrong) if rng.random() < 0.15 else content


async def test_each_request_has_the_answer_that_the_app_gives_good_or_bad(service):
    rng = random.Random(0)
    statuses = set()
    for _ in range(400):
        statuses.add((await service.both(random_content(rng))).status_code)
    assert {200, 400, 409, 422} <= statuses
    assert 100 < service.num_taken < 350, "both ways had their share"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "text/plain"},
        {"content-type": "application/merge-patch+json"},
        JSON | {"x-request-timeout": "5"},
        JSON | {"x-request-timeout": "soon"},
        JSON | {"content-encoding": "gzip"},
        JSON | {"x-request-id": 'not"safe'},
        JSON | {"x-long": "y" * 40_000},
        JSON | {f"x-{n}": "y" for n in range(120)},
    ],
    ids=lambda headers: ",".join(headers)[:60],
)
async def test_headers_mean_what_they_mean_to_the_app(service, headers):
    if headers.get("x-request-id") is None:
        answer = await service.both(b'{"history": ["item-0"]}', headers)
        assert (answer.status_code == 200) == (headers in ORDINARY_HEADERS)
    else:
        answer = await service.socket.post("/recommend", content=b'{"history": []}', headers=headers)
        assert len(answer.headers["x-request-id"]) == 32


ORDINARY_HEADERS = [{"content-type": "application/json; charset=utf-8"}, JSON | {"x-request-timeout": "5"}]


@pytest.mark.parametrize(
    "given", [{}, {"x-api-key": KEY}, {"x-api-key": "no"}, {"authorization": f"Bearer {KEY}"}]
)
async def test_keys_open_what_they_open_to_the_app(bundle, redis_url, given):
    async with served(bundle, redis_url, read_keys=KEY) as service:
        answer = await service.both(b'{"history": ["item-0"]}', JSON | given)
        assert answer.status_code == (200 if KEY in str(given) else 401)
        assert service.num_taken == (answer.status_code == 200)


async def test_answers_are_counted_once_whichever_way_they_came(service):
    before = await scrape(service.plain)
    for _ in range(3):
        await service.both(b'{"history": ["item-0", "gone"]}')
    after = await scrape(service.plain)
    route = (("method", "POST"), ("outcome", "answered"), ("route", "/recommend"))
    counted = {
        ("glyphrec_http_request_seconds_count", route): 6,
        (
            "glyphrec_recommendations_total",
            (("exact", "true"), ("filtered", "false"), ("source", "model")),
        ): 6,
        ("glyphrec_unknown_history_items_total", ()): 6,
        **{
            ("glyphrec_stage_seconds_count", (("flow", "recommend"), ("stage", stage))): 6
            for stage in ("parse", "queue", "history", "decode", "resolve", "write")
        },
    }
    assert {key: after[key] - before.get(key, 0) for key in counted} == counted
    assert after["glyphrec_http_requests_in_flight", ()] == 1, "the scrape itself"
    assert service.num_taken == 3


async def test_a_search_that_fails_is_one_request_that_fails_and_the_next_one_is_answered(service, caplog):
    searches = service.app.state.service.readiness.model.searches
    prepare, searches._prepare = searches._prepare, fail
    assert is_problem(await service.socket.post("/recommend", json={"history": ["item-0"]}), 500, "internal")
    assert "no such luck" in caplog.text
    searches._prepare = prepare
    assert (await service.both(b'{"history": ["item-0"]}')).status_code == 200


def fail(_searches):
    raise RuntimeError("no such luck")


async def test_a_request_that_waits_too_long_is_told_so_in_time_and_its_search_is_not_run(service):
    model = service.app.state.service.readiness.model
    async with model.catalog.lock:  # no batch can begin
        late = service.socket.post(
            "/recommend", json={"history": ["item-0"]}, headers={"x-request-timeout": "0.2"}
        )
        patient = asyncio.create_task(service.socket.post("/recommend", json={"history": ["item-1"]}))
        assert is_problem(await late, 503, "took-too-long")
        assert not patient.done()
        num_run = (await scrape(service.plain))["glyphrec_batch_jobs_sum", (("queue", "recommender"),)]
    assert (await patient).status_code == 200
    after = (await scrape(service.plain))["glyphrec_batch_jobs_sum", (("queue", "recommender"),)]
    assert after - num_run == 1


async def test_a_stopped_queue_is_told_to_those_who_wait(service):
    model = service.app.state.service.readiness.model
    async with model.catalog.lock:
        waiting = asyncio.create_task(service.socket.post("/recommend", json={"history": ["item-0"]}))
        while not model.searches.queued_units:
            await asyncio.sleep(0)
        await model.searches.stop()
    assert is_problem(await waiting, 503, StoppedServing.slug)


def request_of(body, request_id="r"):
    head = "POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def connection_to(service):
    url = service.socket.base_url
    return await asyncio.open_connection(url.host, url.port)


async def test_requests_that_come_together_are_answered_in_their_order_whoever_answers_them(service):
    bodies = [
        '{"history": ["item-0"]}',
        '{"limit": 0}',
        '{"history": [], "filter": {}}',
        '{"history": ["item-1"]}',
    ]
    reader, writer = await connection_to(service)
    sent = b"".join(request_of(body, f"r{number}") for number, body in enumerate(bodies))
    writer.write(sent[:-5])
    await writer.drain()
    await asyncio.sleep(0.05)  # so that the last body comes in a read of its own
    writer.write(sent[-5:])
    found = [await answer_of(reader) for _ in bodies]
    assert found == [("r0", 200), ("r1", 422), ("r2", 200), ("r3", 200)]
    writer.close()


async def sent_in_parts(service, *parts, pause_s=0.0):
    """Send them with a pause between two -> the id and the status of the answer, and whether it was taken."""
    num_taken = service.num_taken
    reader, writer = await connection_to(service)
    for number, part in enumerate(parts):
        await asyncio.sleep(pause_s if number else 0)
        writer.write(part)
        await writer.drain()
    answer = await answer_of(reader)
    writer.close()
    return answer, service.num_taken - num_taken


async def test_a_body_may_come_in_parts_after_its_head(service, monkeypatch):
    monkeypatch.setattr(connection, "BODY_WAIT_S", 10)  # for a machine that is busy with other tests
    whole = request_of('{"history": ["item-0"]}')
    body_at = whole.index(b"{")
    for ends in ([body_at], [body_at, body_at + 3], [9, body_at - 1, body_at + 1, len(whole) - 1]):
        parts = [whole[begin:end] for begin, end in pairwise([0, *ends, len(whole)])]
        assert await sent_in_parts(service, *parts, pause_s=0.005) == (("r", 200), 1)


async def test_the_app_answers_what_comes_late_or_is_large(service):
    late = request_of('{"history": ["item-0"]}')
    assert await sent_in_parts(service, late[:-5], late[-5:], pause_s=4 * BODY_WAIT_S) == (("r", 200), 0)
    large = request_of('{"history": ["item-0"]' + " " * 2 * MAX_WHOLE_BYTES + "}")
    assert await sent_in_parts(service, large[:-5], large[-5:], pause_s=0.005) == (("r", 200), 0)


async def test_a_head_without_its_body_takes_no_room(service):
    searches = service.app.state.service.readiness.model.searches
    head = request_of('{"history": ["item-0"]}')[:-5]
    for wait_s in (0.0, 2 * BODY_WAIT_S):  # before and after the app has it
        _, writer = await connection_to(service)
        writer.write(head)
        await asyncio.sleep(0.01 + wait_s)
        assert searches.reserved_units == 0
        writer.close()
    assert (await service.socket.post("/recommend", json={"history": ["item-1"]})).status_code == 200
    await asyncio.sleep(2 * BODY_WAIT_S)  # whoever left meanwhile is nobody's request
    assert (await scrape(service.plain))["glyphrec_http_requests_in_flight", ()] == 1, "the scrape itself"


async def test_a_body_that_cannot_be_parsed_is_told_so(service):
    reader, writer = await connection_to(service)
    head = "POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    await asyncio.sleep(0.01)
    writer.write(b"no length\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


@pytest.mark.parametrize("pause_s", [0.01, 0.45])  # before uvicorn stops, and while it does
async def test_a_server_that_stops_answers_whose_body_was_under_way(bundle, redis_url, pause_s):
    async with served(bundle, redis_url) as service:
        reader, writer = await connection_to(service)
        whole = request_of('{"history": ["item-0"]}')
        writer.write(whole[:-5])
        await asyncio.sleep(0.01)
        service.app.state.service.readiness.is_stopping = service.server.should_exit = True
        await asyncio.sleep(pause_s)
        writer.write(whole[-5:])
        answer = (await reader.read()).decode().lower()
        assert answer.startswith("http/1.1 200 ")
        assert "connection: close" in answer
        writer.close()


async def answer_of(reader):
    """The id and the status of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    await reader.readexactly(int(lines["content-length"]))
    return lines["x-request-id"], int(head.split(" ")[1])


async def test_a_client_that_leaves_before_its_answer_takes_nothing_along(service):
    model = service.app.state.service.readiness.model
    async with model.catalog.lock:
        _, writer = await connection_to(service)
        writer.write(request_of('{"history": ["item-0"]}'))
        while not model.searches.queued_units:
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()
        other = asyncio.create_task(service.socket.post("/recommend", json={"history": ["item-1"]}))
        await asyncio.sleep(0.01)
    assert (await other).status_code == 200
    assert (await scrape(service.plain))["glyphrec_http_requests_in_flight", ()] == 1, "the scrape itself"
    assert model.searches.reserved_units == 0


async def test_what_tells_of_each_request_by_itself_leaves_no_shortcut(bundle, redis_url):
    async with served(bundle, redis_url, access_log=True) as service:
        assert (await service.socket.post("/recommend", json={"history": ["item-0"]})).status_code == 200
        assert service.shortcut is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"history": ["a"], "history": ["b"]}',
        b'{"history": ["a"], "hist\\u006fry": ["b"]}',
        b'{"limit": 3, "history": [], "limit": 4}',
        b'{"history": [], "rerank": true}',
        b'{"history": [], "filter": {}}',
        b"[]",
    ],
)
def test_what_only_the_app_can_judge_is_not_ordinary(body):
    assert ordinary_body(body) is None


def test_an_item_that_has_moved_is_shown_at_its_new_place():
    items = items_without_text_twice(3, 0)
    catalog, prepared = catalog_of(items), PreparedItems()

    def shown(catalog):
        item_id = items[0].item_id
        page = [Ranked(item_id, catalog.packed_sid_of(item_id), -1.5)]
        return json.loads(prepared.of(page, catalog))["semantic_id"]

    assert shown(catalog) == str(catalog.sid_of(items[0].item_id))
    moved = Sid(tuple((code + 1) % 3 for code in items[0].codes), 5)
    catalog.put(items[0].item_id, moved)
    assert shown(catalog) == str(moved)
