"""After a restart with an invalid file, the last valid content is used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from infra.postgres.pool import connect
from infra.runtime import Stop
from infra.tenant_files.last_valid import keep_valid, restore_last_valid
from infra.tenants import State, Tenants


@pytest.fixture
async def pool(stack: Any) -> AsyncIterator[asyncpg.Pool]:
    async with await connect(stack.dsn, size=2, application="tests") as pool:
        yield pool


def region(tenants: Tenants, name: str) -> str | None:
    tenant = tenants.get(name)
    return tenant.phone_region if tenant else "none"


@pytest.mark.integration
async def test_the_last_valid_content_survives_a_restart(folder: Path, pool: asyncpg.Pool, unique: str) -> None:
    stop, file, never = Stop(), folder / f"{unique}.yaml", folder / f"{unique}-never.yaml"
    for code in ("DE", "FR"):
        file.write_text(f"phone_region: {code}", "utf-8")
        await keep_valid(Tenants(folder), pool, stop)
    file.write_text("nonsense", "utf-8")
    never.write_text("nonsense", "utf-8")
    await keep_valid(Tenants(folder), pool, stop)  # an invalid content is not kept
    tenants = Tenants(folder)
    assert tenants.get(unique) is None
    await restore_last_valid(tenants, pool, stop)
    assert region(tenants, unique) == "FR"
    assert tenants.problems.keys() == {unique, f"{unique}-never"}, "the alarm stays"
    assert tenants.state(f"{unique}-never") is State.INVALID


def test_a_content_that_is_not_valid_any_more_is_not_used(folder: Path) -> None:
    (folder / "globex.yaml").write_text("nonsense", "utf-8")
    tenants = Tenants(folder)
    tenants.restore("globex", b"phone_region: XX")
    assert tenants.state("globex") is State.INVALID
    tenants.restore("globex", b"phone_region: FR")
    assert region(tenants, "globex") == "FR"
    tenants.restore("acme", b"phone_region: FR")
    tenants.restore("hooli", b"phone_region: FR")
    assert (region(tenants, "acme"), region(tenants, "hooli")) == ("NO", None)
