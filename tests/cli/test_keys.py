"""``leadstream keys``: a key is printed once, on standard output only."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from cli import keys
from infra.keys import id_of

pytestmark = pytest.mark.integration
Run = Callable[..., Result]


@pytest.fixture
def run(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LEADSTREAM_DATABASE_URL", stack.dsn)
    app = typer.Typer()
    keys.register(app)
    return lambda *words: CliRunner().invoke(app, ["keys", *words])


def listed(run: Run, *options: str) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in json.loads(run("list", "--json", *options).stdout)}


def test_the_life_of_a_key(run: Run, unique: str) -> None:
    made = run("create", "--tenant", unique, "--scope", "ingest", "--scope", "read", "--name", "shop", "--days", "30")
    assert made.exit_code == 0
    key = made.stdout.strip()
    key_id = id_of(key)
    assert key not in made.stderr
    entry = listed(run)[key_id]
    assert (entry["tenant"], entry["scopes"], entry["name"], entry["state"]) == (
        unique,
        ["ingest", "read"],
        "shop",
        "active",
    )
    assert entry["expires_at"] > entry["created_at"]
    assert key[16:] not in run("list", "--all", "--json").stdout
    assert key_id in run("list").stdout

    rotated = json.loads(run("rotate", key_id, "--overlap-hours", "0.5", "--json").stdout)
    assert id_of(rotated["key"]) == rotated["id"] != key_id
    assert run("revoke", rotated["id"]).exit_code == 0
    assert listed(run, "--all")[rotated["id"]]["state"] == "revoked"
    assert rotated["id"] not in listed(run)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("create", "--tenant", "acme", "--scope", "everything"), 2, "no such scope: everything"),
        (("create", "--tenant", "*", "--scope", "ingest"), 2, "admin or pipeline"),
        (("create", "--tenant", "Acme", "--scope", "ingest"), 2, "lower-case"),
        (("create", "--tenant", "acme"), 2, "scope"),
        (("revoke", "nosuchkey000"), 1, "keys list"),
        (("rotate", "nosuchkey000"), 1, "keys list"),
    ],
)
def test_errors(run: Run, words: tuple[str, ...], code: int, text: str) -> None:
    done = run(*words)
    assert (done.exit_code, text in done.stderr) == (code, True)
    assert not done.stdout
