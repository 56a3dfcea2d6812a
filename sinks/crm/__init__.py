"""CRM sync: one level-triggered reconciler, and one file a CRM.

A connector file defines ``NAME``, ``Config`` (a :class:`SyncConfig`) and ``connect(config, http) -> Connector``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Verdict
from infra.outcomes import Reason


class SyncConfig(BaseModel):
    """What every CRM's settings hold: where it is and how the engine works for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = Field(pattern=r"^https?://")
    timeout_s: float = Field(10, gt=0, le=60, description="Longest wait for the answer to one call.")
    in_flight: int = Field(4, ge=1, le=64, description="Most batches in progress at once.")
    lease_s: float = Field(60, ge=5, le=3600, description="After a crash, leads that were claimed are free after this.")
    backoff_s: float = Field(0.5, gt=0, le=60, description="Mean wait after a lead's first failure; doubles with each.")
    backoff_max_s: float = Field(300, ge=1, le=86_400, description="Longest mean wait after a failure.")
    poll_s: float = Field(0.5, gt=0, le=1, description="How often to look for work that nobody announced.")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A live lead as of ``version``. ``attributes``: the fields of lead.avsc that are set.

    ``remote_id``: the CRM's own id of its record, "" where none is known. ``erased``: the lead was erased; whatever the
    CRM has of it besides ``attributes`` has to go.
    """

    lead_id: str
    tenant: str
    version: int
    attributes: Mapping[str, Any]
    remote_id: str = ""
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A lead that is no more: merged into ``survivor_id``, or deleted (then that is "").

    ``remote_id`` is "" when it is not known whether the CRM has a record; ``survivor_remote_id`` when it has none, or
    none that is known.
    """

    lead_id: str
    remote_id: str = ""
    survivor_id: str = ""
    survivor_remote_id: str = ""


@dataclass(frozen=True, slots=True)
class Synced:
    """The CRM has it. ``remote_id``: of the lead's record; of the survivor's after a retirement."""

    remote_id: str = ""


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """The CRM did not accept it. ``verdict`` says what to do; with PAUSE for ``wait_s`` seconds (0: by backoff).

    ``detail`` is the CRM's own error code, never its message (it quotes values). ``remote_id``: the record in the way.
    """

    verdict: Verdict
    reason: Reason
    wait_s: float = 0
    detail: str = ""
    remote_id: str = ""


SyncResult = Synced | SyncFailed


class Connector(Protocol):
    """A CRM. Calls are keyed by lead: repeating one, or one whose answer was lost, has no further effect."""

    name: str
    batch_max: int

    async def ready(self) -> None:
        """Wait until the CRM's rate limit allows a call."""
        ...

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        """Create or update up to ``batch_max`` records, of different leads; results in the same order. Never raises."""
        ...

    async def retire(self, gone: Sequence[Gone]) -> Sequence[SyncResult]:
        """Make the records of ``gone`` (up to ``batch_max``) vanish or become the survivor's. Never raises."""
        ...

    async def test(self) -> Sequence[str]:
        """Return what is wrong with the account, the token or its set-up, in words; nothing: ready for use."""
        ...
