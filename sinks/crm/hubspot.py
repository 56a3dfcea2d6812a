"""HubSpot: each lead is one contact. The unique property ``leadstream_lead_id`` is the key.

Sources: developers.hubspot.com, API reference: "CRM contacts v3" (batch upsert, batch read, batch update, batch
archive, merge), "Error handling" (multi-status, 423, 429, 477), "Usage details" (limits, 429 body, daily reset at
midnight of the account's time zone, errors below 5 % of the day's requests). "Contact already exists. Existing ID: N":
HubSpot/hubspot-api-nodejs#545.

The e-mail addresses (also the additional ones) and ``leadstream_lead_id`` of a contact are unique in an account. All
writes are keyed by the latter, so a repeated call creates no second contact: a lead without a known contact is
upserted, one with a contact is updated. If no contact has the lead's id any more, the contact id tells why: the contact
was deleted, or a user merged it into another lead's contact. Contacts are not searched for: the search index lags.

Set-up: a private app with the scopes crm.objects.contacts and crm.schemas.contacts, read and write; the properties of
:data:`PROPERTIES` and ``leadstream_lead_id`` (single-line text, unique values). Missing properties are logged at start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
from pydantic import Field, SecretStr

from infra.errors import Verdict
from infra.http import Bucket, Unreachable, send
from infra.outcomes import Reason
from sinks.crm import RetiredLead, Snapshot, SyncConfig, Synced, SyncFailed, SyncResult
from sinks.crm.hubspot_erasure import erase
from sinks.crm.hubspot_replies import (
    ID_PROPERTY,
    NO_RESULT,
    by_id,
    error_without_lead,
    lead_of,
    meaning_of,
    objects,
    reason_of,
    results_of,
)
from sinks.crm.responses import as_text, by_status, ends_calls, in_halves, json_object

NAME = "hubspot"
BATCH_MAX = 100


class Config(SyncConfig):
    """Settings LEADSTREAM_CRM_HUBSPOT_*. Rate limit of a private app in 10 s: 100 (Free, Starter), 190 (Pro and up)."""

    base_url: str = Field("https://api.hubapi.com", pattern=r"^https?://", description="Base URL of HubSpot's API.")
    token: SecretStr = Field(min_length=1, description="Access token of a private app.")
    requests_per_10s: int = Field(100, ge=1, le=10_000, description="Maximum calls of one process in 10 seconds.")
    daily_pause_s: float = Field(900, ge=60, le=86_400, description="Pause at the account's daily limit, in seconds.")


# Lead field -> contact property. A field without a value is not sent: a HubSpot user may have filled it in. It is sent
# as "", which clears it, if it had a value before, and for an erased lead with later values. Only HubSpot's GDPR delete
# also removes the property's history.
PROPERTIES = {
    "email": "email",
    "phone": "phone",
    "first_name": "firstname",
    "last_name": "lastname",
    "company": "company",
    "domain": "website",
    "title": "jobtitle",
    "country": "country",
    "region": "state",
    "industry": "industry",
    # Not HubSpot's properties of the same meaning: those accept only fixed values or user ids.
    "status": "leadstream_status",
    "owner": "leadstream_owner",
    "employees": "leadstream_employees",
    "score": "leadstream_score",
    "first_touch_source": "leadstream_first_touch_source",
    "last_touch_source": "leadstream_last_touch_source",
}

_POLICIES = {"SECONDLY": 1.0, "TEN_SECONDLY_ROLLING": 10.0}  # rate limit -> pause in seconds; DAILY: daily_pause_s
_PATH = "/crm/v3/objects/contacts"
_NAMES = frozenset(PROPERTIES.values())


def connect(config: Config, http: httpx.AsyncClient) -> HubSpot:
    """Return the connector; ``http`` is a client whose base URL is ``config.base_url``."""
    return HubSpot(config, http, Bucket(config.requests_per_10s, 10))


class HubSpot:
    """A :class:`sinks.crm.Connector` for HubSpot."""

    name = NAME
    batch_max = BATCH_MAX

    def __init__(self, config: Config, http: httpx.AsyncClient, bucket: Bucket) -> None:
        self._config = config
        self._http = http
        self._bucket = bucket
        self.merge_delay_s = config.merge_delay_s
        self.erases = config.erasure == "delete"
        self._headers = {"authorization": f"Bearer {config.token.get_secret_value()}"}

    async def ready(self) -> None:
        """Wait until the rate limit allows a call."""
        await self._bucket.ready()

    def properties(self, snapshot: Snapshot) -> Mapping[str, str]:
        """Return the mapped properties that have a value; of an erased lead, all."""
        values = {name: as_text(snapshot.attributes.get(field)) for field, name in PROPERTIES.items()}
        return values if snapshot.erased else {name: value for name, value in values.items() if value}

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        """Write up to 100 contacts: one call for known ones, one for new ones; several if an input makes one fail."""
        inputs = {record.lead_id: self._input(record) for record in records}
        known = {record.lead_id: record.remote_id for record in records if record.remote_id}
        results = await self._write("batch/update", {lead_id: inputs[lead_id] for lead_id in known})
        new = {lead_id: each for lead_id, each in inputs.items() if lead_id not in known}
        stop = next((result for result in results.values() if ends_calls(result)), None)
        results |= dict.fromkeys(new, stop) if stop else await self._write("batch/upsert", new)
        for lead_id, remote_id in known.items():
            if reason_of(results[lead_id]) is Reason.NOT_FOUND:
                results[lead_id] = stop or await self._restore(remote_id, lead_id, inputs[lead_id])
                stop = results[lead_id] if ends_calls(results[lead_id]) else stop
        results |= await self._adopt(inputs, results, known)
        return [results[record.lead_id] for record in records]

    def _input(self, record: Snapshot) -> dict[str, Any]:
        cleared = {name: "" for name in record.cleared if name in _NAMES}
        properties = {**cleared, **self.properties(record), ID_PROPERTY: record.lead_id}
        lead = {"idProperty": ID_PROPERTY, "id": record.lead_id, "objectWriteTraceId": record.lead_id}
        return lead | {"properties": properties}

    async def _restore(self, remote_id: str, lead_id: str, each: Mapping[str, Any]) -> SyncResult:
        """Write a lead whose contact no longer has its id: the contact was deleted, merged, or the id was removed."""
        contact = await self._send("GET", f"{_PATH}/{remote_id}?properties={ID_PROPERTY}")
        if isinstance(contact, SyncFailed):
            if contact.reason is not Reason.NOT_FOUND:
                return contact
            return (await self._write("batch/upsert", {lead_id: each}))[lead_id]
        found, owner = lead_of(contact)
        if not found:
            return NO_RESULT
        if owner not in ("", lead_id):  # merged into another lead's contact: neither overwritten nor created again
            return SyncFailed(Verdict.RETRY, Reason.CONFLICT, detail="MERGED", remote_id=found, owner_id=owner)
        return (await self._write("batch/update", {lead_id: by_id(found, lead_id, each["properties"])}))[lead_id]

    async def _adopt(
        self, inputs: Mapping[str, Any], results: Mapping[str, SyncResult], known: Collection[str]
    ) -> dict[str, SyncResult]:
        """Update the existing contacts that conflict with leads and belong to no lead: manually created or imported.

        A conflict with another lead's contact, or of a lead that has its own contact, gets its owner.
        """
        conflicts = {
            lead_id: result
            for lead_id, result in results.items()
            if isinstance(result, SyncFailed) and result.reason is Reason.CONFLICT and result.remote_id
        }
        unowned = {lead_id: result for lead_id, result in conflicts.items() if result.owner_id is None}
        owners = await self._read(sorted({result.remote_id for result in unowned.values()}))
        if isinstance(owners, SyncFailed):
            return {}
        updates: dict[str, Any] = {}
        decided: dict[str, SyncResult] = {}
        for lead_id, result in unowned.items():
            owner = owners.get(result.remote_id)
            adopted = any(update["id"] == result.remote_id for update in updates.values())
            if owner is None or adopted:
                continue
            if owner not in ("", lead_id) or (lead_id in known and not owner):
                decided[lead_id] = replace(result, owner_id=owner)
            else:
                updates[lead_id] = by_id(result.remote_id, lead_id, inputs[lead_id]["properties"])
        return decided | await self._write("batch/update", updates)

    async def retire(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        """Archive the contacts of deleted leads; merge those of merged leads into the survivor's contact.

        A merge keeps the timelines of both contacts. If the survivor has no contact, the merged lead's contact becomes
        the survivor's. A lead or survivor whose contact id is unknown is looked up by its key.
        """
        known = await self._read([lead.lead_id for lead in leads if not lead.remote_id], by=ID_PROPERTY)
        if isinstance(known, SyncFailed):
            return [known] * len(leads)
        existing = await self._read([lead.remote_id for lead in leads if lead.remote_id])
        if isinstance(existing, SyncFailed):
            return [existing] * len(leads)
        by_lead = {lead_id: remote_id for remote_id, lead_id in known.items()}
        # Not a contact that was deleted, or that a user merged into the contact of another lead.
        remote_ids = {
            lead.lead_id: lead.remote_id
            if existing.get(lead.remote_id) in ("", lead.lead_id, lead.survivor_id)
            else by_lead.get(lead.lead_id, "")
            for lead in leads
        }
        results: dict[str, SyncResult] = {}
        deleted = [lead.lead_id for lead in leads if not lead.survivor_id and remote_ids[lead.lead_id]]
        if deleted:
            reply = await self._post("batch/archive", {"inputs": [{"id": remote_ids[lead]} for lead in deleted]})
            results |= dict.fromkeys(deleted, reply if isinstance(reply, SyncFailed) else Synced())
        # The response to the call that created a survivor's contact may have been lost.
        unknown = {lead.survivor_id for lead in leads if lead.survivor_id and not lead.survivor_remote_id}
        found = await self._read(sorted(unknown), by=ID_PROPERTY)
        if isinstance(found, SyncFailed):
            return [results.get(lead.lead_id, found) for lead in leads]
        by_survivor = {lead_id: remote_id for remote_id, lead_id in found.items()}
        survivors = {
            lead.survivor_id: lead.survivor_remote_id or by_survivor.get(lead.survivor_id, "") for lead in leads
        }
        for lead in leads:
            if lead.survivor_id and remote_ids[lead.lead_id]:
                result = await self._merge(remote_ids[lead.lead_id], lead.survivor_id, survivors[lead.survivor_id])
                results[lead.lead_id] = result
                survivors[lead.survivor_id] = result.remote_id or survivors[lead.survivor_id]
        return [results.get(lead.lead_id, Synced()) for lead in leads]

    async def erase(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        """Delete contacts by HubSpot's GDPR delete: see :mod:`sinks.crm.hubspot_erasure`."""
        return await erase(leads, self._read, self._post)

    async def _merge(self, loser: str, survivor_id: str, survivor: str) -> SyncResult:
        """Merge the contact ``loser`` into ``survivor``; if that is "", make it the contact of ``survivor_id``."""
        if loser == survivor:
            return Synced(survivor)
        if not survivor:
            renamed = await self._write("batch/update", {survivor_id: by_id(loser, survivor_id, {})})
            return renamed[survivor_id]
        reply = await self._post("merge", {"primaryObjectId": survivor, "objectIdToMerge": loser})
        if not isinstance(reply, SyncFailed):
            return Synced(str(reply.get("id") or survivor))
        if reply.verdict is not Verdict.DEAD:
            return reply
        # One of them was merged or deleted already, by a call whose response was lost or by a HubSpot user.
        existing = await self._read([loser, survivor])
        if isinstance(existing, SyncFailed) or {loser, survivor} <= existing.keys():
            return reply
        return Synced(survivor) if loser not in existing else await self._merge(loser, survivor_id, "")

    async def test(self) -> Sequence[str]:
        """Check base URL, token, scopes and properties in one call."""
        reply = await self._send("GET", "/crm/v3/properties/contacts")
        if isinstance(reply, SyncFailed):
            return [f"the call to HubSpot failed: {reply.reason.value} {reply.detail}".strip()]
        present = {each.get("name"): each for each in objects(reply, "results")}
        problems = [f"property {p} is missing" for p in [ID_PROPERTY, *PROPERTIES.values()] if p not in present]
        if ID_PROPERTY in present and not present[ID_PROPERTY].get("hasUniqueValue"):
            problems.append(f"property {ID_PROPERTY} must have unique values")
        return problems

    async def _read(self, ids: Sequence[str], by: str = "") -> dict[str, str] | SyncFailed:
        """Return contact id -> lead id (or "") of each existing contact; ``ids``: contact ids, or values of ``by``."""
        if not ids:
            return {}
        body: dict[str, Any] = {"inputs": [{"id": each} for each in ids], "properties": [ID_PROPERTY]}
        reply = await self._post("batch/read", body | ({"idProperty": by} if by else {}))
        if isinstance(reply, SyncFailed):
            return {} if reply.reason is Reason.NOT_FOUND else reply
        if not objects(reply, "results") and not objects(reply, "errors"):
            return NO_RESULT  # it names the missing contacts as errors
        return dict(map(lead_of, objects(reply, "results")))

    async def _write(self, path: str, inputs: Mapping[str, Any]) -> dict[str, SyncResult]:
        """Write ``inputs``, by lead id (also the trace id). If one input makes the call fail, write them in halves."""
        if not inputs:
            return {}
        reply = await self._post(path, {"inputs": list(inputs.values())})
        if isinstance(reply, SyncFailed):
            results: dict[str, SyncResult] = dict.fromkeys(inputs, reply)
            one_input = reply.verdict is Verdict.DEAD or reply.reason in (Reason.CONFLICT, Reason.NOT_FOUND)
            unclear = dict(inputs) if one_input else {}
        else:
            results = results_of(reply, inputs)
            missing = {lead_id: each for lead_id, each in inputs.items() if lead_id not in results}
            results |= dict.fromkeys(missing, error_without_lead(reply))
            unclear = missing if objects(reply, "errors") else {}
        if len(unclear) <= 1:
            return results
        return results | await in_halves(partial(self._write, path), unclear)

    async def _post(self, path: str, body: object) -> dict[str, Any] | SyncFailed:
        return await self._send("POST", f"{_PATH}/{path}", body)

    async def _send(self, method: str, path: str, body: object = None) -> dict[str, Any] | SyncFailed:
        try:
            response = await send(self._http, method, path, body=body, headers=self._headers, before=self._bucket.take)
        except Unreachable as error:
            return SyncFailed(Verdict.RETRY, error.reason)
        reply = json_object(response.content)
        return reply if response.is_success else self._classify(response, reply)

    def _classify(self, response: httpx.Response, reply: Mapping[str, Any]) -> SyncFailed:
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return meaning_of(reply, response.status_code)
        policy = str(reply.get("policyName", ""))
        if policy == "DAILY":
            return SyncFailed(Verdict.PAUSE, Reason.QUOTA, self._config.daily_pause_s, policy)
        failed = by_status(response.status_code, response.headers.get("retry-after", ""))
        return replace(failed, wait_s=_POLICIES.get(policy, failed.wait_s), detail=policy)
