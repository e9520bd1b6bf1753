"""The envelope around an app that the test controls: each request gets an answer, a report, its room back."""

import json

import pytest
from starlette.requests import ClientDisconnect

from service.errors import ItemNotFound
from service.http.envelope import Envelope
from service.http.security import Guard, Scope
from service.inference.batching import MicroBatcher
from service.telemetry.metrics import Metrics


async def answering(_scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"whole"})


async def refusing(_scope, _receive, _send):
    raise ItemNotFound("a1")


async def failing(_scope, _receive, _send):
    raise KeyError("a secret")


async def failing_halfway(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise KeyError("a secret")


async def left(_scope, _receive, _send):
    raise ClientDisconnect


class Surrounded:
    """One app in an envelope, a queue in which the request has room, and what came back."""

    def __init__(self, app, *, scope=Scope.OPEN, is_stopping=False, **options):
        self.metrics = Metrics()
        self.queue = MicroBatcher(list, name="queue", max_batch_units=1, max_queued_units=1)
        self.envelope = Envelope(
            app,
            guard=Guard(lambda _method, _path: scope, read_keys=("sha256:" + "0" * 64,)),
            is_stopping=lambda: is_stopping,
            metrics=self.metrics,
            max_body_bytes=100,
            body_timeout_s=5,
            log_requests=False,
            **options,
        )
        self.sent = []

    async def ask(self, path="/items/a1", headers=(), method="GET"):
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": list(headers),
            "state": {"reservation": self.queue.reserve(1)},
        }

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            assert self.num_in_flight == 1
            self.sent.append(message)

        await self.envelope(scope, receive, send)
        return self

    @property
    def num_in_flight(self):
        return self.metrics.registry.get_sample_value("glyphrec_http_requests_in_flight")

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def problem(self):
        return json.loads(self.sent[1]["body"])

    def counted(self, status):
        labels = {"route": "unmatched", "method": "GET", "status": str(status)}
        return self.metrics.registry.get_sample_value("glyphrec_http_requests_total", labels)

    def is_over(self, status):
        """Counted once under this status; nothing is in flight and no room is held."""
        return (self.counted(status), self.num_in_flight, self.queue.reserved_units) == (1, 0, 0)


async def test_an_answer_goes_out_with_the_id_of_its_request_and_its_timing():
    asked = await Surrounded(answering).ask(headers=[(b"x-request-id", b"mine")])
    assert asked.is_over(200)
    assert asked.headers["x-request-id"] == "mine"
    assert asked.headers["server-timing"].startswith("total;dur=")
    assert "connection" not in asked.headers


async def test_while_the_service_stops_each_answer_closes_its_connection():
    asked = await Surrounded(answering, is_stopping=True).ask()
    assert asked.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("options", "headers", "status", "slug"),
    [
        ({}, [], 404, "item-not-found"),
        ({}, [(b"a", b"b")] * 101, 431, "head-too-large"),
        ({"scope": Scope.READ}, [], 401, "missing-key"),
        ({}, [(b"content-length", b"101")], 413, "body-too-large"),
        ({}, [(b"x-request-timeout", b"soon")], 400, "bad-timeout"),
        ({}, [(b"content-encoding", b"gzip")], 415, "encoded-body"),
    ],
)
async def test_what_a_step_refuses_is_a_problem(options, headers, status, slug):
    asked = await Surrounded(refusing, **options).ask(headers=headers)
    assert asked.is_over(status)
    assert asked.problem["type"] == f"urn:glyphrec:problem:{slug}"
    assert asked.problem["request_id"] == asked.headers["x-request-id"]


async def test_a_failure_inside_is_a_problem_without_the_reason():
    asked = await Surrounded(failing).ask()
    assert asked.is_over(500)
    assert "secret" not in str(asked.sent)


async def test_a_failure_amid_an_answer_is_left_to_the_server_which_closes():
    asked = Surrounded(failing_halfway)
    with pytest.raises(KeyError):
        await asked.ask()
    assert asked.is_over(200)
    assert len(asked.sent) == 1


async def test_a_client_that_left_before_its_answer_counts_as_499():
    asked = await Surrounded(left).ask()
    assert asked.is_over(499)
    assert asked.sent == []


async def test_only_exactly_its_method_and_path_go_to_a_direct_app():
    direct = {("GET", "/direct"): answering}
    for method, path, is_direct in (
        ("GET", "/direct", True),
        ("POST", "/direct", False),
        ("GET", "/direct/", False),
    ):
        asked = await Surrounded(refusing, direct=direct).ask(path, method=method)
        assert (asked.sent[0]["status"] == 200) == is_direct


async def test_the_guard_stands_before_a_direct_app_too():
    direct = {("GET", "/direct"): answering}
    asked = await Surrounded(refusing, scope=Scope.READ, direct=direct).ask("/direct")
    assert asked.is_over(401)


async def test_what_is_no_http_passes_through():
    passed = []

    async def app(scope, _receive, _send):
        passed.append(scope["type"])

    await Surrounded(app).envelope({"type": "lifespan"}, None, None)
    assert passed == ["lifespan"]
