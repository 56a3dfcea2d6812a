"""An API without a broker: the deliverer, at the edge, keeps the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import httpx
from confluent_kafka.admin import AdminClient

from api.app import build
from infra.kafka.producer import Deliverer, Delivery, Output
from infra.runtime import Status
from infra.settings import Settings


class KeptRecords:
    """Stands in for the broker: it confirms every record."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    async def deliver_each(self, outputs: Sequence[Output]) -> list[Delivery]:
        first = len(self.outputs)
        self.outputs += outputs
        return [Delivery(0, first + i) for i in range(len(outputs))]


def app_of(kept: KeptRecords, **environ: str) -> Any:
    settings = Settings.load({f"LEADSTREAM_{name.upper()}": value for name, value in environ.items()})
    return build(settings, cast("Deliverer", kept), cast("AdminClient", None), Status())


def client_of(kept: KeptRecords, **environ: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app_of(kept, **environ), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://api")


def event(event_id: str = "e-1", **changes: Any) -> dict[str, Any]:
    envelope = {"event_id": event_id, "tenant": "acme"} | changes.pop("envelope", {})
    return {"type": "form_submitted", "envelope": envelope, "identifiers": {"email": "ada@example.com"}} | changes
