"""Fetches the writer schemas of Confluent schema ids from the schema registry of an upstream app.

Guarantees: no id stops its caller for ever, and many unknown ids do not make the others wait.

- An id that the registry does not know, refuses, or whose schema is not Avro is requested at most every 30 s.
- While requests fail (status 5xx, no response, no JSON), the registry counts as unavailable, and the caller waits. If
  they have failed for 60 s and the registry responds otherwise, the failing ids count as unknown. "Otherwise" is for an
  id that it had before, or for its root if there was none. Later failures do not wait again, until there was none for
  5 minutes.
- Requests for unknown ids take at most 2 s, and then a tenth of the time: 20 a second if each takes 5 ms. Above that,
  ids that were never fetched count as unknown without a request and are not remembered as such; a log line shows it.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (GET /schemas/ids/{id}).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from infra.errors import DependencyUnavailable
from infra.runtime import log

_NAME = "the schema registry"
_UNKNOWN_S = 30.0  # time before an unknown id is requested again: it may have been registered since
_MAX_UNKNOWN = 10_000  # maximum number of unknown ids that are remembered
_RETRIED = frozenset({401, 407, 408, 429})  # not about the id: the account, or the load
_GRACE_S = 60.0  # of failing requests: it may be the registry that fails, and not the id
_CALM_S = 300.0  # time without a failed request after which the next one begins a new grace period
_BUDGET_S = 2.0  # for requests for unknown ids
_SHARE = 0.1  # seconds by which the budget grows in each second


def schema_fetch(
    url: str, *, transport: httpx.BaseTransport | None = None, clock: Callable[[], float] = time.monotonic
) -> Callable[[int], str] | None:
    """Return a function that fetches a schema by its id, or None if ``url`` is "".

    Args:
        url: of the registry; may contain user name and password.
        transport: for tests.
        clock: returns seconds, for tests.

    Returns:
        A function from schema id to schema (JSON). It blocks for at most about 10 s. It raises KeyError if the registry
        does not know the id or its schema is not Avro, and DependencyUnavailable if the registry is unavailable: see
        the guarantees of this module.

    """
    if not url:
        return None
    client = httpx.Client(base_url=url.rstrip("/"), timeout=5, transport=transport)
    return _Fetch(client, clock).schema


class _Failed(Exception):  # noqa: N818 - a result
    """There is no usable response. The message says why."""


class _Fetch:
    def __init__(self, client: httpx.Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._unknown: dict[int, float] = {}  # id -> time at which it is requested again
        self._known: int | None = None  # the id that was fetched last
        self._failing: tuple[float, float] | None = None  # times of the first and of the latest failed request
        self._budget, self._budget_at = _BUDGET_S, clock()
        self._spent = False

    def schema(self, schema_id: int) -> str:
        began = self._clock()
        if began < self._unknown.get(schema_id, began) or not self._may_request(began):
            raise KeyError(schema_id)
        try:
            found = self._request(schema_id)
        except _Failed as error:
            if not self._is_only_the_id():
                raise DependencyUnavailable(_NAME, str(error)) from None
            found = None
        if found is None:
            now = self._clock()
            self._budget -= now - began
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = now + _UNKNOWN_S
            raise KeyError(schema_id)
        self._known = schema_id
        return found

    def _may_request(self, now: float) -> bool:
        """Return whether the budget has time left; log it once when it has none."""
        self._budget = min(_BUDGET_S, self._budget + (now - self._budget_at) * _SHARE)
        self._budget_at = now
        spent, self._spent = self._spent, self._budget <= 0
        if self._spent and not spent:
            log("schemas").warning("many unknown schema ids: some are not looked up")
        return not self._spent

    def _request(self, schema_id: int) -> str | None:
        """Return the schema, or None if the id is unknown. Raises _Failed."""
        response = self._get(f"/schemas/ids/{schema_id}")
        if response.is_client_error:
            return None
        try:
            found = response.json()
            is_avro = found.get("schemaType", "AVRO") == "AVRO"
        except (ValueError, AttributeError):
            raise _Failed("the response is not a JSON object") from None
        return str(found["schema"]) if is_avro and "schema" in found else None

    def _get(self, path: str) -> httpx.Response:
        """Return a response with the status 200, or 4xx about the request. Raises _Failed."""
        try:
            response = self._client.get(path)
        except httpx.TransportError as error:
            raise _Failed(type(error).__name__) from None
        refused = response.is_client_error and response.status_code not in _RETRIED
        if response.status_code != httpx.codes.OK and not refused:
            raise _Failed(f"status {response.status_code}")
        return response

    def _is_only_the_id(self) -> bool:
        """Note a failed request; return whether they have failed for long while the registry responds otherwise."""
        now = self._clock()
        first, latest = self._failing or (now, now)
        if now - latest > _CALM_S:
            first = now
        self._failing = first, now
        if now - first < _GRACE_S:
            return False
        try:
            self._get("/" if self._known is None else f"/schemas/ids/{self._known}")
        except _Failed:
            return False
        return True
