"""Log lines: valid JSON, the request's id in each, and no content of items or keys."""

import json
import logging
import re
import sys
from datetime import datetime

import pytest

from service.telemetry.logs import configure_logs, request_id_now
from tests.service.running import running

KEY = "a-key-that-nobody-may-read"
TEXT = "Zweihundert Schrauben"


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_json_line_has_what_the_line_adds_and_the_id_of_its_request(capsys):
    configure_logs("json", "INFO")
    token = request_id_now.set("abc")
    logging.getLogger("glyphrec.test").info("took %d ms", 3, extra={"duration_ms": 3})
    request_id_now.reset(token)
    logging.getLogger("glyphrec.test").warning("of no request")
    logging.getLogger("glyphrec.test").debug("not at this level")
    first, second = lines_of(capsys)
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert re.search(r"T\d\d:\d\d:\d\d\.\d{3}[+-]", first.pop("time"))
    assert first == {
        "level": "INFO",
        "logger": "glyphrec.test",
        "message": "took 3 ms",
        "request_id": "abc",
        "duration_ms": 3,
    }
    assert second["message"] == "of no request"
    assert "request_id" not in second


def test_an_exception_is_one_json_line(capsys):
    configure_logs("json", "INFO")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("glyphrec.test").exception("failed")
    (line,) = lines_of(capsys)
    assert "ValueError: two\nlines" in line["exc_info"]


def test_a_line_for_people_ends_with_the_id(capsys):
    configure_logs("text", "INFO")
    request_id_now.set("abc")
    logging.getLogger("glyphrec.test").info("hello")
    assert capsys.readouterr().err.endswith("INFO glyphrec.test: hello [abc]\n")
    request_id_now.set("")
    logging.getLogger("glyphrec.test").info("hello")
    assert capsys.readouterr().err.endswith("INFO glyphrec.test: hello\n")


async def test_requests_are_logged_without_item_texts_and_keys(bundle, redis_url, capsys):
    configure_logs("json", "INFO")
    logging.getLogger().handlers[0].setStream(sys.stderr)
    settings = {"access_log": True, "api_keys": (KEY,)}
    async with running(bundle, redis_url, **settings) as client:
        given = {"X-API-Key": KEY, "X-Request-ID": "mine"}
        put = await client.post("/items", json={"item_id": "s1", "title": TEXT}, headers=given)
        await client.post("/recommend", json={"history": ["s1"]}, headers=given)
        refused = await client.post(
            "/items", json={"item_id": "s2", "title": TEXT}, headers={"X-API-Key": "x"}
        )
    assert (put.status_code, refused.status_code) == (200, 401)
    written = capsys.readouterr().err
    assert TEXT not in written
    assert KEY not in written
    answers = [line for line in map(json.loads, written.splitlines()) if line["logger"] == "glyphrec.access"]
    assert [(line["route"], line["status"]) for line in answers] == [
        ("/items", 200),
        ("/recommend", 200),
        ("/items", 401),
    ]
    assert answers[0]["request_id"] == "mine"
    assert answers[0]["duration_ms"] > 0


async def test_probes_and_scrapes_that_succeed_are_not_logged(bundle, redis_url, capsys):
    configure_logs("json", "INFO")
    logging.getLogger().handlers[0].setStream(sys.stderr)
    async with running(bundle, redis_url, access_log=True) as client:
        for path in ("/health/live", "/health/ready", "/livez", "/readyz", "/healthz", "/metrics"):
            assert (await client.get(path)).status_code == 200
            assert (await client.head(path)).status_code == 200
        await client.get("/info")
        client._transport.app.state.service.readiness.is_stopping = True
        assert (await client.get("/health/ready")).status_code == 503
    lines = map(json.loads, capsys.readouterr().err.splitlines())
    answers = [(line["route"], line["status"]) for line in lines if line["logger"] == "glyphrec.access"]
    assert answers == [("/info", 200), ("/health/ready", 503)]
