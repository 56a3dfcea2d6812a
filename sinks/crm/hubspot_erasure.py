"""HubSpot's GDPR delete: removes a contact for good, with its history and engagements, one call for each contact.

It is called with the contact's id, not with its address: that would also block the address, and the person may return.

Source: developers.hubspot.com, "CRM contacts v3", ``POST /crm/v3/objects/contacts/gdpr-delete``: 204.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from infra.outcomes import Reason
from sinks.crm import RetiredLead, Synced, SyncFailed, SyncResult
from sinks.crm.hubspot_replies import ID_PROPERTY
from sinks.crm.responses import ends_calls

Post = Callable[[str, object], Awaitable[dict[str, Any] | SyncFailed]]


class Read(Protocol):
    """Returns contact id -> lead id of each existing contact."""

    async def __call__(self, ids: Sequence[str], by: str = "") -> Mapping[str, str] | SyncFailed:
        """Look contacts up by id, or by the unique property ``by``."""
        ...


async def erase(leads: Sequence[RetiredLead], read: Read, post: Post) -> Sequence[SyncResult]:
    """Delete the contacts of ``leads`` for good; return one result for each.

    A lead whose contact is unknown is looked up by its key: the response to the call that made it may have been lost.
    """
    found = await read([lead.lead_id for lead in leads if not lead.remote_id], by=ID_PROPERTY)
    if isinstance(found, SyncFailed):
        return [found] * len(leads)
    by_lead = {lead_id: remote_id for remote_id, lead_id in found.items()}
    results: list[SyncResult] = []
    for lead in leads:
        remote_id = lead.remote_id or by_lead.get(lead.lead_id, "")
        if results and ends_calls(results[-1]):
            results.append(results[-1])
        else:
            results.append(await _erase(remote_id, post) if remote_id else Synced())
    return results


async def _erase(remote_id: str, post: Post) -> SyncResult:
    reply = await post("gdpr-delete", {"objectId": remote_id})
    return reply if isinstance(reply, SyncFailed) and reply.reason is not Reason.NOT_FOUND else Synced()
