"""The contacts of the HubSpot simulator: unique values, merges, and a file that survives restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

UNIQUE = ("email", "leadstream_lead_id")

Contact = dict[str, str]


class Contacts:
    """The account's contacts, in memory and in ``file``: one line a call that wrote, read again at the start.

    A line is ``{"set": {id: changed properties}, "gone": [ids], "merged": {loser id: survivor id}}``.
    """

    def __init__(self, file: Path) -> None:
        self.by_id: dict[str, Contact] = {}
        self.merged: dict[str, str] = {}
        self._by: dict[str, dict[str, str]] = {name: {} for name in UNIQUE}
        self._next = 1
        text = file.read_bytes() if file.exists() else b""
        for line in text.splitlines():
            self._replay(line)
        self._file = file.open("ab", buffering=0)
        if not text.endswith(b"\n"):
            self._file.write(b"\n")  # the next line is not to be part of one that was cut
        self._line: dict[str, Any] = {}

    def _replay(self, line: bytes) -> None:
        try:
            change = orjson.loads(line)
        except orjson.JSONDecodeError:
            return  # empty, or the last line of a process that was killed
        for contact_id, properties in change.get("set", {}).items():
            self._set(contact_id, properties)
            self._next = max(self._next, int(contact_id) + 1)
        for contact_id in change.get("gone", ()):
            self._drop(contact_id)
        self.merged |= change.get("merged", {})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def flush(self) -> None:
        """Write this call's changes: only then is it answered."""
        if self._line:
            self._file.write(orjson.dumps(self._line) + b"\n")
            self._line = {}

    def find(self, key: str, by: str = "") -> str:
        """Return the contact's id, also for the id of one that was merged; "" if there is none."""
        if by:
            return self._by[by].get(key.lower() if by == "email" else key, "")
        while key in self.merged:
            key = self.merged[key]
        return key if key in self.by_id else ""

    def clash(self, contact_id: str, properties: Contact) -> str:
        """Return the id of another contact that has one of the unique values."""
        for name in UNIQUE:
            other = self.find(properties.get(name) or "", name) if properties.get(name) else ""
            if other and other != contact_id:
                return other
        return ""

    def save(self, contact_id: str, properties: Contact) -> str:
        """Create (``contact_id`` is "") or update a contact; return its id."""
        if not contact_id:
            contact_id, self._next = str(self._next), self._next + 1
        self._set(contact_id, properties)
        self._line.setdefault("set", {}).setdefault(contact_id, {}).update(properties)
        return contact_id

    def drop(self, contact_id: str, survivor: str = "") -> None:
        """Remove a contact; with ``survivor`` its id leads there from now on."""
        self._drop(contact_id)
        self._line.setdefault("gone", []).append(contact_id)
        if survivor:
            self.merged[contact_id] = survivor
            self._line.setdefault("merged", {})[contact_id] = survivor

    def _set(self, contact_id: str, properties: Contact) -> None:
        contact = self.by_id.setdefault(contact_id, {})
        for name in UNIQUE:
            if name in properties:
                self._index(name, contact.get(name, ""), properties[name], contact_id)
        contact.update(properties)

    def _index(self, name: str, before: str, after: str, contact_id: str) -> None:
        if name == "email":
            before, after = before.lower(), after.lower()
        if before and before != after:
            self._by[name].pop(before, None)
        if after:
            self._by[name][after] = contact_id

    def _drop(self, contact_id: str) -> None:
        contact = self.by_id.pop(contact_id, {})
        for name in UNIQUE:
            self._index(name, contact.get(name, ""), "", contact_id)
