"""Whatever a record of ``leads.messages-requested`` holds: an outcome, and the next good message is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sinks.messages.message_requests import MessageRequests
from sinks.messages.plain_text import plain_text
from tests.conftest import outputs_of
from tests.events import CODEC

LEAD = "0198c1f2-7b1e-7c9a-8d7e-00000000000a"
MB = 1_048_576

# Changes of a good request that the consumer refuses.
REFUSED: dict[str, dict[str, Any]] = {
    "braces": {"lead_id": f"{{{LEAD}}}"},
    "urn": {"lead_id": f"urn:uuid:{LEAD}"},
    "32 digits": {"lead_id": LEAD.replace("-", "")},
    "no lead": {"lead_id": ""},
    "no message_id": {"message_id": ""},
    "a message_id of 4,000 bytes": {"message_id": "m" * 4_000},
    "a NUL in message_id": {"message_id": "a\0b"},
    "a NUL in tenant": {"tenant": "a\0b"},
    "a tenant of 1 MB": {"tenant": "a" * MB},
    "a NUL in event_id": {"event_id": "a\0b"},
    "a NUL in campaign": {"campaign": "a\0b"},
    "a campaign of 1 MB": {"campaign": "c" * MB},
    "a NUL in purpose": {"purpose": "a\0b"},
    "a NUL in once_per": {"once_per": "a\0b"},
    "a NUL in to": {"to": "a\0b@example.com"},
    "an address of 10 kB": {"to": "a" * 10_240 + "@example.com"},
    "a NUL in subject": {"subject": "a\0b"},
    "a subject of 1 MB": {"subject": "s" * MB},
    "a NUL in body": {"body": "a\0b"},
    "a body above 1 MB": {"body": "b" * (MB + 1)},
    "a sender of 10 kB": {"sender": "(" * 10_240},
    "the first microsecond": {"requested_at": -(2**63)},
    "the last microsecond": {"requested_at": 2**63 - 1},
    "before 1970": {"requested_at": -1},
}

# Changes that the consumer stores. The result when it is sent.
SENT: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "long ago": ({"requested_at": 0}, ("dead", "expired")),
    "no address": ({"to": ""}, ("dead", "rejected")),
    "a header in the address": ({"to": "ada@example.com\r\nBcc: eve@example.com"}, ("dead", "rejected")),
    "two addresses": ({"to": "ada@example.com, eve@example.com"}, ("dead", "rejected")),
    "an open bracket as message_id": ({"message_id": "["}, ("dead", "rejected")),
    "a header in message_id": ({"message_id": "a\r\nBcc: eve@example.com"}, ("dead", "rejected")),
    "a message_id that is not ASCII": ({"message_id": "é"}, ("dead", "rejected")),
    "brackets as sender": ({"sender": "(" * 1_000}, ("dead", "rejected")),
    "an open bracket as sender": ({"sender": "["}, ("dead", "rejected")),
    "a header in the sender": ({"sender": "Us <us@example.com>\r\nBcc: eve@example.com"}, ("dead", "rejected")),
    "a header in the subject": ({"subject": "Hi\r\nBcc: eve@example.com"}, ("dead", "rejected")),
    "a subject of emoji": ({"subject": "😀" * 2_000}, ("sent", "")),
    "nothing to read": ({"subject": "", "body": ""}, ("sent", "")),
    "a body of 1 MB": ({"body": "<!--" * (MB // 4)}, ("sent", "")),
    "a purpose and a campaign with quotes": ({"purpose": "'; --", "campaign": '"$1'}, ("sent", "")),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", REFUSED)
async def test_it_is_dead_and_the_next_message_is_sent(world: Any, name: str) -> None:
    lead_id = await world.lead()
    bad = world.request(**{"lead_id": lead_id, "message_id": world.name} | REFUSED[name])
    (output,) = await world.consume(bad, world.request(lead_id.upper()))
    headers = dict(output.headers or ())
    assert (output.topic, headers["leadstream.reason"], output.value) == ("leads.dead", b"invalid_field", bad.value())
    assert next(iter(REFUSED[name])) in headers["leadstream.detail"].decode()
    await world.delivery().once()
    assert world.reported() == [("sent", "")]


@pytest.mark.integration
@pytest.mark.parametrize(
    "value", [None, b"", b"\xff" * 100, CODEC.encoder("outcome")({"at": 1, "stage": "", "what": ""})]
)
async def test_what_is_no_request_is_dead(world: Any, value: bytes | None) -> None:
    good = world.request(await world.lead())
    (output,) = await world.consume(type(good)(value, 1), good)
    assert (output.topic, output.value) == ("leads.dead", value)
    await world.delivery().once()
    assert world.reported() == [("sent", "")]


@pytest.mark.integration
async def test_a_channel_that_does_not_exist_is_dead_and_another_one_is_not(world: Any) -> None:
    lead_id = await world.lead()
    channels = [world.name, "slack"]
    requests = MessageRequests(
        world.table(), CODEC, world.records, channel=world.name, stage="s", wake=asyncio.Event(), channels=channels
    )
    batch = [world.request(lead_id, channel=channel) for channel in ("pigeon", "slack", "", "email\r\n", world.name)]
    outputs = await outputs_of(requests.apply(requests.prepare(batch)))
    assert [output.value for output in outputs] == [batch[i].value() for i in (0, 2, 3)]
    assert {dict(output.headers or ())["leadstream.reason"] for output in outputs} == {b"invalid_field"}
    await world.delivery().once()
    assert world.reported() == [("sent", "")]


@pytest.mark.integration
async def test_a_stored_request_that_cannot_be_decoded_any_more_is_dead(world: Any) -> None:
    bad, _ = [await world.requested() for _ in range(2)]
    await world.pool.execute("UPDATE messages_sent SET request = 'x' WHERE message_id = $1", bad)
    await world.delivery(max_connections=2).once()
    assert sorted(world.reported()) == [("dead", "not_avro"), ("sent", "")]


@pytest.mark.integration
@pytest.mark.parametrize("name", SENT)
async def test_its_result_is_reported_and_the_next_message_is_sent(world: Any, name: str) -> None:
    changes, result = SENT[name]
    lead_id = await world.lead()
    await world.pool.execute("DELETE FROM messages_sent WHERE message_id = $1", changes.get("message_id", ""))
    assert await world.consume(world.request(lead_id, **changes), world.request(lead_id)) == []
    await world.delivery(max_connections=1).once()
    while len(world.outcomes) < 2:
        assert await world.delivery(max_connections=1).once()
    assert sorted(world.reported()) == sorted([result, ("sent", "")])


@pytest.mark.parametrize(
    ("repeated", "left"),
    [
        ("<!--", ""),
        ("<script>", ""),
        ("<p>", ""),
        ("<", "<"),
        ("</", "</"),
        ("<![CDATA[", "<![CDATA["),
        ("<a ", "<a "),
        ("<a b='", "<a b='"),
        ('<a b="', '<a b="'),
        ("&#", "&#"),
        ("<p '\"", "<p '\""),
    ],
)
def test_a_megabyte_of_broken_html_is_read_to_its_end(repeated: str, left: str) -> None:
    # With work that is quadratic in the size, as that of the standard library's parser, this takes hours.
    times = MB // len(repeated)
    assert plain_text(repeated * times).strip() == (left * times).strip()


def test_quotes_comments_and_scripts_in_tags() -> None:
    assert plain_text("<p title=\"a > b\" lang='x'>one</p><p title=it's>two</p>") == "one\n\ntwo\n"
    assert plain_text("a<!-- <p>b</p> --><!DOCTYPE html>c < d &amp;&lt; 1") == "ac < d &< 1\n"
    assert plain_text("<SCRIPT>if (a<b) '<script>'</Script>x<style>p > a {}</style >y") == "xy\n"
    assert (
        plain_text("<A class=b HREF='https://example.com/?a=1&amp;b=2'>here</A>")
        == "here (https://example.com/?a=1&b=2)\n"
    )
