"""Fixtures: the real stack. ``--stack=embedded`` (default) runs it here, ``--stack=containers`` in Docker."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.kafka.processor import Outputs
from infra.kafka.producer import Output
from infra.kafka_settings import KafkaSettings
from infra.settings import Settings
from local.attached import AttachedStack
from operations.broker_topics import apply
from operations.migrate_clickhouse import migrate as migrate_clickhouse
from operations.migrate_postgres import migrate as migrate_postgres

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the parts of a stack are."""

    kafka_bootstrap: str
    dsn: str
    clickhouse_url: str
    redis_url: str
    home: Path
    places: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """Settings that reach this stack and nothing else."""
        return Settings.load(self.environment())

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the settings as environment variables."""
        return {
            "LEADSTREAM_HOME": str(self.home),
            "LEADSTREAM_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "LEADSTREAM_DATABASE_URL": self.dsn,
            "LEADSTREAM_CLICKHOUSE_URL": self.clickhouse_url,
            "LEADSTREAM_REDIS_URL": self.redis_url,
        } | changes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stack", choices=("embedded", "containers"), default="embedded", help="where the stack runs")
    parser.addoption("--chaos", choices=("short", "full"), default="short", help="how long processes are killed for")
    parser.addoption("--chaos-report", metavar="FILE", help="write the report of the kills as Markdown to this file")
    parser.addoption("--seed", type=int, help="of every random choice of the tests; default: another one in each run")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = secrets.randbits(32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (the same random choices again: --seed {config.option.seed})"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Return this test's source of randomness; its seed is printed with a failure and in the header."""
    seed = request.config.getoption("--seed")
    print(f"seed: {seed}")  # noqa: T201 - pytest shows it with a failure
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka, Postgres, ClickHouse and Redis with topics and migrations applied, no pipeline processes."""
    home = tmp_path_factory.mktemp("stack")
    if request.config.getoption("--stack") == "containers":
        yield from _containers(home)
        return
    with AttachedStack(home, "--no-pipeline") as running:
        yield _stack(home, running.state)


@pytest.fixture
def lone_stack(tmp_path: Path) -> Iterator[Stack]:
    """Return a stack that no other test sees: for tests that fill topics which others read."""
    with AttachedStack(tmp_path / "stack", "--no-pipeline") as running:
        yield _stack(tmp_path / "stack", running.state)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a whole installation: the stack, the simulators and every process of the pipeline."""
    home = tmp_path_factory.mktemp("pipeline")
    with AttachedStack(home) as running:
        yield _stack(home, running.state)


@pytest.fixture
def unique() -> str:
    """Return a word that no other test has: for groups, tenants and ids."""
    return uuid.uuid4().hex[:12]


async def outputs_of(parts: AsyncGenerator[Outputs, None]) -> list[Output]:
    """Return the outputs of all parts that a processor's ``apply`` yields."""
    return [output async for part in parts for output in (part() if callable(part) else part)]


async def eventually(condition: Callable[[], Awaitable[Any] | bool], timeout_s: float = 60) -> Any:
    """Wait until ``condition`` gives, or awaits, something true and return it; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (found := await given if isinstance(given := condition(), Awaitable) else given):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {condition}")
        await asyncio.sleep(_LOOK_S)
    return found


def _stack(home: Path, state: dict[str, Any]) -> Stack:
    return Stack(
        state["kafka"]["bootstrap"],
        state["postgres"]["dsn"],
        state["clickhouse"]["url"],
        state["redis"]["url"],
        home,
        state,
    )


def _containers(home: Path) -> Iterator[Stack]:
    from testcontainers.clickhouse import ClickHouseContainer  # noqa: PLC0415 - only where Docker is
    from testcontainers.kafka import KafkaContainer  # noqa: PLC0415
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415
    from testcontainers.redis import RedisContainer  # noqa: PLC0415

    with (
        KafkaContainer("confluentinc/cp-kafka:8.1.0").with_kraft() as kafka,
        PostgresContainer("postgres:18", username="leadstream", dbname="leadstream", driver=None) as postgres,
        ClickHouseContainer("clickhouse/clickhouse-server:26.3", port=8123) as clickhouse,
        RedisContainer("redis:8") as redis,
    ):
        at = f"{clickhouse.get_container_host_ip()}:{clickhouse.get_exposed_port(8123)}"
        url = f"http://{clickhouse.username}:{clickhouse.password}@{at}/leadstream"
        dsn = postgres.get_connection_url()
        apply(KafkaSettings(kafka_bootstrap=kafka.get_bootstrap_server()))
        asyncio.run(_migrate(dsn, url))
        redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}/0"
        yield Stack(kafka.get_bootstrap_server(), dsn, url, redis_url, home, {})


async def _migrate(dsn: str, url: str) -> None:
    await migrate_postgres(dsn)
    await migrate_clickhouse(url)
