"""Reads one tenant file: its content as a :class:`Tenant`, or every problem with line and column."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from infra.tenant_files.model import NAME, SECTIONS, Tenant, place
from infra.tenant_files.positions import FileProblem, Positions, parse
from infra.tenant_files.sections import message, read_section, unknown_key

MAX_BYTES = 262_144
_OWN = ("name", "file")  # fields of Tenant that no file has


def read_file(path: Path) -> Tenant | list[FileProblem]:
    """Return the tenant of the file ``path``, or its problems."""
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        return [FileProblem(f"cannot be read: {error.strerror}")]
    return read_content(path, content)


def read_content(path: Path, content: bytes) -> Tenant | list[FileProblem]:
    """Return the tenant of a file with the bytes ``content``, or its problems. Has no effect but reading folders."""
    if wrong := wrong_name(path):
        return [FileProblem(wrong)]
    if len(content) > MAX_BYTES:
        return [FileProblem(f"is larger than {MAX_BYTES} bytes")]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return [FileProblem("is not UTF-8")]
    parsed = parse(text)
    if isinstance(parsed, list):
        return parsed
    if not isinstance(parsed.content, dict):
        return [FileProblem("must be a map, such as `phone_region: DE`", 1, 1)]
    return _tenant(path, parsed)


def wrong_name(path: Path) -> str:
    """Return what is wrong with the name of a tenant file, or ""."""
    if path.suffix != ".yaml":
        return "the name must end in .yaml"
    if not NAME.fullmatch(path.stem):
        return "the name must be the tenant: 1 to 63 of a-z, 0-9, - and _, starting with a letter or digit, then .yaml"
    return ""


def _tenant(path: Path, parsed: Positions) -> Tenant | list[FileProblem]:
    problems: list[FileProblem] = []
    content = deepcopy(parsed.content)
    for kind, where in SECTIONS.items():
        sections = place(content, where)
        if not isinstance(sections, dict):
            continue  # missing, or reported below
        for name in list(sections):
            section, found = read_section(kind, name, sections.pop(name))
            problems += [parsed.problem((*where, name, *at), text, key=key) for at, text, key in found]
            if section is not None:
                sections[name] = section
    for own in _OWN:
        if own in content:
            problems.append(parsed.problem((own,), _unknown((own,)), key=True))
            del content[own]
    try:
        tenant = Tenant.model_validate(_as_tuples(content) | {"name": path.stem, "file": path.stem})
    except ValidationError as error:
        return _sorted(problems + [_problem(parsed, each) for each in error.errors(include_input=False)])
    if tenant.campaigns is not None:
        folder = path.parent / tenant.campaigns
        if not folder.is_dir():
            problems.append(parsed.problem(("campaigns",), f"the folder {folder} does not exist"))
        tenant = tenant.model_copy(update={"campaigns": folder})
    return _sorted(problems) if problems else tenant


def _as_tuples(value: Any) -> Any:
    """Return ``value`` with tuples for lists: the model is frozen and strict."""
    if isinstance(value, dict):
        return {key: _as_tuples(each) for key, each in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _problem(parsed: Positions, error: Any) -> FileProblem:
    path = tuple(each for each in error["loc"] if each != "[key]")
    of_key = "[key]" in error["loc"]
    if error["type"] == "extra_forbidden":
        return parsed.problem(path, _unknown(path), key=True)
    if error["type"] == "string_type":
        return parsed.problem(path, "must be a text: put it in quotation marks", key=of_key)
    if error["type"] in ("tuple_type", "is_instance_of"):
        return parsed.problem(path, "must be a list, such as [one, two]")
    if error["type"] in ("dict_type", "model_type"):
        return parsed.problem(path, "must be a map of keys and values")
    if error["type"] == "missing":
        return parsed.problem(path, "is missing")
    return parsed.problem(path, message(error), key=of_key)


def _unknown(path: tuple[Any, ...]) -> str:
    model: type[BaseModel] = Tenant
    for name in path[:-1]:
        field = model.model_fields[name].annotation
        found = [each for each in (field, *get_args(field)) if isinstance(each, type) and issubclass(each, BaseModel)]
        model = found[0]
    return unknown_key(str(path[-1]), [name for name in model.model_fields if name not in _OWN])


def _sorted(problems: list[FileProblem]) -> list[FileProblem]:
    return sorted(problems, key=lambda problem: (problem.line, problem.column))
