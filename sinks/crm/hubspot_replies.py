"""What HubSpot's responses mean, successes and errors. Sources: see :mod:`sinks.crm.hubspot`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.errors import Verdict
from infra.outcomes import Reason
from sinks.crm import Synced, SyncFailed, SyncResult
from sinks.crm.responses import by_status

ID_PROPERTY = "leadstream_lead_id"

# By validation error code, then by category, then by status (by_status for the other statuses).
_CODES = {
    "PROPERTY_DOESNT_EXIST": SyncFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60),
    "READ_ONLY_VALUE": SyncFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60),
    "INVALID_EMAIL": SyncFailed(Verdict.DEAD, Reason.REJECTED),
}
_CATEGORIES = {
    "OBJECT_NOT_FOUND": SyncFailed(Verdict.RETRY, Reason.NOT_FOUND),
    "CONFLICT": SyncFailed(Verdict.RETRY, Reason.CONFLICT),
    "INVALID_AUTHENTICATION": SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    "EXPIRED_AUTHENTICATION": SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    "MISSING_SCOPES": SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    "VALIDATION_ERROR": SyncFailed(Verdict.DEAD, Reason.REJECTED),
}
_STATUSES = {
    401: SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),  # the token of a private app cannot be refreshed
    423: SyncFailed(Verdict.PAUSE, Reason.RATE_LIMITED, 2),  # locked: retry after 2 s
    477: SyncFailed(Verdict.PAUSE, Reason.UNAVAILABLE, 300),  # the account is being moved to another data centre
}
# In a message of status 400, "Unable to perform update/upsert by non-unique 0-1 property": ID_PROPERTY is not unique.
_ID_NOT_UNIQUE = "non-unique"
_CODE = re.compile(r'"error":\s*"([A-Z_]+)"')
_EXISTING = re.compile(r"Existing ID: (\d+)")
NO_RESULT = SyncFailed(Verdict.RETRY, Reason.UNAVAILABLE, detail="no_result")  # status 2xx without the lead's result


def meaning_of(error: Mapping[str, Any], status: int = 400) -> SyncFailed:
    """Return the meaning of an error body: of a whole response with ``status``, or of one input of a batch."""
    message, category = str(error.get("message", "")), str(error.get("category", ""))
    if _ID_NOT_UNIQUE in message:
        return SyncFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60, ID_PROPERTY)
    codes = _CODE.findall(message) or [str(each["code"]) for each in objects(error, "errors") if each.get("code")]
    meanings = [_CODES[code] for code in codes if code in _CODES]
    if category in _CATEGORIES:
        meanings.append(_CATEGORIES[category])
    if status in _STATUSES:
        meanings.append(_STATUSES[status])
    meaning = meanings[0] if meanings else by_status(status)
    existing = _EXISTING.search(message)
    ids = _texts(error, "existingId") or (existing.groups() if existing else [""])
    return SyncFailed(
        meaning.verdict,
        meaning.reason,
        meaning.wait_s,
        codes[0] if codes else category,
        ids[0],
    )


def objects(reply: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the objects in the array ``name`` of a response; anything else in its place counts as nothing."""
    found = reply.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def lead_of(contact: Mapping[str, Any]) -> tuple[str, str]:
    """Return the contact's id and its lead's id, each "" if there is none."""
    properties = contact.get("properties")
    lead_id = properties.get(ID_PROPERTY) if isinstance(properties, dict) else ""
    return str(contact.get("id") or ""), str(lead_id or "")


def results_of(reply: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, SyncResult]:
    """Return the results that a response to ``inputs`` (by lead id) has; HubSpot may leave some out."""
    by_id = {str(each["id"]): lead_id for lead_id, each in inputs.items()}
    results: dict[str, SyncResult] = {}
    for error in objects(reply, "errors"):
        results |= dict.fromkeys(_lead_ids(error, by_id), meaning_of(error))
    for contact in objects(reply, "results"):
        contact_id, lead_id = lead_of(contact)
        lead_id = str(contact.get("objectWriteTraceId") or lead_id)
        if contact_id and lead_id:
            results[lead_id] = Synced(contact_id)
    return results


def error_without_lead(reply: Mapping[str, Any]) -> SyncFailed:
    """Return the result of the leads that a response does not name: its first error that names none, or NO_RESULT."""
    errors = [error for error in objects(reply, "errors") if not _lead_ids(error, {})]
    return meaning_of(errors[0]) if errors else NO_RESULT


def _lead_ids(error: Mapping[str, Any], by_id: Mapping[str, str]) -> list[str]:
    """Return the leads that ``error`` is about; an error about missing contacts may name only their ids."""
    named = [by_id[each] for each in _texts(error, "ids") if each in by_id]
    return _texts(error, "objectWriteTraceId") or named


def _texts(error: Mapping[str, Any], name: str) -> list[str]:
    """Return the values of ``name`` in the context of ``error``: an array or a single one."""
    context = error.get("context")
    found = context.get(name) if isinstance(context, dict) else None
    return [str(each) for each in found] if isinstance(found, list) else [str(found)] if found else []


def by_id(remote_id: str, lead_id: str, properties: Mapping[str, str]) -> dict[str, Any]:
    """Return the input that writes the contact ``remote_id`` as that of a lead."""
    return {"id": remote_id, "objectWriteTraceId": lead_id, "properties": {**properties, ID_PROPERTY: lead_id}}


def reason_of(result: SyncResult) -> Reason | None:
    """Return why a call failed, or None."""
    return result.reason if isinstance(result, SyncFailed) else None
