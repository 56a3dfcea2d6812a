"""A record whose headers the client cannot read is consumed like any other."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Message, TopicPartition

from infra.kafka.assignment import Assignment
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.dead_letters import dead_letter
from infra.kafka.headers import UNREADABLE_HEADERS
from infra.outcomes import Dead, Problem, Reason
from infra.runtime import Status


class Unreadable:
    """As the client's message with a header name that is not UTF-8: reading the headers twice ends the process."""

    def __init__(self, made: Message) -> None:
        self._made = made
        self._reads = 0
        self._readable = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def __len__(self) -> int:
        return len(self._made)

    def headers(self) -> Any:
        if self._readable:
            return self._made.headers()
        self._reads += 1
        assert self._reads == 1, "the process would crash"
        raise SystemError

    def set_headers(self, headers: Any) -> None:
        self._made.set_headers(headers)
        self._readable = True


class OneRecord:
    """A consumer that is assigned a partition and returns one record."""

    def __init__(self, message: Any) -> None:
        self._messages = [message]

    def subscribe(self, topics: list[str], *, on_assign: Any, **_: Any) -> None:
        on_assign(self, [TopicPartition(topics[0], 0)])

    def consume(self, _limit: int, _wait_s: float) -> list[Any]:
        found, self._messages = self._messages, []
        return found


def test_unreadable_headers_are_replaced_by_a_note_also_in_the_dead_letter() -> None:
    message = Unreadable(Message("t", 0, 5, b"key", b"value", None, None, (1, 1)))
    assignment = Assignment(OneRecord(message), "test", Status())
    assignment.subscribe(["t"])

    fetched = assignment.poll(BatchLimits(1, 1_000_000, 0))

    (found,) = fetched.messages
    assert found.headers() == list(UNREADABLE_HEADERS)
    letter = dead_letter(found, "test", Dead(Reason.NOT_AVRO, (Problem("", "no"),)))
    assert (letter.key, letter.value) == (b"key", b"value")
    assert list(letter.headers or ())[:1] == list(UNREADABLE_HEADERS)
