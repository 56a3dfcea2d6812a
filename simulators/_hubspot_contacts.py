"""The stored contacts of the HubSpot simulator: unique values, merges, and a file that survives restarts.

An e-mail address is unique among the primary and the additional addresses (``hs_additional_emails``) of all contacts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

UNIQUE = ("email", "leadstream_lead_id")
ADDITIONAL = "hs_additional_emails"  # separated by ;

Contact = dict[str, str]


class Contacts:
    """The account's contacts, in memory and in ``file``, which is read at the start.

    The file has one line per request that changed contacts:
    ``{"set": {id: changed properties}, "gone": [ids], "merged": {merged id: surviving id}}``.

    Crash: a line that was not written completely is ignored by the next start; its request had no response.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self.by_id: dict[str, Contact] = {}
        self.merged: dict[str, str] = {}
        self._ids: dict[str, dict[str, str]] = {name: {} for name in UNIQUE}  # property -> value -> contact id
        self._next_id = 1
        text = file.read_bytes() if file.exists() else b""
        for line in text.splitlines():
            self._replay(line)
        self._file = file.open("ab", buffering=0)
        if not text.endswith(b"\n"):
            self._file.write(b"\n")  # so that the next line does not continue an incomplete one
        self._changes: dict[str, Any] = {}

    def _replay(self, line: bytes) -> None:
        try:
            changes = orjson.loads(line)
        except orjson.JSONDecodeError:
            return  # empty, or the incomplete last line of a killed process
        for contact_id, properties in changes.get("set", {}).items():
            self._set(contact_id, properties)
            self._next_id = max(self._next_id, int(contact_id) + 1)
        for contact_id in changes.get("gone", ()):
            self._remove(contact_id)
        self.merged |= changes.get("merged", {})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def flush(self) -> None:
        """Write the changes of this request to the file; call it before the response is sent."""
        if self._changes:
            self._file.write(orjson.dumps(self._changes) + b"\n")
            self._changes = {}

    def find(self, key: str, unique_property: str = "") -> str:
        """Return the id of a contact, or "" when there is none.

        ``key`` is a value of ``unique_property``; without it, an id: the contact's own or one that was merged into it.
        """
        if unique_property:
            return self._ids[unique_property].get(key.lower() if unique_property == "email" else key, "")
        while key in self.merged:
            key = self.merged[key]
        return key if key in self.by_id else ""

    def conflict(self, contact_id: str, properties: Contact) -> str:
        """Return the id of another contact that has one of the unique values of ``properties``, or ""."""
        for name in UNIQUE:
            other = self.find(properties.get(name) or "", name) if properties.get(name) else ""
            if other and other != contact_id:
                return other
        return ""

    def save(self, contact_id: str, properties: Contact) -> str:
        """Update a contact, or create one when ``contact_id`` is ""; return its id."""
        if not contact_id:
            contact_id, self._next_id = str(self._next_id), self._next_id + 1
        self._set(contact_id, properties)
        self._changes.setdefault("set", {}).setdefault(contact_id, {}).update(properties)
        return contact_id

    def remove(self, contact_id: str, survivor: str = "") -> None:
        """Remove a contact; with ``survivor``, its id finds that contact from now on."""
        self._remove(contact_id)
        self._changes.setdefault("gone", []).append(contact_id)
        if survivor:
            self.merged[contact_id] = survivor
            self._changes.setdefault("merged", {})[contact_id] = survivor

    def forget(self, contact_id: str) -> None:
        """Remove what the file has about a contact that is removed for good: the file is written anew without it."""
        self.flush()
        gone = {contact_id, *(merged for merged, survivor in self.merged.items() if survivor == contact_id)}
        kept = []
        for line in self._path.read_bytes().splitlines():
            changes = orjson.loads(line) if line else {}
            if "set" in changes:
                changes["set"] = {key: {} if key in gone else own for key, own in changes["set"].items()}
            kept.append(orjson.dumps(changes))
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(b"\n".join(kept) + b"\n")
        self._file.close()
        temporary.replace(self._path)
        self._file = self._path.open("ab", buffering=0)

    def _set(self, contact_id: str, properties: Contact) -> None:
        contact = self.by_id.setdefault(contact_id, {})
        self._unindex(contact)
        contact.update(properties)
        if contact.get(ADDITIONAL):
            primary = contact.get("email", "").lower()
            contact[ADDITIONAL] = ";".join(each for each in contact[ADDITIONAL].split(";") if each.lower() != primary)
        for name in UNIQUE:
            self._ids[name] |= dict.fromkeys(_keys(contact, name), contact_id)

    def _unindex(self, contact: Contact) -> None:
        for name in UNIQUE:
            for key in _keys(contact, name):
                self._ids[name].pop(key, None)

    def _remove(self, contact_id: str) -> None:
        self._unindex(self.by_id.pop(contact_id, {}))


def addresses(contact: Contact) -> list[str]:
    """Return the e-mail addresses of ``contact``, the primary one first."""
    return [each for each in (contact.get("email", ""), *contact.get(ADDITIONAL, "").split(";")) if each]


def _keys(contact: Contact, name: str) -> list[str]:
    """Return the values of the unique property ``name`` that find ``contact``."""
    if name == "email":
        return [each.lower() for each in addresses(contact)]
    return [contact[name]] if contact.get(name) else []
