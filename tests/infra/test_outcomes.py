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
        ("/ada@example.com", "/*: is wrong"),
        ("/+44 20 7183 8750", "/*: is wrong"),
        ("/ada@example.com/x", "/*: is wrong"),
        ("", "is wrong"),
    ],
)
def test_a_key_that_may_be_personal_data_is_not_in_the_detail(path: str, detail: str) -> None:
    assert Dead(Reason.INVALID_FIELD, (Problem(path, "is wrong"),)).detail == detail


def test_a_dead_record_has_at_most_twenty_problems_and_the_number_of_the_others() -> None:
    dead = Dead(Reason.INVALID_FIELD, tuple(Problem(f"/f{i}", "is wrong") for i in range(300)))
    assert [problem.path for problem in dead.problems] == [*(f"/f{i}" for i in range(20)), ""]
    assert dead.detail.endswith("/f19: is wrong; and 280 more")


def test_a_long_path_is_cut() -> None:
    dead = Dead(Reason.INVALID_FIELD, (Problem("/" + "x" * 5000, "is wrong"),))
    assert dead.problems[0].path == "/" + "x" * 98 + "…"
