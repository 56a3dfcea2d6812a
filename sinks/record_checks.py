"""Checks of the records that sinks consume: what Postgres or an outcome could not store ends as a dead letter.

Anybody who may write to a topic can send any record of its schema. Each check here prevents that one record makes a
statement, a client or an output of the whole batch fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from infra.outcomes import Dead, Problem, Reason

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_LATEST = 4_102_444_800_000_000  # 2100-01-01 in microseconds since 1970
_MAX_VERSION = 2**53  # far above any lead's; a wanted version that no lead reaches would block its lead for ever


def check(record: Mapping[str, Any], *, texts: Mapping[str, int], time: str, required: str = "") -> Dead | None:
    """Return Dead with every problem of ``record``, or None.

    Args:
        record: decoded; its ``lead_id`` must be a UUID in the ordinary spelling, and ``version``, if any, positive.
        texts: field -> maximum number of characters. Texts have no NUL character, which Postgres does not store.
        time: the field that holds a time in microseconds since 1970; it must be before 2100.
        required: a text that must not be empty.

    """
    problems = tuple(_problems(record, texts, time, required))
    return Dead(Reason.INVALID_FIELD, problems) if problems else None


def _problems(record: Mapping[str, Any], texts: Mapping[str, int], time: str, required: str) -> Iterator[Problem]:
    if not _UUID.fullmatch(record["lead_id"]):
        yield Problem("/lead_id", "must be a UUID such as 0198c1f2-7b1e-7c9a-8d7e-5f1c2b3a4d5e")
    if not 1 <= record.get("version", 1) <= _MAX_VERSION:
        yield Problem("/version", f"must be from 1 to {_MAX_VERSION}")
    if not 0 <= record[time] < _LATEST:
        yield Problem(f"/{time}", "must be microseconds since 1970, before the year 2100")
    if required and not record[required]:
        yield Problem(f"/{required}", "must not be empty")
    for name, longest in texts.items():
        if "\0" in record[name]:
            yield Problem(f"/{name}", "must not have a NUL character")
        if len(record[name]) > longest:
            yield Problem(f"/{name}", f"must have at most {longest:,} characters")
