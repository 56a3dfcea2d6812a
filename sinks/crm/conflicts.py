"""What to do with a lead whose address or record belongs to the CRM record of another lead.

Retrying helps only if that other record is going to change. Otherwise a person must decide: merge the two leads, or
correct one of the two records. The outcome and ``crm_sync.detail`` name the record and its lead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from infra.postgres.leased_rows import NEVER, Parked
from sinks.crm import SyncFailed
from sinks.crm.sync_table import Owner, SyncRow

_MAX_ATTEMPTS = 10  # with the default backoff: 8 minutes; two leads may wait for one another for ever
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def uuids(texts: Iterable[str]) -> list[str]:
    """Return the ``texts`` that are UUIDs. A CRM user can write anything into the property of the lead's id."""
    return sorted({text for text in texts if _UUID.fullmatch(text)})


def conflict(row: SyncRow, version: int, failed: SyncFailed, owners: Mapping[str, Owner]) -> Parked:
    """Return the result of a lead that conflicts with the record ``failed.remote_id`` of ``failed.owner_id``.

    It is retried with backoff while that record is going to change, at most ``_MAX_ATTEMPTS`` times. Otherwise it waits
    until a newer version is wanted, or the owner is written or retired.

    Args:
        row: the lead's row.
        version: the version that was sent.
        failed: the CRM's answer, with an ``owner_id`` that is not None.
        owners: the leads of this installation among the owners.

    """
    owner = owners.get(failed.owner_id or "")
    if not failed.owner_id:
        whose = "belongs to no lead: merge the two records in the CRM"
    elif owner is None:
        whose = "belongs to a lead that does not exist here"
    elif owner.tenant != row.tenant:
        whose = "belongs to a lead of another tenant"
    else:
        whose = f"belongs to lead {failed.owner_id}"
    detail = f"{failed.detail}: record {failed.remote_id} {whose}"
    retry = owner is not None and owner.unsettled and row.attempts + 1 < _MAX_ATTEMPTS
    lead_id = failed.owner_id if owner is not None else None
    return Parked(failed.reason, detail, until=None if retry else NEVER, version=version, value=lead_id)
