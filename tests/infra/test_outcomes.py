"""The detail of a dead record."""

from __future__ import annotations

import pytest

from infra.outcomes import Dead, Problem, Reason


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/envelope/event_id", "/envelope/event_id: is wrong"),
        ("/answers/What is your budget for 2026?", "/answers/What is your budget for 2026?: is wrong"),
        ("/answers/ada@example.com", "/answers/*: is wrong"),
        ("/custom/a/ada@example.com", "/custom/*: is wrong"),
        ("/custom/+44 20 7183 8750", "/custom/*: is wrong"),
        ("", "is wrong"),
    ],
)
def test_a_key_that_may_be_personal_data_is_not_in_the_detail(path: str, detail: str) -> None:
    assert Dead(Reason.INVALID_FIELD, (Problem(path, "is wrong"),)).detail == detail
