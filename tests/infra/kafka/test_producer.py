"""A producer that failed permanently."""

from __future__ import annotations

import pytest

from infra.errors import ClientFailed
from infra.kafka.producer import Deliverer
from infra.settings import Settings
from tests.conftest import eventually


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_error_of_poll_is_reported_and_polling_continues() -> None:
    """poll() raises the fatal errors of librdkafka and the errors of callbacks; here a callback raises."""
    calls: list[str] = []
    failures: list[Exception] = []

    def statistics(text: str) -> None:
        calls.append(text)
        raise ValueError("in a callback")

    config = {"statistics.interval.ms": 20, "stats_cb": statistics}
    settings = Settings.load({"LEADSTREAM_KAFKA_BOOTSTRAP": "127.0.0.1:1"})
    deliverer = Deliverer(settings, "test", config=config, on_fatal=failures.append)
    await eventually(lambda: len(failures) >= 2)
    await deliverer.close(0)
    assert len(calls) >= 2
    assert {type(failure) for failure in failures} == {ClientFailed}
