"""What production gets: the image's files and the wheel hold the product, and nothing of the embedded stack."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = {"api", "cli", "infra", "operations", "schemas", "sinks", "streams"}
EMBEDDED = {"local", "simulators", "tests", "bench"}


def copied(dockerfile: str, stages: set[str]) -> set[str]:
    """Return what the ``stages`` of a Dockerfile copy from the build context, by its first folder or name."""
    found: set[str] = set()
    stage = ""
    for line in dockerfile.splitlines():
        if begins := re.match(r"FROM \S+ AS (\S+)", line):
            stage = begins[1]
        elif stage in stages and line.startswith("COPY ") and "--from=" not in line:
            found |= {source.rstrip("/").partition("/")[0] for source in line.split()[1:-1]}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel from the whole repository and return the names of its files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PRODUCT | EMBEDDED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, cwd=source)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_production_image_copies_the_product_and_no_embedded_stack() -> None:
    production = copied((ROOT / "Dockerfile").read_text("utf-8"), {"build", "base", "leadstream"})
    assert production >= PRODUCT
    assert not production & EMBEDDED


def test_the_wheel_holds_the_product_and_no_embedded_stack(wheel: list[str]) -> None:
    folders = {name.partition("/")[0] for name in wheel if ".dist-info/" not in name}
    assert folders == PRODUCT


def test_the_wheel_holds_every_data_file(wheel: list[str]) -> None:
    kept = {".avsc", ".sql", ".toml", ".j2"}
    needed = {f.relative_to(ROOT).as_posix() for p in PRODUCT for f in (ROOT / p).rglob("*") if f.suffix in kept}
    assert needed
    assert not needed - set(wheel)


def test_the_copy_check_reads_the_stages_that_it_is_asked_for() -> None:
    text = "FROM x AS build\nCOPY a/ b.toml ./\nFROM build AS other\nCOPY simulators/ simulators/\nCOPY --from=x y z\n"
    assert copied(text, {"build"}) == {"a", "b.toml"}
    assert copied(text, {"build", "other"}) == {"a", "b.toml", "simulators"}
