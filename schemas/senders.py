"""What a sender of events may send: only its own tenant's events, and only what its scopes permit.

The HTTP API applies this to the key of a request, intake to the topic of a tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from infra.keys import PIPELINE, SCOPES
from infra.outcomes import Dead, Problem, Reason
from schemas.registry import EventType

OWN_SOURCE = "leadstream:"  # sources of events that the pipeline makes itself


class Sender(NamedTuple):
    """A sender: whose events it may send ("": every tenant's), its scopes, and its name for messages."""

    tenant: str
    scopes: frozenset[str]
    name: str


TRUSTED = Sender("", frozenset(SCOPES), "this program")
"""May send everything: a program with access to the topic of all tenants."""


def forbidden(kind: EventType, envelope: Mapping[str, Any], sender: Sender) -> Dead | None:
    """Return why ``sender`` may not send an event, or None if it may. The values have the types of the schema."""
    tenant, scopes, name = sender
    if tenant and envelope["tenant"] != tenant:
        message = f"{name} belongs to the tenant {tenant}: it cannot send events of another one"
        return Dead(Reason.FORBIDDEN, (Problem("/envelope/tenant", message),))
    if kind.scope and kind.scope not in scopes:
        message = f"{name} lacks the scope {kind.scope}, which {kind.name} needs"
        return Dead(Reason.FORBIDDEN, (Problem("/type", message),))
    if PIPELINE not in scopes and envelope["source"].strip().casefold().startswith(OWN_SOURCE):
        message = f"{name} lacks the scope {PIPELINE}: sources that begin with {OWN_SOURCE} are the pipeline's"
        return Dead(Reason.FORBIDDEN, (Problem("/envelope/source", message),))
    return None
