"""The default meaning of HTTP statuses, and the conversion of bodies and values."""

from __future__ import annotations

import pytest

from infra.errors import Verdict
from infra.outcomes import Reason
from sinks.crm import SyncFailed
from sinks.crm.responses import as_text, by_status, json_object


@pytest.mark.parametrize(
    ("status", "verdict", "reason", "wait_s"),
    [
        (400, Verdict.DEAD, Reason.REJECTED, 0),
        (401, Verdict.REFRESH, Reason.UNAUTHORIZED, 60),
        (403, Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
        (408, Verdict.RETRY, Reason.UNAVAILABLE, 0),
        (409, Verdict.RETRY, Reason.CONFLICT, 0),
        (422, Verdict.DEAD, Reason.REJECTED, 0),
        (429, Verdict.PAUSE, Reason.RATE_LIMITED, 10),
        (500, Verdict.RETRY, Reason.UNAVAILABLE, 0),
        (501, Verdict.DEAD, Reason.REJECTED, 0),
        (503, Verdict.RETRY, Reason.UNAVAILABLE, 0),
    ],
)
def test_every_status_has_a_default_meaning(status: int, verdict: Verdict, reason: Reason, wait_s: float) -> None:
    assert by_status(status) == SyncFailed(verdict, reason, wait_s)


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("30", 30),
        ("0", 10),
        ("", 10),
        ("-5", 10),
        ("1.5", 10),
        ("\N{SUPERSCRIPT TWO}", 10),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 10),
        ("9" * 5000, 86_400),
    ],
)
def test_retry_after_in_seconds_replaces_the_wait_of_a_rate_limit(retry_after: str, wait_s: float) -> None:
    assert by_status(429, retry_after) == SyncFailed(Verdict.PAUSE, Reason.RATE_LIMITED, wait_s)
    assert by_status(409, retry_after) == by_status(409)
    assert by_status(500, retry_after) == by_status(500)


@pytest.mark.parametrize("content", [b"", b"[]", b"<html>", b'"text"', b"null"])
def test_a_body_that_is_no_json_object_is_empty(content: bytes) -> None:
    assert json_object(content) == {}
    assert json_object(b'{"id": "1"}') == {"id": "1"}


def test_values_become_text() -> None:
    assert [as_text(value) for value in (None, "", "a", 12, 0.1 + 0.2)] == ["", "", "a", "12", "0.3"]
