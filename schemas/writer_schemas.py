"""Fetches the writer schemas of Confluent schema ids from the schema registry of an upstream app.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (GET /schemas/ids/{id}).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from infra.errors import DependencyUnavailable

_NAME = "the schema registry"
_UNKNOWN_S = 30.0  # time before an unknown id is requested again: it may have been registered since
_MAX_UNKNOWN = 10_000  # maximum number of unknown ids that are remembered
_RETRIED = frozenset({401, 407, 408, 429})  # not about the id: the account, or the load


def schema_fetch(url: str, *, transport: httpx.BaseTransport | None = None) -> Callable[[int], str] | None:
    """Return a function that fetches a schema by its id, or None if ``url`` is "".

    Args:
        url: of the registry; may contain user name and password.
        transport: for tests.

    Returns:
        A function from schema id to schema (JSON). It blocks for at most about 5 s. It raises KeyError if the registry
        does not know the id or its schema is not Avro, and DependencyUnavailable if the registry is unavailable. An
        unknown id is requested at most every 30 s.

    """
    if not url:
        return None
    client = httpx.Client(base_url=url.rstrip("/"), timeout=5, transport=transport)
    unknown: dict[int, float] = {}

    def fetch(schema_id: int) -> str:
        if time.monotonic() < unknown.get(schema_id, 0):
            raise KeyError(schema_id)
        try:
            response = client.get(f"/schemas/ids/{schema_id}")
            if response.is_client_error and response.status_code not in _RETRIED:
                if len(unknown) >= _MAX_UNKNOWN:
                    unknown.clear()
                unknown[schema_id] = time.monotonic() + _UNKNOWN_S
                raise KeyError(schema_id)
            if response.status_code != httpx.codes.OK:
                raise DependencyUnavailable(_NAME, f"status {response.status_code}")
            found = response.json()
            if found.get("schemaType", "AVRO") != "AVRO":
                raise KeyError(schema_id)
            return str(found["schema"])
        except httpx.TransportError as error:
            raise DependencyUnavailable(_NAME, type(error).__name__) from None
        except (ValueError, AttributeError):
            raise DependencyUnavailable(_NAME, "the response is not a JSON object") from None

    return fetch
