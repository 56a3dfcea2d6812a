"""Stage 1 of 6: bytes to a record of its schema. Afterwards every value has the type that its schema says."""

from __future__ import annotations

from confluent_kafka import Message

from infra.outcomes import Dead, Problem, Reason
from schemas.codec import Codec, Decoded, DecodeError


def decode(message: Message, codec: Codec, max_bytes: int) -> Decoded | Dead:
    """Decode one message in any of the three wire forms; return Dead with its reason where that is impossible.

    Raises DependencyUnavailable where its schema has to be fetched and the registry is unavailable.
    """
    payload = message.value()
    if not payload:
        return Dead(Reason.EMPTY, (Problem("", "no value; send a lead event (there are no tombstones on this topic)"),))
    if len(payload) > max_bytes:
        return Dead(Reason.TOO_LARGE, (Problem("", f"{len(payload)} bytes; the limit is {max_bytes}"),))
    try:
        return codec.decode(payload)
    except DecodeError as error:
        return error.dead
