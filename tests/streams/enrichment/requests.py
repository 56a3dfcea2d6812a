"""Builds enrichment requests about fictional leads."""

from __future__ import annotations

import json
import uuid
from typing import Any

from schemas.codec import Codec
from schemas.registry import registry

_ENCODE = Codec().encoder("enrichment_request")
NOW = 1_770_000_000_000_000


def request(number: int, tenant: str = "acme", **fields: Any) -> bytes:
    """Return the enrichment request for lead ``number``, with ``fields`` of lead.avsc changed."""
    lead = {field["name"]: field.get("default") for field in registry().lead.source["fields"]}
    lead |= {"lead_id": lead_id(tenant, number), "tenant": tenant, "version": 1, "created_at": NOW, "updated_at": NOW}
    lead |= {"email": f"lead{number}@example.com"} | fields
    return _ENCODE({"tenant": tenant, "event_id": f"request-{number}", "decided_at": NOW, "lead": json.dumps(lead)})


def lead_id(tenant: str, number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{tenant}/{number}"))
