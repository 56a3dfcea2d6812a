"""Shared response handling of CRM connectors: parse a body, classify a status, isolate a rejected record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson

from infra.errors import Verdict, classify_status
from infra.outcomes import Reason
from sinks.crm import SyncFailed, SyncResult

_MAX_WAIT_S = 86_400.0  # bounds a wrong Retry-After
_TOO_MANY = 429
_STATUSES = {
    401: SyncFailed(Verdict.REFRESH, Reason.UNAUTHORIZED, 60),
    403: SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    409: SyncFailed(Verdict.RETRY, Reason.CONFLICT),
    _TOO_MANY: SyncFailed(Verdict.PAUSE, Reason.RATE_LIMITED, 10),
}


def json_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in ``content``, or an empty one if ``content`` is anything else."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def as_text(value: Any) -> str:
    """Return a lead's value as text for a CRM; None becomes "", which clears the property."""
    if value is None:
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def by_status(status: int, retry_after: str = "") -> SyncFailed:
    """Return the default meaning of an HTTP ``status`` of 400 or more.

    A connector uses it for statuses that its own tables do not have. The contract test of CRMs requires these meanings.

    Args:
        status: of the response.
        retry_after: the response's header ``Retry-After``. If the status is 429, a number of seconds replaces the wait
            of 10 s, up to one day. Any other value, such as a date, is ignored.

    """
    failed = _STATUSES.get(status)
    if failed is None:
        verdict = classify_status(status)
        return SyncFailed(verdict, Reason.REJECTED if verdict is Verdict.DEAD else Reason.UNAVAILABLE)
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0
    return replace(failed, wait_s=min(seconds, _MAX_WAIT_S)) if seconds and status == _TOO_MANY else failed


async def in_halves(
    write: Callable[[Mapping[str, Any]], Awaitable[dict[str, SyncResult]]], inputs: Mapping[str, Any]
) -> dict[str, SyncResult]:
    """Write each half of ``inputs`` (by lead id) in a call of its own: one of the inputs makes the whole call fail.

    If a half ends in a pause or a timeout, no further call is made, and the rest of the inputs has the same result.
    """
    results: dict[str, SyncResult] = {}
    lead_ids = iter(inputs)
    for size in (len(inputs) // 2, len(inputs)):
        half = {lead_id: inputs[lead_id] for lead_id in islice(lead_ids, size)}
        results |= await write(half)
        if stop := next((results[lead_id] for lead_id in half if ends_calls(results[lead_id])), None):
            return results | dict.fromkeys(lead_ids, stop)
    return results


def ends_calls(result: SyncResult) -> bool:
    """Return whether no further call may be made: the CRM requests a pause, or does not respond in time."""
    return isinstance(result, SyncFailed) and (result.verdict is Verdict.PAUSE or result.reason is Reason.TIMEOUT)
