"""HubSpot: a lead is a contact, keyed by a unique property of our own.

Sources: developers.hubspot.com, API reference: "CRM contacts v3" (batch upsert, batch read, batch update, batch
archive, merge), "Error handling" (multi-status, 423, 429, 477), "Usage details" (limits, 429 body, daily reset at
midnight of the account's time zone, errors below 5 % of the day's requests). "Contact already exists. Existing ID: N":
HubSpot/hubspot-api-nodejs#545. A contact's e-mail address is unique in an account; so is ``leadstream_lead_id``, which
keys our upserts, so that repeating any call makes no second contact. No search before a create: its index lags.

Set-up: a private app with crm.objects.contacts and crm.schemas.contacts, read and write; the properties of
:data:`PROPERTIES` and ``leadstream_lead_id`` (single-line text, unique values). Those that are missing are logged when
the process starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import httpx
from pydantic import Field, SecretStr

from infra.errors import Verdict
from infra.http import Bucket, Unreachable, send
from infra.outcomes import Reason
from sinks.crm import Gone, Snapshot, SyncConfig, Synced, SyncFailed, SyncResult
from sinks.crm.answers import as_text, by_status, in_halves, json_object

NAME = "hubspot"
BATCH_MAX = 100
ID_PROPERTY = "leadstream_lead_id"


class Config(SyncConfig):
    """LEADSTREAM_CRM_HUBSPOT_*. The limit of a private app: 100 in 10 s (Free, Starter), 190 (Pro, Enterprise)."""

    base_url: str = Field("https://api.hubapi.com", pattern=r"^https?://")
    token: SecretStr = Field(min_length=1, description="A private app's access token.")
    requests_per_10s: int = Field(100, ge=1, le=10_000, description="Calls of this process; other apps share it.")
    daily_pause_s: float = Field(900, ge=60, le=86_400, description="Seconds to wait when the day's calls are used up.")


# Lead field -> contact property. A field that is not set is not sent (people may have filled it in HubSpot), except
# that an erased lead's are cleared, by an empty string. HubSpot's history of them only goes with its GDPR delete.
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
    # HubSpot's own are lists of fixed values or user ids, ours are not:
    "status": "leadstream_status",
    "owner": "leadstream_owner",
    "employees": "leadstream_employees",
    "score": "leadstream_score",
    "first_touch_source": "leadstream_first_touch_source",
    "last_touch_source": "leadstream_last_touch_source",
}

# What its errors mean: by validation error code, then category, then status (infra.errors for the rest).
_CODES = {
    "PROPERTY_DOESNT_EXIST": SyncFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60),
    "READ_ONLY_VALUE": SyncFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60),
    "INVALID_EMAIL": SyncFailed(Verdict.DEAD, Reason.REJECTED),
}
_CATEGORIES = {
    "CONFLICT": SyncFailed(Verdict.RETRY, Reason.CONFLICT),
    "INVALID_AUTHENTICATION": SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    "EXPIRED_AUTHENTICATION": SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    "MISSING_SCOPES": SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    "VALIDATION_ERROR": SyncFailed(Verdict.DEAD, Reason.REJECTED),
}
_STATUSES = {
    401: SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    403: SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    409: SyncFailed(Verdict.RETRY, Reason.CONFLICT),
    423: SyncFailed(Verdict.PAUSE, Reason.RATE_LIMITED, 2),  # locked: retry after 2 s
    477: SyncFailed(Verdict.PAUSE, Reason.UNAVAILABLE, 300),  # the account moves to another data centre
}
_POLICIES = {"SECONDLY": 1.0, "TEN_SECONDLY_ROLLING": 10.0}  # seconds; DAILY: daily_pause_s
_ID_UNUSABLE = "non-unique"  # 400 "Unable to perform update/upsert by non-unique 0-1 property": it is about ID_PROPERTY
_CODE = re.compile(r'"error":\s*"([A-Z_]+)"')
_EXISTING = re.compile(r"Existing ID: (\d+)")
_NO_RESULT = SyncFailed(Verdict.RETRY, Reason.UNAVAILABLE, detail="no_result")  # 2xx without the record
_PATH = "/crm/v3/objects/contacts"


def connect(config: Config, http: httpx.AsyncClient) -> HubSpot:
    """Return the connector over ``http``, a client whose base is ``config.base_url``."""
    return HubSpot(config, http, Bucket(config.requests_per_10s, 10))


class HubSpot:
    """See :class:`sinks.crm.Connector`."""

    name = NAME
    batch_max = BATCH_MAX

    def __init__(self, config: Config, http: httpx.AsyncClient, bucket: Bucket) -> None:
        self._config = config
        self._http = http
        self._bucket = bucket
        self._headers = {"authorization": f"Bearer {config.token.get_secret_value()}"}

    async def ready(self) -> None:
        """Wait until a call is within the limit."""
        await self._bucket.ready()

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        """One call for up to 100 leads; each lead gets its own result."""
        inputs = {record.lead_id: _input(record) for record in records}
        results = await self._write("batch/upsert", inputs)
        results |= await self._adopt(inputs, results)
        return [results[record.lead_id] for record in records]

    async def _adopt(self, inputs: Mapping[str, Any], results: Mapping[str, SyncResult]) -> dict[str, SyncResult]:
        """Update contacts that have the lead's e-mail address and belong to no lead (made by hand, imported)."""
        in_the_way = {
            lead_id: result.remote_id
            for lead_id, result in results.items()
            if isinstance(result, SyncFailed) and result.reason is Reason.CONFLICT and result.remote_id
        }
        if not in_the_way:
            return {}
        owners = await self._read(sorted(set(in_the_way.values())))
        if isinstance(owners, SyncFailed):
            return {}
        updates: dict[str, Any] = {}
        for lead_id, remote_id in in_the_way.items():
            taken = any(update["id"] == remote_id for update in updates.values())
            if not taken and remote_id in owners and owners[remote_id] in ("", lead_id):
                updates[lead_id] = _by_id(remote_id, lead_id, inputs[lead_id]["properties"])
        return await self._write("batch/update", updates)

    async def retire(self, gone: Sequence[Gone]) -> Sequence[SyncResult]:
        """Archive deleted leads' contacts; merge the others into the survivor's, which keeps their timeline.

        A survivor without a contact takes over the loser's. A loser whose contact is not known is looked up by its key.
        """
        known = await self._read([g.lead_id for g in gone if not g.remote_id], by=ID_PROPERTY)
        if isinstance(known, SyncFailed):
            return [known] * len(gone)
        by_lead = {lead_id: remote_id for remote_id, lead_id in known.items()}
        remote_ids = {g.lead_id: g.remote_id or by_lead.get(g.lead_id, "") for g in gone}
        results: dict[str, SyncResult] = {}
        deleted = [g.lead_id for g in gone if not g.survivor_id and remote_ids[g.lead_id]]
        if deleted:
            answer = await self._post("batch/archive", {"inputs": [{"id": remote_ids[lead]} for lead in deleted]})
            results |= dict.fromkeys(deleted, answer if isinstance(answer, SyncFailed) else Synced())
        survivors = {g.survivor_id: g.survivor_remote_id for g in gone}
        for g in gone:
            if g.survivor_id and remote_ids[g.lead_id]:
                result = await self._hand_over(remote_ids[g.lead_id], g.survivor_id, survivors[g.survivor_id])
                results[g.lead_id] = result
                survivors[g.survivor_id] = result.remote_id or survivors[g.survivor_id]
        return [results.get(g.lead_id, Synced()) for g in gone]

    async def _hand_over(self, loser: str, survivor_id: str, survivor: str) -> SyncResult:
        if loser == survivor:
            return Synced(survivor)
        if not survivor:
            renamed = await self._write("batch/update", {survivor_id: _by_id(loser, survivor_id, {})})
            return renamed[survivor_id]
        answer = await self._post("merge", {"primaryObjectId": survivor, "objectIdToMerge": loser})
        if not isinstance(answer, SyncFailed):
            return Synced(str(answer.get("id") or survivor))
        if answer.verdict is not Verdict.DEAD:
            return answer
        # One of them was merged or deleted before (a lost answer, somebody in HubSpot): its id leads elsewhere now.
        left = await self._read([loser, survivor])
        if isinstance(left, SyncFailed) or {loser, survivor} <= left.keys():
            return answer
        return Synced(survivor) if loser not in left else await self._hand_over(loser, survivor_id, "")

    async def test(self) -> Sequence[str]:
        """Check address, token, scopes and properties with one call."""
        answer = await self._send("GET", "/crm/v3/properties/contacts")
        if isinstance(answer, SyncFailed):
            return [f"HubSpot answers {answer.reason.value} {answer.detail}".strip()]
        present = {each.get("name"): each for each in answer.get("results", ())}
        wrong = [f"property {p} is missing" for p in [ID_PROPERTY, *PROPERTIES.values()] if p not in present]
        if ID_PROPERTY in present and not present[ID_PROPERTY].get("hasUniqueValue"):
            wrong.append(f"property {ID_PROPERTY} must hold unique values")
        return wrong

    # -- calls -------------------------------------------------------------------------------------------------------

    async def _read(self, ids: Sequence[str], by: str = "") -> dict[str, str] | SyncFailed:
        """Return, for each contact that is there: contact id -> its lead id or ""."""
        if not ids:
            return {}
        body: dict[str, Any] = {"inputs": [{"id": each} for each in ids], "properties": [ID_PROPERTY]}
        answer = await self._post("batch/read", body | ({"idProperty": by} if by else {}))
        if isinstance(answer, SyncFailed):
            return answer
        contacts = answer.get("results") or ()
        return {str(c["id"]): (c.get("properties") or {}).get(ID_PROPERTY) or "" for c in contacts}

    async def _write(self, path: str, inputs: Mapping[str, Any]) -> dict[str, SyncResult]:
        """Write ``inputs`` (by lead id, which is also the trace id); halve what fails as a whole because of one."""
        if not inputs:
            return {}
        answer = await self._post(path, {"inputs": list(inputs.values())})
        if isinstance(answer, SyncFailed):
            results: dict[str, SyncResult] = dict.fromkeys(inputs, answer)
            unclear = dict(inputs) if answer.verdict is Verdict.DEAD or answer.reason is Reason.CONFLICT else {}
        else:
            results = _results(answer)
            missing = {lead_id: each for lead_id, each in inputs.items() if lead_id not in results}
            results |= dict.fromkeys(missing, _untraced(answer))
            unclear = missing if answer.get("errors") else {}
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
        answer = json_object(response.content)
        return answer if response.is_success else self._meaning(response, answer)

    def _meaning(self, response: httpx.Response, answer: Mapping[str, Any]) -> SyncFailed:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            policy = str(answer.get("policyName", ""))
            if policy == "DAILY":
                return SyncFailed(Verdict.PAUSE, Reason.QUOTA, self._config.daily_pause_s, policy)
            return SyncFailed(Verdict.PAUSE, Reason.RATE_LIMITED, _POLICIES.get(policy, 10.0), policy)
        return _error(answer, response.status_code)


def _input(record: Snapshot) -> dict[str, Any]:
    properties = {
        name: as_text(record.attributes.get(field))
        for field, name in PROPERTIES.items()
        if field in record.attributes or record.erased
    }
    properties[ID_PROPERTY] = record.lead_id
    return {
        "idProperty": ID_PROPERTY,
        "id": record.lead_id,
        "objectWriteTraceId": record.lead_id,
        "properties": properties,
    }


def _by_id(remote_id: str, lead_id: str, properties: Mapping[str, str]) -> dict[str, Any]:
    return {"id": remote_id, "objectWriteTraceId": lead_id, "properties": {**properties, ID_PROPERTY: lead_id}}


def _results(answer: Mapping[str, Any]) -> dict[str, SyncResult]:
    results: dict[str, SyncResult] = {}
    for error in answer.get("errors") or ():
        traces = (error.get("context") or {}).get("objectWriteTraceId") or ()
        results |= dict.fromkeys([traces] if isinstance(traces, str) else traces, _error(error))
    for contact in answer.get("results") or ():
        lead_id = contact.get("objectWriteTraceId") or (contact.get("properties") or {}).get(ID_PROPERTY)
        if lead_id:
            results[lead_id] = Synced(str(contact["id"]))
    return results


def _untraced(answer: Mapping[str, Any]) -> SyncFailed:
    errors = [e for e in answer.get("errors") or () if not (e.get("context") or {}).get("objectWriteTraceId")]
    return _error(errors[0]) if errors else _NO_RESULT


def _error(error: Mapping[str, Any], status: int = 400) -> SyncFailed:
    message, category = str(error.get("message", "")), str(error.get("category", ""))
    if _ID_UNUSABLE in message:
        return SyncFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60, ID_PROPERTY)
    codes = _CODE.findall(message) or [str(e.get("code")) for e in error.get("errors") or () if e.get("code")]
    meanings = [_CODES[code] for code in codes if code in _CODES]
    if category in _CATEGORIES:
        meanings.append(_CATEGORIES[category])
    if status in _STATUSES:
        meanings.append(_STATUSES[status])
    meaning = meanings[0] if meanings else by_status(status)
    existing = _EXISTING.search(message)
    return SyncFailed(
        meaning.verdict,
        meaning.reason,
        meaning.wait_s,
        codes[0] if codes else category,
        existing[1] if existing else "",
    )
