"""One run for all tests of its books, and its report at the end of the session."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from local.attached import AttachedStack
from tests.chaos.report import markdown
from tests.chaos.run import FULL, SHORT, Result, Run, small_disks

_REPORT = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def chaos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Break a whole installation while events are under way, and return what happened."""
    if request.config.getoption("--stack") == "containers":
        pytest.skip("kills the processes of the embedded stack")
    size = FULL if request.config.getoption("--chaos") == "full" else SHORT
    result = Result(request.config.getoption("--seed"), size)
    home = tmp_path_factory.mktemp("chaos") / "stack"
    with AttachedStack(home, "--parts", "kafka,postgres"):
        pass  # creates the data folders, which then move to small disks
    with small_disks(home, size, result) as made, AttachedStack(home) as running:
        try:
            asyncio.run(Run(home, running.state, result, made).run())
        finally:
            request.config.stash[_REPORT] = report = markdown(result)
            if file := request.config.getoption("--chaos-report"):
                Path(file).write_text(report, "utf-8")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _REPORT in config.stash:
        terminalreporter.section("chaos")
        terminalreporter.write_line(config.stash[_REPORT])
