"""The contact endpoints of the HubSpot simulator: batches, single contacts, merges and properties."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response

from simulators._hubspot_contacts import ADDITIONAL, UNIQUE, Contacts, addresses
from simulators._hubspot_responses import (
    ErrorBody,
    error_body,
    error_response,
    invalid_property,
    json_response,
    timestamp,
)

_MAX_INPUTS = 100
_EMAIL = re.compile(r"[^@\s,;]+@[^@\s,;]+\.[A-Za-z]{2,}")
_PROPERTIES = {
    *("email", "phone", "mobilephone", "firstname", "lastname", "company", "website", "jobtitle", "country", "state"),
    *("city", "zip", "address", "industry", "lifecyclestage", "hs_lead_status", "leadstream_lead_id"),
    *("leadstream_status", "leadstream_owner", "leadstream_employees", "leadstream_score"),
    *("leadstream_first_touch_source", "leadstream_last_touch_source", ADDITIONAL),
}
_ERROR_STATUS = {"CONFLICT": 409, "OBJECT_NOT_FOUND": 404}


class ContactsApi:
    """The endpoints over ``contacts``. Each counts what it did in ``stats``; the caller flushes the contacts."""

    def __init__(self, contacts: Contacts, stats: dict[str, int]) -> None:
        self._contacts = contacts
        self._stats = stats

    def upsert(self, inputs: list[Any]) -> Response:
        """Create or update contacts by a unique property."""
        return self._write(inputs, create=True)

    def update(self, inputs: list[Any]) -> Response:
        """Update contacts by id or by a unique property."""
        return self._write(inputs, create=False)

    def _write(self, inputs: list[Any], *, create: bool) -> Response:
        if error := _batch_error(inputs, create=create):
            return json_response(400, error)
        traces = [each.get("objectWriteTraceId") for each in inputs]
        errors_per_input = all(traces) and len(set(traces)) == len(traces)
        results, errors = [], []
        for each in inputs:
            found, input_error = self._check(each, create=create)
            if input_error is None:
                results.append(None if not errors_per_input else self._save(each, found))
                continue
            self._stats["rejected"] += 1
            if not errors_per_input:
                return json_response(_ERROR_STATUS.get(input_error["category"], 400), input_error)
            trace = {"objectWriteTraceId": [each["objectWriteTraceId"]]}
            errors.append(input_error | {"context": input_error.get("context", {}) | trace})
        if not errors_per_input:
            results = [self._save(each, self._check(each, create=create)[0]) for each in inputs]
        body = {"status": "COMPLETE", "results": results, "startedAt": timestamp(), "completedAt": timestamp()}
        if errors:
            return json_response(207, body | {"numErrors": len(errors), "errors": errors})
        return json_response(200, body)

    def _check(self, each: Any, *, create: bool) -> tuple[str, ErrorBody | None]:
        properties = each["properties"]
        email = properties.get("email")
        if email and not _EMAIL.fullmatch(email):
            return "", invalid_property("INVALID_EMAIL", "email", f"Email address {email} is invalid")
        found = self._contacts.find(str(each["id"]), each.get("idProperty", ""))
        if not found and not create:
            error = error_body("OBJECT_NOT_FOUND", "Could not get some CONTACT objects, they may be deleted")
            return "", error | {"context": {"ids": [str(each["id"])]}}
        if other := self._contacts.conflict(found, properties):
            return "", error_body("CONFLICT", f"Contact already exists. Existing ID: {other}")
        return found, None

    def _save(self, each: Any, found: str) -> dict[str, Any]:
        self._stats["updates" if found else "creates"] += 1
        properties = each["properties"]
        if not found:
            properties = {each["idProperty"]: each["id"]} | properties
        contact_id = self._contacts.save(found, properties)
        result = {"id": contact_id, "properties": properties, "createdAt": timestamp(), "updatedAt": timestamp()}
        result |= {"archived": False, "new": not found}
        if trace := each.get("objectWriteTraceId"):
            result["objectWriteTraceId"] = trace
        return result

    def read(self, inputs: list[Any], unique_property: str) -> Response:
        """Return the contacts that exist; status 207 when one does not."""
        if len(inputs) > _MAX_INPUTS:
            return json_response(400, _too_many_inputs())
        found = [self._contacts.find(str(each["id"]), unique_property) for each in inputs]
        body: dict[str, Any] = {"status": "COMPLETE", "results": [self._contact(each) for each in found if each]}
        if missing := [str(each["id"]) for each, exists in zip(inputs, found, strict=True) if not exists]:
            error = error_body("OBJECT_NOT_FOUND", "Could not get some CONTACT objects, they may be deleted")
            body |= {"numErrors": 1, "errors": [error | {"context": {"ids": missing}}]}
            return json_response(207, body)
        return json_response(200, body)

    def archive(self, inputs: list[Any]) -> Response:
        """Archive contacts by id; a missing contact is not an error."""
        if len(inputs) > _MAX_INPUTS:
            return json_response(400, _too_many_inputs())
        for each in inputs:
            if str(each["id"]) in self._contacts.by_id:
                self._contacts.remove(str(each["id"]))
                self._stats["archived"] += 1
        return Response(status_code=204)

    def gdpr_delete(self, key: str, unique_property: str) -> Response:
        """Delete a contact for good; 404 when there is none. By e-mail address, the address is blocked instead."""
        found = self._contacts.find(key, unique_property)
        if not found:
            if unique_property == "email":
                return Response(status_code=204)
            return error_response(404, "OBJECT_NOT_FOUND", "resource not found")
        self._contacts.remove(found)
        self._contacts.forget(found)
        self._stats["gdpr_deletes"] += 1
        return Response(status_code=204)

    def merge(self, primary: str, merged: str) -> Response:
        """Merge two contacts: the values of ``primary`` win. From then on the id ``merged`` also finds ``primary``.

        The e-mail addresses of ``merged`` become additional ones.
        """
        by_id = self._contacts.by_id
        if primary not in by_id or merged not in by_id or primary == merged:
            message = "Unable to merge objects: one does not exist or was merged before"
            return error_response(400, "VALIDATION_ERROR", message)
        merged_values = by_id[merged]
        self._contacts.remove(merged, primary)
        primary_values = by_id[primary]
        additional = [*addresses(primary_values)[1:], *addresses(merged_values)]
        kept = {k: v for k, v in merged_values.items() if v and not primary_values.get(k) and k != ADDITIONAL}
        email = (primary_values | kept).get("email", "")
        if others := [each for each in additional if each.lower() != email.lower()]:
            kept[ADDITIONAL] = ";".join(others)
        self._contacts.save(primary, kept)
        self._stats["merges"] += 1
        return json_response(200, self._contact(primary))

    def get(self, key: str, unique_property: str) -> Response:
        """Return one contact by id or by a unique property."""
        found = self._contacts.find(key, unique_property)
        if not found:
            return error_response(404, "OBJECT_NOT_FOUND", "resource not found")
        return json_response(200, self._contact(found))

    def page(self, limit: int, after: int) -> Response:
        """Return at most ``limit`` contacts with an id above ``after``, in the order of their ids."""
        ids = sorted((each for each in self._contacts.by_id if int(each) > after), key=int)
        body: dict[str, Any] = {"results": [self._contact(each) for each in ids[:limit]]}
        if len(ids) > limit:
            body["paging"] = {"next": {"after": ids[limit - 1]}}
        return json_response(200, body)

    def properties(self) -> Response:
        """Return the properties that a contact can have."""
        listed = [{"name": name, "type": "string", "hasUniqueValue": name in UNIQUE} for name in sorted(_PROPERTIES)]
        return json_response(200, {"results": listed})

    def _contact(self, contact_id: str) -> dict[str, Any]:
        return {"id": contact_id, "properties": self._contacts.by_id[contact_id], "archived": False}


def _batch_error(inputs: list[Any], *, create: bool) -> ErrorBody | None:
    """Return the error that fails the whole batch, or None."""
    if len(inputs) > _MAX_INPUTS:
        return _too_many_inputs()
    ids = [str(each["id"]) for each in inputs]
    if len(set(ids)) < len(ids):
        return error_body("VALIDATION_ERROR", "Duplicate IDs found in batch input: IDs must be unique")
    if any(each.get("idProperty", "") not in (UNIQUE if create else ("", *UNIQUE)) for each in inputs):
        return error_body("VALIDATION_ERROR", "Unable to perform update/upsert by non-unique 0-1 property")
    for each in inputs:
        if unknown := each["properties"].keys() - _PROPERTIES:
            name = min(unknown)
            return invalid_property("PROPERTY_DOESNT_EXIST", name, f'Property "{name}" does not exist')
    return None


def _too_many_inputs() -> ErrorBody:
    return error_body("VALIDATION_ERROR", f"Invalid input: the batch holds more than {_MAX_INPUTS} inputs")
