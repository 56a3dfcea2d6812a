"""GET /live, /ready and /metrics of the front door."""

from __future__ import annotations

import asyncio
import time

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from api.ingest.accept import TOPIC

_ASK_S = 2.0
_REMEMBER_S = 1.0


class Health:
    """Ready means that the broker answers and has the topic; asked at most once a second, however often probed."""

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin
        self._lock = asyncio.Lock()
        self._waiting = ""
        self._asked_at = float("-inf")

    @property
    def routes(self) -> list[Route]:
        """The three paths."""
        return [Route("/live", self.live), Route("/ready", self.ready), Route("/metrics", self.metrics)]

    async def live(self, _: Request) -> Response:
        """Answer while the process serves."""
        return PlainTextResponse("live\n")

    async def ready(self, _: Request) -> Response:
        """Answer 200 while events can be accepted, else 503 with what is waited for."""
        async with self._lock:
            if time.monotonic() - self._asked_at > _REMEMBER_S:
                self._waiting = await asyncio.to_thread(self._ask)
                self._asked_at = time.monotonic()
        return PlainTextResponse(f"{self._waiting or 'ready'}\n", 503 if self._waiting else 200)

    async def metrics(self, _: Request) -> Response:
        """Answer with Prometheus' text format."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    def _ask(self) -> str:
        try:
            topic = self._admin.list_topics(TOPIC, _ASK_S).topics[TOPIC]
        except KafkaException as error:
            return f"waiting for Kafka: {error.args[0].name()}"
        return f"waiting for the topic {TOPIC}; run leadstream topics apply" if topic.error else ""
