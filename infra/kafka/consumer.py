"""How a consumer of ours is set up, whichever group it is of."""

from __future__ import annotations

from typing import Any


def consumer_config(bootstrap: str, group: str, instance: str = "") -> dict[str, Any]:
    """Return librdkafka's settings for a member of ``group``: offsets by hand, small waits, cooperative rebalances.

    With ``instance`` it is a static member: restarted within the session timeout it gets its partitions back at once.
    """
    static = {"group.instance.id": f"{group}-{instance}"} if instance else {}
    return {
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "client.id": f"leadstream-{group}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        "fetch.wait.max.ms": 250,
        "fetch.error.backoff.ms": 100,
        "queued.max.messages.kbytes": 65_536,
        "fetch.message.max.bytes": 4_194_304,
        "socket.nagle.disable": True,
    } | static
