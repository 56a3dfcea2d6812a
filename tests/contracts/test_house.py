"""The house rules that no linter knows: what must not stand in the repo, and what belongs together."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.processes import connectors

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"

# Brackets keep these patterns from matching themselves.
REGISTRIES = re.compile(
    r"pyp[i]\.org|pythonhoste[d]|repo1?\.mave[n]|/maven[2]/|registry\.npm[j]s|crate[s]\.io|proxy\.golan[g]|deb\.debia[n]"
)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:roo[t]|wor[k]|home/\w+|Users/\w+)/|bash_job[s]")
OPEN_WORK = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X])\b(?! ?\(?#\d+)")
PRODUCT = ("api", "cli", "infra", "schemas", "sinks", "streams")
CONNECTORS = ("streams.enrichment.providers", "sinks.crm", "sinks.messages")


def tracked() -> list[Path]:
    """Return the files of the repo that hold text: what git knows, and what it would take in."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout (an unpacked archive): there is no list of the repo's files")
    paths = [ROOT / path for path in listed.stdout.decode().split("\0") if path]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def lines_with(pattern: re.Pattern[str], files: Iterable[Path]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in files
        for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def pins(lock: str) -> dict[str, list[Requirement]]:
    """Return the requirements of a lock by name; a name may stand twice, for different Pythons."""
    found: dict[str, list[Requirement]] = {}
    for line in lock.splitlines():
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def unpinned(lock: str) -> list[str]:
    """Return the lines of a lock that are not exactly ``name==version``, or that say where to get it."""
    return [line for line in lock.splitlines() if not re.fullmatch(r"[a-z0-9.-]+==[\w.!+]+( ; .+)?", line)]


def unmet(wanted: Iterable[str], lock: str) -> list[str]:
    """Return the requirements of pyproject.toml that a lock does not satisfy."""
    locked = pins(lock)
    return [
        text
        for text in wanted
        for requirement in [Requirement(text)]
        if not (pinned := locked.get(canonicalize_name(requirement.name)))
        or not all(requirement.specifier.contains(str(pin.specifier).removeprefix("==")) for pin in pinned)
    ]


def requirements_of(lock: str) -> list[str]:
    """Return what pyproject.toml asks of ``runtime.txt``, ``local.txt`` or ``dev.txt``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = list(project["project"]["dependencies"])
    if lock != "runtime.txt":
        wanted += project["project"]["optional-dependencies"]["local"]
    if lock == "dev.txt":
        wanted += project["dependency-groups"]["dev"]
    return wanted


def without_test(package: str, names: Iterable[str], tests: Path) -> list[str]:
    """Return the connectors of ``package`` that have no ``test_<name>.py`` where its package is mirrored."""
    folder = tests.joinpath(*package.split("."))
    return [name for name in names if not [*folder.parent.rglob(f"test_{name}.py")]]


def unused(project: str, imported: set[str]) -> list[str]:
    """Return the dependencies that nothing imports and whose line in pyproject.toml has no comment that says why."""
    modules = packages_distributions()
    found: list[str] = []
    for line in project.partition("\ndependencies = [\n")[2].partition("\n]\n")[0].splitlines():
        name = canonicalize_name(Requirement(line.partition('"')[2].partition('"')[0]).name)
        own = {module for module, owners in modules.items() if name in map(canonicalize_name, owners)}
        if "#" not in line and not any(_is_imported(module, name, imported) for module in own):
            found.append(name)
    return found


def _is_imported(module: str, distribution: str, imported: set[str]) -> bool:
    if module != "opentelemetry":  # a namespace of many distributions
        return any(name.partition(".")[0] == module for name in imported)
    part = "exporter" if "exporter" in distribution else "sdk"
    return any(name.startswith(f"opentelemetry.{part}") for name in imported)


def imports_of(package: str) -> set[str]:
    """Return the dotted names that the modules of ``package`` import, those inside functions too."""
    nodes = [n for f in (ROOT / package).rglob("*.py") for n in ast.walk(ast.parse(f.read_text("utf-8")))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def test_no_address_of_a_package_registry() -> None:
    assert not lines_with(REGISTRIES, tracked())


def test_no_path_of_a_machine() -> None:
    assert not lines_with(MACHINE_PATHS, tracked())


def test_no_open_work_without_an_issue() -> None:
    assert not lines_with(OPEN_WORK, [file for file in tracked() if file.suffix in (".py", ".sql", ".toml", ".yaml")])


@pytest.mark.parametrize("lock", ["runtime.txt", "local.txt", "dev.txt"])
def test_the_locks_pin_and_satisfy_what_the_project_asks_for(lock: str) -> None:
    text = (LOCKS / lock).read_text("utf-8")
    assert not unpinned(text)
    assert not unmet(requirements_of(lock), text), "make lock"


def test_the_locks_agree() -> None:
    dev, local, runtime = (
        set((LOCKS / f"{n}.txt").read_text("utf-8").splitlines()) for n in ("dev", "local", "runtime")
    )
    assert runtime <= local <= dev


def test_every_dependency_is_imported_or_says_why() -> None:
    imported = {name for package in PRODUCT for name in imports_of(package)}
    assert unused((ROOT / "pyproject.toml").read_text("utf-8"), imported) == []


def test_kafka_clients_are_configured_in_one_file() -> None:
    words = re.compile(r"bootstrap[.]servers")
    files = [file for file in tracked() if file.suffix == ".py" and file.relative_to(ROOT).parts[0] != "tests"]
    named = {line.partition(":")[0] for line in lines_with(words, files)}
    assert named == {"infra/kafka/client.py"}


@pytest.mark.parametrize("package", CONNECTORS)
def test_every_connector_has_its_test(package: str) -> None:
    names = connectors(ROOT, package)
    assert names
    assert not without_test(package, names, ROOT / "tests")


# -- the checks themselves can fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (REGISTRIES, "--index-url https://" + "pyp" + "i.org/simple"),
        (MACHINE_PATHS, "cd " + "/ro" + "ot/x"),
        (MACHINE_PATHS, '"' + "/ho" + 'me/ann/x"'),
        (OPEN_WORK, "# " + "TO" + "DO: later"),
    ],
)
def test_the_patterns_find(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATHS, "https://example.com/ro" + "ot/x and ./wo" + "rk/ and $(ROOT)/x"),
        (OPEN_WORK, "# TO" + "DO(#12): later"),
        (REGISTRIES, "published on PyPI"),
    ],
)
def test_the_patterns_leave_alone(pattern: re.Pattern[str], line: str) -> None:
    assert not pattern.search(line)


def test_the_lock_checks() -> None:
    assert unpinned("a==1\nb>=2\nc==3 ; sys_platform == 'win32'\n--find-links x\nd @ file:///x\ne[f]==1") == [
        "b>=2",
        "--find-links x",
        "d @ file:///x",
        "e[f]==1",
    ]
    assert unmet(["A_b>=2", "c", "d"], "a-b==1.9\nd==1") == ["A_b>=2", "c"]
    assert unmet(["n>=2"], "n==2.1 ; python_version < '3.12'\nn==3 ; python_version >= '3.12'") == []


def test_the_dependency_check() -> None:
    project = """
dependencies = [
    "httpx>=0.28",
    "PyYAML",
    "uvloop>=1",
    "orjson",  # somebody else's
]
"""
    assert unused(project, {"httpx._client"}) == ["pyyaml", "uvloop"]
    assert unused(project, {"httpx", "yaml", "uvloop"}) == []


def test_the_connector_check(tmp_path: Path) -> None:
    tests = tmp_path / "sinks" / "crm"
    tests.mkdir(parents=True)
    (tests / "test_one.py").touch()
    assert without_test("sinks.crm", ["one", "two"], tmp_path) == ["two"]
