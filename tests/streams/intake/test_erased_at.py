"""``leads.erased_at`` is the time of the lead's latest erasure, also after a merge."""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg
import pytest

from tests.events import HOUR, NOW, message, payload
from tests.streams.intake.conftest import intake, leads, put

pytestmark = pytest.mark.integration

ERASED: dict[str, Any] = {"kind": "lead_erased", "reason": "request"}
A: dict[str, Any] = {"email": "a@example.com"}
B: dict[str, Any] = {"external_id": "b"}


@pytest.mark.parametrize("batches", [1, 100], ids=["one batch", "a batch an event"])
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([A], [None]),
        ([A | ERASED], [0]),
        ([A, A | ERASED | {"at": 1}], [1]),
        ([A | ERASED | {"at": 1}, A | {"at": 2}], [1]),
        ([A | ERASED | {"at": 2}, A | ERASED | {"at": 1}], [2]),
        ([A | ERASED | {"at": 1}, A | ERASED | {"at": 2}], [2]),
        # Said before the erasure of one of them: refused, so the two are not merged.
        ([A, B | ERASED | {"at": 1}, A | B], [None, 1]),
        ([A | ERASED | {"at": 2}, B | ERASED | {"at": 1}, A | B], [2, 1]),
        ([A | ERASED | {"at": 1}, B | ERASED | {"at": 2}, A | B], [1, 2]),
        ([A, B, A | B | ERASED | {"at": 3}], [3]),
        # What was said after the erasure stays, and can be merged.
        ([A | {"at": 4}, A | ERASED | {"at": 3}, B | {"at": 4}, A | B | {"at": 5}], [3]),
        ([B, A | {"at": 4}, A | ERASED | {"at": 3}, A | B | {"at": 5}], [3]),
    ],
)
async def test_erased_at(
    pool: asyncpg.Pool, unique: str, events: list[dict[str, Any]], expected: list[int | None], batches: int
) -> None:
    made = []
    for number, event in enumerate(events):
        own = event | {"at": NOW + event.get("at", 0) * HOUR}
        value = payload(own.pop("kind", "lead_updated"), f"e-{number}", tenant=unique, **own)
        made.append(message(value, offset=number, at=NOW + 9 * HOUR))
    stage = intake(pool, max_ahead_s=10**9)
    for batch in [made] if batches == 1 else [[each] for each in made]:
        await put(stage, *batch)

    found = await leads(pool, unique)

    erased = [lead["erased_at"] for lead in found]
    assert Counter(erased) == Counter(None if at is None else NOW + at * HOUR for at in expected)
    assert all(lead["erased_at"] == lead["provenance"].get("_erased", [0, None])[1] for lead in found)
