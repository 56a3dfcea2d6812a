"""What was sent to a CRM for a lead, without personal data: the name of each property and a hash of its value.

A fingerprint answers two questions: is there anything new to send, and which properties have to be cleared?
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import blake2b
from uuid import UUID

Fingerprint = Mapping[str, str]


def fingerprint(lead_id: str, properties: Mapping[str, str]) -> Fingerprint:
    """Return property name -> hash of 48 bits. The lead's id is its key: two leads with one value differ."""
    key = UUID(lead_id).bytes
    return {
        name: b64encode(blake2b(value.encode(), digest_size=6, key=key).digest()).decode()
        for name, value in properties.items()
    }
