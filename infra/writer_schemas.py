"""Schemas that are known by the ids of somebody else's registry: what intake asks when it meets such an id.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (GET /schemas/ids/{id}).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from infra.errors import DependencyUnavailable

_WHO = "the schema registry"
_ASK_AGAIN_S = 30.0  # an id that the registry did not know may be registered since
_MOST_UNKNOWN = 10_000
_NOT_FOUND = 404


def schema_fetch(url: str, *, transport: httpx.BaseTransport | None = None) -> Callable[[int], str] | None:
    """Return how to ask the registry at ``url`` for a schema; None without a URL. User and password may be in it.

    The function blocks for at most a few seconds. It raises KeyError for an id that the registry does not know (asked
    again after 30 s) and DependencyUnavailable when it does not answer.
    """
    if not url:
        return None
    client = httpx.Client(base_url=url.rstrip("/"), timeout=5, transport=transport)
    unknown: dict[int, float] = {}

    def fetch(schema_id: int) -> str:
        if time.monotonic() < unknown.get(schema_id, 0):
            raise KeyError(schema_id)
        try:
            answer = client.get(f"/schemas/ids/{schema_id}")
            if answer.status_code == _NOT_FOUND:
                if len(unknown) >= _MOST_UNKNOWN:
                    unknown.clear()
                unknown[schema_id] = time.monotonic() + _ASK_AGAIN_S
                raise KeyError(schema_id)
            if answer.status_code != httpx.codes.OK:
                raise DependencyUnavailable(_WHO, f"it answered {answer.status_code}")
            found = answer.json()
            if found.get("schemaType", "AVRO") != "AVRO":
                raise KeyError(schema_id)
            return str(found["schema"])
        except httpx.TransportError as error:
            raise DependencyUnavailable(_WHO, type(error).__name__) from None
        except (ValueError, AttributeError):
            raise DependencyUnavailable(_WHO, "its answer is no JSON object") from None

    return fetch
