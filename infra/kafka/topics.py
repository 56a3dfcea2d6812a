"""The topics that the broker must have, read from ``topics.toml``; :mod:`operations.broker_topics` applies them."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra import processes

FILE = Path(__file__).with_name("topics.toml")
IN_SYNC = "min.insync.replicas"
_TENANTS = "tenants"
_NAME = re.compile(r"leads\.[a-z0-9][a-z0-9._-]*\*?")


class TopicsError(Exception):
    """``topics.toml`` is invalid, or the broker rejects a change; the message names every topic concerned."""


class Topic(BaseModel):
    """One topic of the file. ``config``: topic settings by Kafka's names, with values as Kafka prints them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    doc: str = Field(min_length=10)
    key: str = Field(min_length=3)
    consumers: tuple[str, ...] = ()
    partitions: int = Field(ge=1, le=1000)
    config: Mapping[str, str]
    expand: str = ""

    def config_with(self, replicas: int) -> dict[str, str]:
        """Return the settings of a topic that has ``replicas``: min.insync.replicas is at most their number."""
        wanted = dict(self.config)
        if IN_SYNC in wanted:
            wanted[IN_SYNC] = str(min(int(wanted[IN_SYNC]), replicas))
        return wanted


def load_topics(path: Path = FILE, root: Path = processes.ROOT, *, tenants: Collection[str] = ()) -> dict[str, Topic]:
    """Read and check the file; return the topics by name.

    Patterns are expanded to the connectors under ``root`` and to ``tenants``: those that have a topic of their own.

    Raises:
        TopicsError: an entry is invalid; the message names every invalid one.

    """
    tables = tomllib.loads(path.read_text("utf-8"))
    defaults = tables.pop("defaults", {})
    topics: dict[str, Topic] = {}
    wrong: list[str] = []
    for name, table in tables.items():
        merged = defaults | table
        merged["config"] = _spelled(defaults.get("config", {}) | table.get("config", {}))
        try:
            topic = Topic.model_validate({"name": name} | merged)
        except ValidationError as error:
            wrong += [f"{name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            continue
        if not _NAME.fullmatch(name) or ("*" in name) != bool(topic.expand):
            wrong.append(
                f"{name}: a name is leads.<lower case>, with a * at its end if, and only if, the topic has expand"
            )
        topics |= {t.name: t for t in _expanded(topic, root, tenants)}
    if wrong:
        raise TopicsError(f"Invalid topics in {path.name}:\n  " + "\n  ".join(wrong))
    return topics


def _spelled(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in config.items()}


def _expanded(topic: Topic, root: Path, tenants: Collection[str]) -> Iterable[Topic]:
    if not topic.expand:
        return [topic]
    return [
        topic.model_copy(
            update={
                "name": topic.name.replace("*", name),
                "consumers": tuple(consumer.replace("*", name) for consumer in topic.consumers),
                "expand": "",
            }
        )
        for name in (tenants if topic.expand == _TENANTS else processes.connectors(root, topic.expand))
    ]


def groups(topics: Mapping[str, Topic], names: Iterable[str]) -> dict[str, list[str]]:
    """Return the topics of each consumer group, for those of ``names`` (processes) that consume."""
    return {
        name: read
        for name in names
        if (read := sorted(t.name for t in topics.values() if any(fnmatchcase(name, c) for c in t.consumers)))
    }


@functools.cache
def installed_groups() -> dict[str, list[str]]:
    """Return the topics of each consumer group, for the processes of ``infra/processes.toml``."""
    return groups(load_topics(), processes.load_processes())
