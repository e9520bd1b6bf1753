"""Spans of requests and their stages, as an OpenTelemetry exporter gets them."""

import sys
from contextlib import asynccontextmanager

import httpx
import pytest

from service.app import create_app
from service.errors import GlyphrecError
from service.settings import Settings
from service.telemetry.tracing import Tracer, tracer_from_environment
from tests.service.running import until_ready

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@asynccontextmanager
async def traced(bundle, redis_url):
    """-> client, exporter."""
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    app = create_app(Settings(bundle=bundle, redis_url=redis_url, threads=1), Tracer(provider))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        await until_ready(app)
        yield client, exporter


def request_span(exporter):
    (found,) = [span for span in exporter.get_finished_spans() if span.name.startswith(("POST", "GET"))]
    return found


async def test_a_recommendation_joins_its_callers_trace_and_has_a_span_for_each_stage(bundle, redis_url):
    async with traced(bundle, redis_url) as (client, exporter):
        answer = await client.post(
            "/recommend", json={"history": ["item-0"]}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
        )
        request = request_span(exporter)
    assert request.name == "POST /recommend"
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/recommend",
        "http.response.status_code": 200,
        "glyphrec.request_id": answer.headers["x-request-id"],
    }
    stages = [span for span in exporter.get_finished_spans() if span is not request]
    assert [span.name for span in stages] == ["parse", "queue", "history", "decode", "resolve", "write"]
    at = request.start_time
    for span in stages:
        assert span.parent.span_id == request.context.span_id
        assert at <= span.start_time <= span.end_time <= request.end_time
        at = (
            span.end_time - 1_000_000
        )  # two threads read the clock: the end of one span is the start of the next


async def test_an_ingest_has_its_own_stages(bundle, redis_url):
    async with traced(bundle, redis_url) as (client, exporter):
        await client.post("/items", json={"item_id": "traced", "title": "Never seen before"})
        names = {span.name for span in exporter.get_finished_spans()}
    assert names >= {"POST /items", "held", "render", "queue", "tokenise", "store", "follow"}


async def test_without_a_caller_a_trace_begins_here_and_a_refusal_has_its_status(bundle, redis_url):
    async with traced(bundle, redis_url) as (client, exporter):
        await client.get("/items/nobody/similar")
        request = request_span(exporter)
    assert request.parent is None
    assert request.name == "GET /items/{item_id:path}/similar"
    assert request.attributes["http.response.status_code"] == 404


async def test_a_traceparent_that_is_none_is_ignored(bundle, redis_url):
    async with traced(bundle, redis_url) as (client, exporter):
        answer = await client.post("/recommend", json={"history": []}, headers={"traceparent": "00-xyz"})
        assert answer.status_code == 200
        assert request_span(exporter).parent is None


def test_tracing_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(GlyphrecError, match=r"pip install 'glyphrec\[otel\]'"):
        tracer_from_environment()


def test_the_provider_of_the_environment_is_named_after_us_unless_it_says_otherwise(monkeypatch):
    tracer = tracer_from_environment()
    assert tracer._provider.resource.attributes["service.name"] == "glyphrec"
    tracer.close()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    tracer = tracer_from_environment()
    assert tracer._provider.resource.attributes["service.name"] == "shop"
    tracer.close()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_BSP_MAX_QUEUE_SIZE", "-1"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")]
)
def test_a_variable_that_opentelemetry_refuses_is_one_error_that_says_so(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(GlyphrecError, match="names begin with OTEL_: "):
        tracer_from_environment()
