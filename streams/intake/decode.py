"""Stage 1 of 6: decode the bytes of a message to a record. Every value then has the type of its schema."""

from __future__ import annotations

from confluent_kafka import Message

from infra.outcomes import Dead, Problem, Reason
from schemas.codec import Codec, Decoded, DecodeError


def decode(message: Message, codec: Codec, max_bytes: int) -> Decoded | Dead:
    """Decode one message in any of the three wire formats of :mod:`schemas.codec`.

    Returns:
        The record, or Dead if the message is empty, has more than ``max_bytes`` bytes, or cannot be decoded.

    Raises:
        DependencyUnavailable: a schema must be fetched from the external registry, and it is unavailable.

    """
    payload = message.value()
    if not payload:
        return Dead(
            Reason.EMPTY, (Problem("", "the record has no value: send a lead event (this topic has no tombstones)"),)
        )
    if len(payload) > max_bytes:
        return Dead(
            Reason.TOO_LARGE, (Problem("", f"the event has {len(payload)} bytes, but the maximum is {max_bytes}"),)
        )
    try:
        return codec.decode(payload)
    except DecodeError as error:
        return error.dead
