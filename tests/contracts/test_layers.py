"""The shape of the code, read from its syntax: who imports whom, who reads the environment, who builds clients."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A package may import itself and those listed; streams, sinks and api meet only in topics and tables.
ALLOWED = {
    "infra": set(),
    "schemas": {"infra"},
    "streams": {"infra", "schemas"},
    "sinks": {"infra", "schemas"},
    "api": {"infra", "schemas"},
    "operations": {"infra", "schemas"},
    "local": {"infra", "schemas", "streams", "sinks", "api", "operations"},
    "simulators": {"infra", "schemas", "streams", "sinks", "api", "operations"},
    "cli": {"infra", "schemas", "streams", "sinks", "api", "operations", "local", "simulators"},
    "bench": {"infra", "schemas", "streams", "sinks", "api", "operations", "local", "simulators", "cli"},
}
MOST_LINES = 350
SAYS_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "base2"}

# What opens a connection, or will. Whoever calls one of these owns it and closes it.
CLIENTS = {
    "aiosmtplib.SMTP",
    "asyncpg.connect",
    "asyncpg.create_pool",
    "clickhouse_connect.get_async_client",
    "clickhouse_connect.get_client",
    "confluent_kafka.Consumer",
    "confluent_kafka.Producer",
    "confluent_kafka.admin.AdminClient",
    "faust.App",
    "httpx.AsyncClient",
    "httpx.Client",
    "infra.clickhouse.client.ClickHouse",
    "infra.http.client",
    "infra.kafka.client.admin",
    "infra.kafka.client.member",
    "infra.kafka.client.producer",
    "infra.kafka.client.reader",
    "infra.kafka.producer.Deliverer",
    "infra.postgres.pool.connect",
    "redis.Redis",
    "redis.asyncio.Redis",
    "redis.asyncio.from_url",
}
# Composition roots build clients; these modules may too, each for its reason.
FACTORIES = {
    "infra/clickhouse/client.py": "is the ClickHouse client",
    "operations/migrate_clickhouse.py": "one connection, opened and closed by the one call that `prepare` makes",
    "infra/http.py": "is the factory of HTTP clients",
    "infra/kafka/batches.py": "the loop is the consumer's owner: it alone knows assignment, position and commit",
    "infra/kafka/client.py": "is the factory of Kafka clients",
    "operations/lag.py": "owns the admin client and the consumer that look at offsets; the CLI closes it",
    "infra/kafka/producer.py": "is the producer",
    "schemas/writer_schemas.py": "is the registry's client: a decoder asks within a batch, it cannot await",
    "operations/broker_access.py": "one admin client, for the one call that the command line makes",
    "operations/broker_topics.py": "one admin client, for the one call that `prepare` makes",
    "operations/migrate_postgres.py": "one connection, opened and closed by the one call that `prepare` makes",
    "infra/postgres/pool.py": "is the factory of Postgres pools",
    "sinks/messages/email.py": "an SMTP client is one connection: the channel opens and keeps as many as it needs",
    "streams/faust/credentials.py": "a client for one request: aiokafka asks for a token in a thread of its own",
    "streams/faust/agent.py": "is the factory of Faust apps, and waits for the topic before there can be one",
}


def sources() -> list[Path]:
    return sorted(file for package in ALLOWED for file in (ROOT / package).rglob("*.py"))


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def composition_root(path: str) -> bool:
    return path.endswith(("/app.py", "/__main__.py")) or path.startswith(("bench/", "cli/", "local/", "simulators/"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def origins(tree: ast.AST) -> dict[str, str]:
    """Return what each name that the module imports stands for, as a dotted name."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full dotted name of an expression such as ``httpx.AsyncClient``, or nothing."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def wrong_imports(package: str, source: str) -> list[str]:
    forbidden = set(ALLOWED) - ALLOWED[package] - {package}
    return [f"{line}: {what}" for line, what in imported(ast.parse(source)) if what.partition(".")[0] in forbidden]


def environment_reads(source: str) -> list[str]:
    tree = ast.parse(source)
    names = origins(tree)
    readers = ("os.environ", "os.getenv", "os.putenv", "os.environb", "dotenv")
    used = [(n.lineno, dotted(n, names)) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Name)]
    found = {(line, what) for line, what in [*imported(tree), *used] if what.startswith(readers)}
    return [f"{line}: {what}" for line, what in sorted(found)]


def clients_built(source: str) -> list[str]:
    tree = ast.parse(source)
    names = origins(tree)
    calls = [(n.lineno, dotted(n.func, names)) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return [f"{line}: {what}" for line, what in calls if what in CLIENTS]


def clients_built_at_import(source: str) -> list[str]:
    """Return the clients built by what runs when the module is imported: all but the bodies of functions."""
    tree = ast.parse(source)
    names = origins(tree)
    found: list[str] = []
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call) and dotted(node.func, names) in CLIENTS:
            found.append(f"{node.lineno}: {dotted(node.func, names)}")
        left += ast.iter_child_nodes(node)
    return found


def prints(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [f"{call.lineno}: print" for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_there_is_something_to_look_at() -> None:
    assert {name(file).partition("/")[0] for file in sources()} == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    files = [file for file in sources() if name(file).startswith(f"{package}/")]
    wrong = [f"{name(f)}:{line}" for f in files for line in wrong_imports(package, f.read_text("utf-8"))]
    assert not wrong, f"{package} may import only {sorted(ALLOWED[package]) or 'nothing of ours'}"


def test_a_stage_of_intake_imports_no_later_one() -> None:
    order = (
        "event identity_policy decode validate dedupe identity merge provenance touches split split_store holders echo "
        "part_size history decision decide suppress suppression_key erasure erasure_writes route writes store "
        "transactions commands pipeline app __main__"
    )
    place = {stage: number for number, stage in enumerate(order.split())}
    files = {file.stem: file for file in (ROOT / "streams/intake").glob("*.py") if file.stem != "__init__"}
    assert files.keys() == place.keys()
    for stage, file in files.items():
        used = {what for _, what in imported(ast.parse(file.read_text("utf-8"))) if what.startswith("streams.")}
        others = {what for what in used if not what.startswith("streams.intake.")}
        assert not others, f"{name(file)}: topics and tables are intake's only interface"
        later = {what for what in used if place[what.split(".")[2]] >= place[stage]}
        assert not later, f"{name(file)} imports a later stage"


def test_only_settings_reads_the_environment() -> None:
    wrong = [f"{name(f)}:{line}" for f in sources() for line in environment_reads(f.read_text("utf-8"))]
    assert {line.partition(":")[0] for line in wrong} == {"infra/settings.py"}, wrong


def test_only_composition_roots_build_clients() -> None:
    files = [f for f in sources() if not composition_root(name(f)) and name(f) not in FACTORIES]
    assert not [f"{name(f)}:{line}" for f in files for line in clients_built(f.read_text("utf-8"))]


@pytest.mark.parametrize("path", FACTORIES)
def test_every_factory_still_needs_its_exception(path: str) -> None:
    assert clients_built((ROOT / path).read_text("utf-8"))


def test_no_client_is_built_at_import() -> None:
    assert not [f"{name(f)}:{line}" for f in sources() for line in clients_built_at_import(f.read_text("utf-8"))]


def test_files_are_short() -> None:
    lengths = {name(file): len(file.read_text("utf-8").splitlines()) for file in sources()}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}


def test_names_tell_the_role() -> None:
    assert not [name(file) for file in sources() if SAYS_NOTHING & {part.removesuffix(".py") for part in file.parts}]


def test_only_the_command_line_prints() -> None:
    files = [file for file in sources() if not name(file).startswith(("bench/", "cli/"))]
    assert not [f"{name(f)}:{line}" for f in files for line in prints(f.read_text("utf-8"))]


# -- the checks themselves can fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("infra", "from schemas.registry import registry", ["1: schemas.registry.registry"]),
        ("infra", "import schemas", ["1: schemas"]),
        ("sinks", "from streams import intake", ["1: streams.intake"]),
        ("api", "def later():\n    import sinks.app", ["2: sinks.app"]),
        ("streams", "import os\nfrom infra import http\nfrom streams.faust.ordered import Record\nimport schemas", []),
        ("infra", 'COMMAND = ["python", "-m", "streams.intake"]', []),
        ("infra", "import schemas_of_others", []),
        ("infra", "from . import streams", []),
    ],
)
def test_the_import_check(package: str, source: str, found: list[str]) -> None:
    assert wrong_imports(package, source) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nX = os.environ['A']", ["2: os.environ"]),
        ("import os as system\nX = system.getenv('A')", ["2: os.getenv"]),
        ("from os import environ", ["1: os.environ"]),
        ("from os import getenv as get\nget('A')", ["1: os.getenv", "2: os.getenv"]),
        ("from dotenv import load_dotenv", ["1: dotenv.load_dotenv"]),
        ("import os\nos.getpid()\nenviron = 1\nprint(environ, 'os.environ')", []),
    ],
)
def test_the_environment_check(source: str, found: list[str]) -> None:
    assert environment_reads(source) == found


@pytest.mark.parametrize(
    ("source", "anywhere", "at_import"),
    [
        ("import httpx\nC = httpx.AsyncClient()", ["2: httpx.AsyncClient"], ["2: httpx.AsyncClient"]),
        ("from httpx import Client as C\ndef f():\n    return C()", ["3: httpx.Client"], []),
        ("from infra import http\nx = lambda: http.client('u')", ["2: infra.http.client"], []),
        ("import asyncpg\nclass A:\n    pool = asyncpg.create_pool()", *[["3: asyncpg.create_pool"]] * 2),
        ("import asyncpg\nasync def f(pool: asyncpg.Pool):\n    return await pool.acquire()", [], []),
        ("def connect(): ...\nconnect()", [], []),
    ],
)
def test_the_client_check(source: str, anywhere: list[str], at_import: list[str]) -> None:
    assert clients_built(source) == anywhere
    assert clients_built_at_import(source) == at_import


def test_the_print_check() -> None:
    assert prints("print('x')\nlog.print('y')\n'print()'") == ["1: print"]


def test_the_roots() -> None:
    assert composition_root("streams/intake/app.py")
    assert composition_root("local/kafka.py")
    assert not composition_root("streams/intake/store.py")
    assert not composition_root("infra/kafka/snapp.py")
