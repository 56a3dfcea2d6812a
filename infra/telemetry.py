"""Traces: a span for each request to the API, and for each batch of a stage with its steps.

The span of a batch has links to the spans of its records (W3C ``traceparent`` headers, at most 64). So a trace leads
from a request to every batch with its events. A stage that processes single records adds its spans to their traces.
Spans contain counts and names, never a value of a record. Tracing is off until :meth:`Tracing.set_up` gets the address
of a collector. While the collector is unavailable, spans are dropped; processing does not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from confluent_kafka import Message  # the command line imports this module, and needs no Kafka client

HEADER = "traceparent"
_MAX_LINKS = 64
_MAX_LENGTH = 512  # characters of a traceparent, the maximum of W3C Trace Context; version 00 has 55
_SEND_S = 3
_W3C = TraceContextTextMapPropagator()
_OFF = trace.NoOpTracer()


class Tracing:
    """The tracer of the process; ``tracer`` creates no spans until :meth:`set_up`."""

    def __init__(self) -> None:
        self.tracer: trace.Tracer = _OFF
        self._shut_down: Callable[[], None] | None = None

    def set_up(self, endpoint: str, process: str) -> None:
        """Send the spans of ``process`` to the collector at ``endpoint`` (OTLP over HTTP); empty: no spans."""
        if not endpoint:
            return
        # Imported here: the import takes 0.1 s and is needed only with a collector.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        resource = Resource.create({"service.name": process, "service.namespace": "leadstream"})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=_SEND_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer, self._shut_down = provider.get_tracer("leadstream"), provider.shutdown

    def close(self) -> None:
        """Send the remaining spans, for at most 3 seconds, and turn tracing off."""
        self.tracer = _OFF
        if self._shut_down is not None:
            ending = threading.Thread(target=self._shut_down, daemon=True)
            ending.start()
            ending.join(_SEND_S)
            self._shut_down = None

    @property
    def on(self) -> bool:
        """Whether tracing is on."""
        return self.tracer is not _OFF


tracing = Tracing()


def begin_batch(group: str, messages: Sequence[Message]) -> Span:
    """Return the span of a batch, with links to the spans of its records; end it when the batch is delivered."""
    links = list(islice(_links(messages), _MAX_LINKS)) if tracing.on else ()
    attributes: dict[str, str | int] = {
        "messaging.system": "kafka",
        "messaging.consumer.group.name": group,
        "messaging.batch.message_count": len(messages),
    }
    return tracing.tracer.start_span(f"process {group}", kind=SpanKind.CONSUMER, attributes=attributes, links=links)


@contextmanager
def step(name: str, batch: Span) -> Iterator[None]:
    """Record one step of ``batch`` as a child span; of an error it holds only the type."""
    context = trace.set_span_in_context(batch)
    with tracing.tracer.start_as_current_span(
        name, context, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


@contextmanager
def record(group: str, headers: Sequence[tuple[str, bytes | None]]) -> Iterator[None]:
    """Record the work on one record as a span of its trace; no span if it has no trace or is not sampled."""
    parent = next(_contexts(headers), None) if tracing.on else None
    if parent is None or not trace.get_current_span(parent).get_span_context().trace_flags.sampled:
        yield
        return
    with tracing.tracer.start_as_current_span(
        f"process {group}", parent, kind=SpanKind.CONSUMER, record_exception=False, set_status_on_exception=False
    ):
        yield


@contextmanager
def request(name: str, headers: Mapping[str, str]) -> Iterator[str]:
    """Record a request as a span, in the caller's trace if ``headers`` have one; yield the ``traceparent`` to forward.

    While tracing is off, that is the caller's ``traceparent``, or "" if it is missing or invalid.
    """
    parent = _parent(headers.get(HEADER, ""))
    carrier: dict[str, str] = {}
    if not tracing.on:
        _W3C.inject(carrier, parent)
        yield carrier.get(HEADER, "")
        return
    with tracing.tracer.start_as_current_span(
        name, parent, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ):
        _W3C.inject(carrier)
        yield carrier[HEADER]


def _parent(traceparent: str) -> Context:
    # The library logs a warning for each long value, so that a sender could fill the log.
    return _W3C.extract({HEADER: traceparent if len(traceparent) <= _MAX_LENGTH else ""})


def _links(messages: Sequence[Message]) -> Iterator[Link]:
    for message in messages:
        for context in _contexts(message.headers() or ()):
            yield Link(trace.get_current_span(context).get_span_context())


def _contexts(headers: Sequence[tuple[str, bytes | None]]) -> Iterator[Context]:
    for name, value in headers:
        if name == HEADER and value and len(value) <= _MAX_LENGTH:
            context = _parent(value.decode("ascii", "replace"))
            if trace.get_current_span(context).get_span_context().is_valid:
                yield context
