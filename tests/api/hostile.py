"""An API without a broker: the deliverer, at the edge, keeps the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import httpx

from api.app import build
from infra.kafka.producer import Deliverer, Delivery, Output
from infra.keys import SCOPES, ApiKey, digest_of, new_key
from infra.settings import Settings

_NEVER = 1 << 62
_ID, _KEY = new_key()
EVERYTHING = {"Authorization": f"Bearer {_KEY}"}
"""The headers of a key that permits everything, to an application with :class:`FixedKeys`."""


class FixedKeys:
    """The keys of an application: one that permits everything, and ``others``."""

    def __init__(self, others: Mapping[str, ApiKey] | None = None) -> None:
        keys = {_KEY: ApiKey(_ID, "*", frozenset(SCOPES), _NEVER)} | dict(others or {})
        self._known = {digest_of(key.encode()): permitted for key, permitted in keys.items()}

    def get(self, digest: bytes) -> ApiKey | None:
        return self._known.get(digest)

    async def find(self, digest: bytes) -> ApiKey | None:
        return self._known.get(digest)


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
    return build(settings, cast("Deliverer", kept), FixedKeys())


def client_of(kept: KeptRecords, **environ: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app_of(kept, **environ), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers=EVERYTHING)


def event(event_id: str = "e-1", **changes: Any) -> dict[str, Any]:
    envelope = {"event_id": event_id, "tenant": "acme"} | changes.pop("envelope", {})
    return {"type": "form_submitted", "envelope": envelope, "identifiers": {"email": "ada@example.com"}} | changes
