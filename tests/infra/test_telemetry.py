"""Traces as a collector receives them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from confluent_kafka import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from infra import telemetry
from infra.kafka.producer import Output
from streams.faust.ordered import OrderedPipe, Record

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Collector:
    """An OTLP collector over HTTP that stores the requests."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        kept = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kept.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> dict[str, Any]:
        """Return the received spans by name."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    telemetry.tracing.set_up(made.url, "worker")
    yield made
    telemetry.tracing.close()
    made.server.shutdown()
    made.server.server_close()


def test_a_batch_is_a_span_with_its_steps_and_links_to_its_records(collector: Collector) -> None:
    headers: list[Any] = [[("traceparent", SAMPLED.encode())], [("traceparent", b"garbage\xff"), ("x", None)], None]
    messages = [Message("t", 0, n, None, b"ada@example.com", each, None, None) for n, each in enumerate(headers)]
    batch = telemetry.begin_batch("intake", messages)
    with telemetry.step("prepare", batch):
        pass
    with pytest.raises(ValueError, match="ada"), telemetry.step("apply", batch):
        raise ValueError("ada@example.com")
    batch.end()
    telemetry.tracing.close()

    spans = collector.spans()
    whole = spans["process intake"]
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in whole.links] == [(TRACE, PARENT)]
    assert {a.key: a.value.int_value for a in whole.attributes}["messaging.batch.message_count"] == 3
    assert {spans[step].parent_span_id for step in ("prepare", "apply")} == {whole.span_id}
    assert spans["apply"].status.message == "ValueError"
    assert all(b"example.com" not in request.SerializeToString() for request in collector.requests)
    names = {a.key: a.value.string_value for a in collector.requests[0].resource_spans[0].resource.attributes}
    assert (names["service.name"], names["service.namespace"]) == ("worker", "leadstream")


def test_a_request_is_a_span_of_its_callers_trace_and_is_propagated(collector: Collector) -> None:
    with telemetry.request("POST /v1/events", {"traceparent": SAMPLED}) as passed:
        pass
    telemetry.tracing.close()
    span = collector.spans()["POST /v1/events"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert passed == f"00-{TRACE}-{span.span_id.hex()}-01"


@pytest.mark.parametrize(("header", "seen"), [(SAMPLED, True), (SAMPLED[:-1] + "0", False), ("garbage", False)])
async def test_the_work_on_a_single_record_is_a_span_if_its_trace_is_sampled(
    collector: Collector, header: str, *, seen: bool
) -> None:
    async def handle(_: Record) -> list[Output]:
        return []

    async def deliver(_: Sequence[Output]) -> None:
        pass

    acked = asyncio.Event()
    pipe = OrderedPipe("enrichment", handle, deliver)
    await pipe.submit(Record(("t", 0), 1, b"k", b"v", [("traceparent", header.encode())]), acked.set)
    await acked.wait()
    telemetry.tracing.close()
    spans = collector.spans()
    assert set(spans) == ({"process enrichment"} if seen else set())
    assert [span.parent_span_id.hex() for span in spans.values()] == [PARENT] * seen


def test_without_a_collector_the_traceparent_of_the_caller_is_forwarded() -> None:
    for header, forwarded in (
        (SAMPLED, SAMPLED),
        (f"01{SAMPLED[2:]}-ada@example.com", SAMPLED),
        ("garbage\x01", ""),
        ("", ""),
    ):
        with telemetry.request("POST /v1/events", {"traceparent": header}) as found:
            assert found == forwarded
    assert not telemetry.begin_batch("intake", []).is_recording()


def test_an_unavailable_collector_does_not_delay_the_process() -> None:
    telemetry.tracing.set_up("http://127.0.0.1:1", "worker")
    telemetry.begin_batch("intake", []).end()
    telemetry.tracing.close()
    assert not telemetry.tracing.on
