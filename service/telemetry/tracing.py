"""One span for each request, as a part of the caller's trace, and a child span for each stage.

OpenTelemetry is an extra and off by default. Without the setting `tracing` it is not imported.
"""

import time
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from service.errors import GlyphrecError
from service.telemetry.stages import Stages

SERVER_ERROR = 500


class Tracer:
    """Reports requests to an OpenTelemetry provider, after their answer, so that no stage waits for it."""

    def __init__(self, provider: Any) -> None:
        """`provider`: an opentelemetry.sdk TracerProvider."""
        from opentelemetry import propagate, trace

        self._provider = provider
        self._trace, self._extract = trace, propagate.extract
        self._tracer = provider.get_tracer("glyphrec")

    def note(
        self,
        headers: Mapping[str, str],
        stages: Stages,
        *,
        method: str,
        route: str,
        status: int,
        request_id: str,
        started_at: float,
    ) -> None:
        """Report a request that ends now. `started_at`: of time.perf_counter()."""
        now = perf_counter()
        epoch_ns = time.time_ns() - int(now * 1e9)  # when the clock of perf_counter was 0
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=epoch_ns + int(started_at * 1e9),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "glyphrec.request_id": request_id,
            },
        )
        if span.is_recording():
            below = self._trace.set_span_in_context(span)
            for stage, stage_at, seconds in stages.spans:
                child = self._tracer.start_span(stage, below, start_time=epoch_ns + int(stage_at * 1e9))
                child.end(epoch_ns + int((stage_at + seconds) * 1e9))
            if status >= SERVER_ERROR:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end(epoch_ns + int(now * 1e9))

    def close(self) -> None:
        """Send the spans that were not sent yet."""
        self._provider.shutdown()


def tracer_from_environment() -> Tracer:
    """A tracer that sends spans by OTLP over HTTP, configured by OpenTelemetry's OTEL_… variables.

    Raises GlyphrecError if the packages are missing, or if a variable has a value that OpenTelemetry refuses.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise GlyphrecError(
            f"GLYPHREC_TRACING needs {error.name}, which is missing. Add it: pip install 'glyphrec[otel]'"
        ) from None
    try:
        resource = Resource.create()  # reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "glyphrec"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return Tracer(provider)
    except ValueError as error:
        raise GlyphrecError(
            f"OpenTelemetry refuses one of its variables, whose names begin with OTEL_: {error}"
        ) from error
