"""CRM sync: makes each CRM match the canonical record. One level-triggered reconciler; each CRM is one file.

A connector file defines ``NAME``, ``Config`` (a :class:`SyncConfig`) and ``connect(config, http) -> Connector``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from infra.errors import Verdict
from infra.outcomes import Reason
from sinks.work_config import WorkConfig


class SyncConfig(WorkConfig):
    """The settings that every CRM has. ``process_fields``: those of the process; the others are of one account."""

    process_fields: ClassVar[frozenset[str]] = frozenset(
        {"in_flight", "lease_s", "backoff_s", "backoff_max_s", "poll_s"}
    )

    base_url: str = Field(pattern=r"^https?://", description="Base URL of the CRM's API.")
    timeout_s: float = Field(10, gt=0, le=60, description="Timeout of one call, in seconds; at most half of lease_s.")
    in_flight: int = Field(4, ge=1, le=64, description="Maximum number of batches that are synced at the same time.")
    lease_s: float = Field(
        60,
        ge=5,
        le=3600,
        description="Length of a lease on claimed leads, in seconds. A call is cancelled after half of it. After a "
        "crash, the leads can be claimed again when it ends.",
    )
    erasure: Literal["delete", "anonymise"] = Field(
        "delete",
        description="What happens to the record of an erased lead. delete: it is deleted for good, with its history. "
        "anonymise: the mapped fields are cleared; the record stays, and so does its history in the CRM.",
    )
    backoff_s: float = Field(
        0.5, gt=0, le=60, description="Mean wait after a lead's first failure, in seconds; doubles with each failure."
    )
    backoff_max_s: float = Field(
        300, ge=1, le=86_400, description="Maximum of the mean wait after a failure, in seconds."
    )
    merge_delay_s: float = Field(
        3600,
        ge=0,
        le=2_592_000,
        description="Seconds from a merge of two leads until their records in the CRM are merged, which cannot be "
        "undone there. If the merge of the leads is undone by then, the records stay as they are.",
    )
    poll_s: float = Field(
        0.5, gt=0, le=1, description="Seconds between two searches for due leads, such as those whose backoff ended."
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A lead as of ``version``. ``attributes``: the fields of lead.avsc that are set.

    ``remote_id``: the CRM's id of the lead's record, or "" if unknown. ``erased``: the lead was erased, so the CRM must
    clear every field that is not in ``attributes``. ``cleared``: names of properties that were sent before and have no
    value any more, so the CRM must clear them.
    """

    lead_id: str
    tenant: str
    version: int
    attributes: Mapping[str, Any]
    remote_id: str = ""
    erased: bool = False
    cleared: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class RetiredLead:
    """A lead that was merged into ``survivor_id``, or deleted (``survivor_id`` is "").

    ``remote_id`` and ``survivor_remote_id``: the CRM's ids of the two leads' records; "" if there is no such record or
    its id is unknown.
    """

    lead_id: str
    remote_id: str = ""
    survivor_id: str = ""
    survivor_remote_id: str = ""


@dataclass(frozen=True, slots=True)
class Synced:
    """The CRM accepted the call. ``remote_id``: id of the lead's record; after a merge, of the survivor's record."""

    remote_id: str = ""


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """The CRM did not accept the call. ``verdict``: what to do; if PAUSE, for ``wait_s`` seconds (0: by backoff).

    ``detail``: the CRM's error code, never its message, which can contain values of the lead. ``remote_id``: id of the
    CRM record that conflicts with the lead, or "". ``owner_id``: what that record has as its lead's id ("": nothing);
    None: unknown.
    """

    verdict: Verdict
    reason: Reason
    wait_s: float = 0
    detail: str = ""
    remote_id: str = ""
    owner_id: str | None = None


SyncResult = Synced | SyncFailed


class Connector(Protocol):
    """A CRM. Calls are keyed by lead: a repeated call has no further effect, also if the first response was lost."""

    name: str
    batch_max: int
    erases: bool  # whether :meth:`erase` is called for an erased lead; otherwise its fields are cleared
    merge_delay_s: float  # after a merge of two leads, until their records are merged, which cannot be undone

    async def ready(self) -> None:
        """Wait until the CRM's rate limit allows a call."""
        ...

    def properties(self, snapshot: Snapshot) -> Mapping[str, str]:
        """Return property name -> value: what :meth:`upsert` sends for the fields of ``snapshot`` that have a value.

        Pure and fast: it is called for every version of every lead. If it is what was sent last, nothing is sent.
        """
        ...

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        """Create or update the records of up to ``batch_max`` different leads. Never raises.

        A lead with a ``remote_id`` gets no second record: if that record was merged into another lead's, this is a
        conflict with it; if it was deleted, the lead gets a new one.

        Returns:
            One result for each lead, in the same order.

        """
        ...

    async def retire(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        """Delete the records of up to ``batch_max`` leads, or merge them into the survivors' records. Never raises.

        Returns:
            One result for each lead, in the same order.

        """
        ...

    async def erase(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        """Delete the records of up to ``batch_max`` erased leads for good, with their history. Never raises.

        Returns:
            One result for each lead, in the same order. A lead without a record is a success.

        """
        ...

    async def test(self) -> Sequence[str]:
        """Check the account, the token and the required properties; return one message for each problem."""
        ...
