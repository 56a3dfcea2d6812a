"""What every connector does with an answer: read it, classify it by status, find the one record that is rejected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

import orjson

from infra.errors import Verdict, classify_status
from infra.outcomes import Reason
from sinks.crm import SyncFailed, SyncResult


def json_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that ``content`` is; an empty one where it is something else."""
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def as_text(value: Any) -> str:
    """Return a lead's value as a CRM's text; nothing for None, which clears a property."""
    if value is None:
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def by_status(status: int) -> SyncFailed:
    """Return what an HTTP ``status`` of 400 or more means where the connector's own tables do not say."""
    verdict = classify_status(status)
    return SyncFailed(verdict, Reason.REJECTED if verdict is Verdict.DEAD else Reason.UNAVAILABLE)


async def in_halves(
    write: Callable[[Mapping[str, Any]], Awaitable[dict[str, SyncResult]]], inputs: Mapping[str, Any]
) -> dict[str, SyncResult]:
    """Write each half of ``inputs`` (by lead id) by itself, because one of them fails the whole.

    A half that meets a pause or gets no answer ends it: the rest has the same result, without a call.
    """
    results: dict[str, SyncResult] = {}
    lead_ids = iter(inputs)
    for size in (len(inputs) // 2, len(inputs)):
        half = {lead_id: inputs[lead_id] for lead_id in islice(lead_ids, size)}
        results |= await write(half)
        if stop := next((results[lead_id] for lead_id in half if _ends_calls(results[lead_id])), None):
            return results | dict.fromkeys(lead_ids, stop)
    return results


def _ends_calls(result: SyncResult) -> bool:
    return isinstance(result, SyncFailed) and (result.verdict is Verdict.PAUSE or result.reason is Reason.TIMEOUT)
