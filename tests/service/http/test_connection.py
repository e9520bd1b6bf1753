"""The HTTP server refuses requests without room by their heads alone, and limits its connections."""

import asyncio
import json
from contextlib import asynccontextmanager
from functools import partial

import pytest
import uvicorn

from service.http.connection import BoundedHttp
from service.http.connection_limit import PROBE_RESERVE, ConnectionLimit
from service.http.envelope import Envelope
from service.http.refusals import Refusals
from service.http.security import Guard, Scope
from service.inference.batching import MicroBatcher
from service.telemetry.metrics import Metrics
from tests.service.catalogs import until

BODY = b'{"history": []}'
POST = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Door:
    """A queue with room for `num_places` requests, and an app that answers once the gate is open."""

    def __init__(self, num_places: int) -> None:
        self.batcher = MicroBatcher(list, name="recommender", max_batch_units=9, max_queued_units=num_places)
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_taken = 0
        self.metrics = Metrics()

    def admit(self, method, path):
        return self.batcher.reserve(1) if (method, path) == ("POST", "/recommend") else None

    def refusal(self, method, path):
        return self.batcher.refusal(1) if (method, path) == ("POST", "/recommend") else None

    async def app(self, _scope, receive, send):
        self.num_taken += 1
        while (await receive()).get("more_body"):
            pass
        await self.gate.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(
    door: Door,
    max_connections: int = 100,
    *,
    limit: ConnectionLimit | None = None,
    keep_alive_s: float = 5,
    head_timeout_s: float = 5,
):
    """Serve the app in its envelope -> connect()."""
    app = Envelope(
        door.app,
        guard=Guard(lambda _method, _path: Scope.READ),
        is_stopping=lambda: False,
        metrics=door.metrics,
        max_body_bytes=1_000_000,
        body_timeout_s=5,
        log_requests=False,
    )
    http = partial(
        BoundedHttp,
        head_timeout_s=head_timeout_s,
        keep_alive_s=keep_alive_s,
        limit=limit or ConnectionLimit(max_connections),
        admit=door.admit,
        refusal=door.refusal,
        is_probe=lambda _method, path: path == "/health/live",
        metrics=door.metrics,
        refusals=Refusals(door.metrics),
    )
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=http, ws="none", lifespan="off", log_config=None, access_log=False)
    )
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    opened = []

    async def connect():
        opened.append(await asyncio.open_connection("127.0.0.1", port))
        return opened[-1]

    try:
        yield connect
    finally:
        door.gate.set()
        for _, writer in opened:
            writer.close()
        server.should_exit = True
        await task


async def answer(reader):
    """-> status, headers, body."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


def num_rejected(door, reason):
    return door.metrics.registry.get_sample_value("glyphrec_rejections_total", {"reason": reason})


async def occupied(door, connect):
    """Send a request that takes the only room in the queue, and waits -> the reader of its answer."""
    door.gate.clear()
    reader, writer = await connect()
    writer.write(POST)
    await until(lambda: door.num_taken)
    return reader


async def test_what_has_no_place_is_refused_before_its_body_came_and_its_connection_goes_on():
    door = Door(num_places=1)
    async with serving(door) as connect:
        first = await occupied(door, connect)
        reader, writer = await connect()
        head, _, body = POST.partition(b"\r\n\r\n")
        writer.write(head + b"\r\nX-Request-ID: mine\r\n\r\n")
        status, headers, problem = await answer(reader)
        assert (status, headers["retry-after"], headers["x-request-id"]) == (429, "1", "mine")
        assert json.loads(problem)["type"] == "urn:glyphrec:problem:overloaded"
        assert json.loads(problem)["instance"] == "/recommend"
        assert door.num_taken == 1
        writer.write(body)  # the rest of what was refused
        door.gate.set()
        assert (await answer(first))[0] == 200
        writer.write(POST)
        assert (await answer(reader))[0] == 200
    refused = {"route": "/recommend", "method": "POST", "status": "429"}
    assert door.metrics.registry.get_sample_value("glyphrec_http_requests_total", refused) == 1
    assert num_rejected(door, "overloaded") == 1


async def test_a_client_that_waits_for_a_go_ahead_and_is_refused_is_told_and_let_go():
    """Its next request would be taken for the body that it does not send."""
    door = Door(num_places=1)
    async with serving(door) as connect:
        first = await occupied(door, connect)
        reader, writer = await connect()
        head, _, _ = POST.partition(b"\r\n\r\n")
        writer.write(head + b"\r\nExpect: 100-continue\r\n\r\n")
        status, headers, _ = await answer(reader)
        assert (status, headers["connection"]) == (429, "close")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        door.gate.set()
        assert (await answer(first))[0] == 200


def head_of(length: int, *more: bytes) -> bytes:
    lines = [b"POST /recommend HTTP/1.1", b"Host: x", b"Content-Length: %d" % length, *more]
    return b"\r\n".join([*lines, b"", b""])


async def crowded(door, connect):
    """Another request has the only room -> its reader, and a connection whose POST is known as refused."""
    first = await occupied(door, connect)
    reader, writer = await connect()
    for _ in range(2):  # the head of a connection's first request is not remembered
        writer.write(POST)
        assert (await answer(reader))[0] == 429
    return first, reader, writer


async def test_a_request_that_was_refused_before_is_refused_again_in_the_same_way():
    door = Door(num_places=1)
    async with serving(door) as connect:
        first, reader, writer = await crowded(door, connect)
        found, ids = [], set()
        for _ in range(3):
            writer.write(POST)
            status, headers, problem = await answer(reader)
            request_id = headers.pop("x-request-id")
            ids.add(request_id)
            found.append((status, headers, problem.replace(request_id.encode(), b"")))
        assert found[0] == found[1] == found[2]
        assert len(ids) == 3
        door.gate.set()
        assert (await answer(first))[0] == 200
        writer.write(POST)
        assert (await answer(reader))[0] == 200, "there is room now"
    refused = {"route": "/recommend", "method": "POST", "status": "429"}
    assert door.metrics.registry.get_sample_value("glyphrec_http_requests_total", refused) == 5
    assert num_rejected(door, "overloaded") == 5


@pytest.mark.parametrize("size", [1, 7, len(POST) - len(BODY), len(POST) - len(BODY) + 3])
async def test_a_request_that_is_refused_again_may_come_in_pieces(size):
    door = Door(num_places=1)
    async with serving(door) as connect:
        _, reader, writer = await crowded(door, connect)
        for _ in range(3):
            for begin in range(0, len(POST), size):
                writer.write(POST[begin : begin + size])
                await asyncio.sleep(0.001)
            assert (await answer(reader))[0] == 429
        door.gate.set()
        writer.write(POST + POST)
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("more", [b"", b"0"], ids=["another header", "ten times the length"])
async def test_a_longer_head_that_begins_like_a_refused_one_is_another_request(more, size):
    """A read may end anywhere, also one byte after what was the whole head of another request."""
    door = Door(num_places=1)
    async with serving(door) as connect:
        _, reader, writer = await crowded(door, connect)
        head = POST.partition(b"\r\n\r\n")[0]
        body = BODY.ljust(10 * len(BODY)) if more else BODY
        whole = head + more + b"\r\nX-Request-ID: mine\r\n\r\n" + body
        for _ in range(2):
            writer.write(whole[: len(head) + size])
            await asyncio.sleep(0.05)
            writer.write(whole[len(head) + size :])
            status, headers, _ = await answer(reader)
            assert (status, headers["x-request-id"]) == (429, "mine")
        door.gate.set()
        writer.write(whole + POST)
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]


async def test_what_follows_a_refused_request_in_the_same_bytes_is_answered():
    door = Door(num_places=1)
    async with serving(door) as connect:
        _, reader, writer = await crowded(door, connect)
        writer.write(POST + GET.replace(b"/health/live", b"/a"))
        assert (await answer(reader))[0] == 429
        door.gate.set()
        assert (await answer(reader))[0] == 200
        door.gate.clear()
        await until(lambda: not door.batcher.reserved_units)
        first = await occupied(door, connect)
        writer.write(POST[:-3])
        assert (await answer(reader))[0] == 429
        door.gate.set()
        assert (await answer(first))[0] == 200
        writer.write(POST[-3:] + POST)
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize(
    "again",
    [
        head_of(4) + b"null",
        head_of(len(BODY), b"X-Request-ID: mine") + BODY,
        b"\r\n" + POST,
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["another length", "an id of its own", "an empty line before", "in pieces", "in shorter pieces"],
)
async def test_a_request_of_another_form_is_refused_as_often_as_it_comes(again):
    door = Door(num_places=1)
    async with serving(door) as connect:
        _, reader, writer = await crowded(door, connect)
        for request in (again, POST, again, again):
            writer.write(request)
            status, headers, _ = await answer(reader)
            assert status == 429
            assert (headers["x-request-id"] == "mine") == (b"mine" in request)
        door.gate.set()
        writer.write(again + POST)
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("line", [b"Connection: close", b"Expect: 100-continue"])
async def test_a_request_after_which_its_connection_closes_is_not_remembered(line):
    door = Door(num_places=1)
    async with serving(door) as connect:
        await occupied(door, connect)
        for _ in range(3):
            reader, writer = await connect()
            writer.write(POST)  # so that the next one does not come first
            assert (await answer(reader))[0] == 429
            writer.write(head_of(len(BODY), line) + BODY)
            status, headers, _ = await answer(reader)
            assert (status, headers["connection"]) == (429, "close")
            assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_many_that_come_at_once_are_taken_up_to_the_room_there_is():
    door = Door(num_places=3)
    async with serving(door) as connect:
        door.gate.clear()
        pairs = [await connect() for _ in range(20)]
        for _, writer in pairs:
            writer.write(POST)
        refused = [asyncio.create_task(answer(reader)) for reader, _ in pairs]
        await until(lambda: sum(task.done() for task in refused) >= 17)
        door.gate.set()
        statuses = sorted([(await task)[0] for task in refused])
        assert statuses == [200] * 3 + [429] * 17
        assert door.num_taken == 3


@pytest.mark.parametrize(
    "request_",
    [
        POST,
        POST.replace(b"Host: x", b"Host: x\r\nX-Request-Timeout: soon"),
        POST.replace(b"Host: x", b"Host: x\r\nConnection: upgrade\r\nUpgrade: websocket"),
        POST.replace(b"/recommend", b"/recommend?" + b"a" * 9_000),
        POST.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",  # and the client leaves
    ],
    ids=["answered", "refused by the envelope", "an upgrade", "too long", "cut off"],
)
async def test_a_place_comes_back_whatever_became_of_its_request(request_):
    door = Door(num_places=1)
    async with serving(door) as connect:
        for _ in range(3):
            reader, writer = await connect()
            writer.write(request_)
            if request_.endswith(BODY):
                assert (await answer(reader))[0] in {200, 400, 414}
            writer.close()
            await until(lambda: not door.batcher.reserved_units)


async def test_a_body_that_does_not_come_keeps_nobody_out():
    door = Door(num_places=1)
    async with serving(door) as connect:
        for _ in range(5):
            _, writer = await connect()
            writer.write(POST.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + BODY[:3])
        await until(lambda: door.num_taken >= 5)
        reader, writer = await connect()
        writer.write(POST)
        assert (await answer(reader))[0] == 200


async def test_pipelined_requests_are_answered_in_their_order():
    door = Door(num_places=1)
    async with serving(door) as connect:
        door.gate.clear()
        reader, writer = await connect()
        writer.write(POST + POST + GET)
        await until(lambda: door.num_taken)
        door.gate.set()
        assert [(await answer(reader))[0] for _ in range(3)] == [200, 200, 200]


async def test_one_connection_too_many_is_told_so_and_closed():
    door = Door(num_places=9)
    async with serving(door, max_connections=2) as connect:
        pairs = [await connect() for _ in range(3)]
        for reader, writer in pairs[:2]:
            writer.write(GET)
            assert (await answer(reader))[0] == 200
        reader, writer = pairs[2]
        writer.write(POST)
        status, headers, problem = await answer(reader)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert json.loads(problem)["type"] == "urn:glyphrec:problem:too-many-connections"
        assert await reader.read() == b""
    assert num_rejected(door, "too-many-connections") == 1


async def test_a_probe_is_answered_once_though_all_connections_are_taken():
    door = Door(num_places=9)
    async with serving(door, max_connections=1) as connect:
        await connect()
        for request in (GET, GET.replace(b"GET", b"HEAD"), GET + GET):
            reader, writer = await connect()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in head
            assert await reader.read() == (b"" if request.startswith(b"HEAD") else b"ok")
    assert not num_rejected(door, "too-many-connections")


async def test_connections_that_say_nothing_do_not_take_the_places_of_probes():
    door = Door(num_places=9)
    async with serving(door, max_connections=1) as connect:
        await connect()
        silent = [await connect() for _ in range(3 * PROBE_RESERVE)]
        reader, writer = await connect()
        writer.write(GET)
        assert (await answer(reader))[0] == 200
        for reader, _ in silent[: 2 * PROBE_RESERVE]:
            assert (await answer(reader))[0] == 503
            assert await reader.read() == b""
    assert num_rejected(door, "too-many-connections") >= 2 * PROBE_RESERVE


async def test_a_probe_that_is_being_answered_keeps_its_place():
    door = Door(num_places=9)
    async with serving(door, max_connections=1) as connect:
        await connect()
        door.gate.clear()
        reader, writer = await connect()
        writer.write(GET)
        await until(lambda: door.num_taken == 1)
        for _ in range(3 * PROBE_RESERVE):
            await connect()
        door.gate.set()
        assert (await answer(reader))[0] == 200


async def test_a_connection_that_was_one_too_many_is_served_once_another_has_closed():
    door = Door(num_places=9)
    async with serving(door, max_connections=1) as connect:
        _, first = await connect()
        reader, writer = await connect()
        first.close()
        await first.wait_closed()
        for _ in range(2):  # it stays open
            writer.write(POST)
            assert (await answer(reader))[0] == 200


async def test_the_longest_idle_connection_gives_way_and_one_that_is_in_use_does_not():
    door = Door(num_places=9)
    async with serving(door, limit=ConnectionLimit(3, gives_way_after_s=0)) as connect:
        busy, first, second = [await connect() for _ in range(3)]
        for reader, writer in (first, second, first):
            writer.write(POST)
            assert (await answer(reader))[0] == 200
        door.gate.clear()
        busy[1].write(POST)
        await until(lambda: door.num_taken == 4)
        third = await connect()
        assert await second[0].read() == b"", "closed, as it was idle for longest"
        fourth = await connect()
        assert await first[0].read() == b""
        door.gate.set()
        assert (await answer(busy[0]))[0] == 200
        for reader, writer in (third, fourth):
            writer.write(POST)
            assert (await answer(reader))[0] == 200


async def test_a_connection_that_was_idle_for_a_moment_does_not_give_way():
    door = Door(num_places=9)
    async with serving(door, max_connections=1) as connect:
        reader, writer = await connect()
        writer.write(POST)
        assert (await answer(reader))[0] == 200
        other, another_writer = await connect()
        another_writer.write(POST)
        assert (await answer(other))[0] == 503
        writer.write(POST)
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize("is_refused", [False, True])
async def test_an_idle_connection_lives_for_the_keep_alive_and_not_only_for_the_time_of_a_head(is_refused):
    door = Door(num_places=1)
    async with serving(door, keep_alive_s=2, head_timeout_s=0.1) as connect:
        if is_refused:
            await occupied(door, connect)
        reader, writer = await connect()
        for _ in range(2):
            writer.write(POST)
            assert (await answer(reader))[0] == (429 if is_refused else 200)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(), 0.5)  # still open
        assert await asyncio.wait_for(reader.read(), 10) == b"", "closed at the end"


async def test_the_rest_of_a_later_head_must_come_in_time():
    door = Door(num_places=9)
    async with serving(door, keep_alive_s=60, head_timeout_s=0.1) as connect:
        reader, writer = await connect()
        writer.write(POST)
        assert (await answer(reader))[0] == 200
        writer.write(b"GET /hea")
        assert await asyncio.wait_for(reader.read(), 10) == b""
