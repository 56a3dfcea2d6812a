"""Writer schemas from an upstream app's own schema registry, by id: intake asks for an id that is not ours.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (GET /schemas/ids/{id}).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from infra.errors import DependencyUnavailable

_WHO = "the schema registry"
_ASK_AGAIN_S = 30.0  # an id that was unknown may have been registered since
_MOST_UNKNOWN = 10_000
_NOT_FOUND = 404


def schema_fetch(url: str, *, transport: httpx.BaseTransport | None = None) -> Callable[[int], str] | None:
    """Return a function that fetches a schema (JSON) by its id from the registry at ``url``; None without a URL.

    ``url`` may hold user and password. The function blocks for at most about five seconds. It raises KeyError for an id
    that the registry does not know (asked again after 30 s at the earliest) and DependencyUnavailable when the registry
    is unavailable.
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
                raise DependencyUnavailable(_WHO, f"answer {answer.status_code}")
            found = answer.json()
            if found.get("schemaType", "AVRO") != "AVRO":
                raise KeyError(schema_id)
            return str(found["schema"])
        except httpx.TransportError as error:
            raise DependencyUnavailable(_WHO, type(error).__name__) from None
        except (ValueError, AttributeError):
            raise DependencyUnavailable(_WHO, "the answer is not a JSON object") from None

    return fetch
