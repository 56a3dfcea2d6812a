"""The checks of the books themselves can fail."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import orjson

from tests.chaos.books import acknowledged, contacts, message_ids
from tests.chaos.load import Ledger, generated


def test_a_lost_and_a_changed_record_are_found() -> None:
    ledger = Ledger(records={(0, 1): 11, (0, 2): 12, (1, 1): 13})
    assert acknowledged(ledger, {(0, 1): 11, (0, 2): 12, (1, 1): 13, (1, 2): 99}) == []
    wrong = acknowledged(ledger, {(0, 1): 11, (1, 1): 7})
    assert [line.split(":")[0] for line in wrong] == [
        "acknowledged, and not in the topic",
        "has another value than was sent",
    ]


def test_the_contacts_of_the_file_are_those_of_the_simulator(tmp_path: Path) -> None:
    file = tmp_path / "hubspot.jsonl"
    changes = [
        {"set": {"1": {"email": "a@example.com"}, "2": {"email": "b@example.com"}}},
        {"set": {"1": {"firstname": "Ada"}}, "gone": ["2"], "merged": {"2": "1"}},
    ]
    file.write_bytes(b"\n".join([b"", *map(orjson.dumps, changes), b""]))
    assert contacts(file) == {"1": {"email": "a@example.com", "firstname": "Ada"}}


def test_a_mail_that_was_delivered_again_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "mails.jsonl"
    assert message_ids(file) == Counter()
    file.write_bytes(b"".join(orjson.dumps({"message_id": name}) + b"\n" for name in "aba"))
    assert message_ids(file) == {"a": 2, "b": 1}


def test_events_are_repeated_and_out_of_order_and_the_seed_repeats_them() -> None:
    first, second = (list(generated("t", 3_000, random.Random(7))) for _ in range(2))
    assert [(tenant, r.event_id, r.form) for tenant, r in first] == [
        (tenant, r.event_id, r.form) for tenant, r in second
    ]
    ids = [record.event_id for _, record in first if record.event_id and not record.duplicate]
    assert len(set(ids)) == len(ids)
    assert ids != sorted(ids)
    assert sum(record.duplicate for _, record in first) > 50
    assert sum(record.form == "broken" for _, record in first) > 5
