"""The parts of a tenant's file that belong to a connector: its CRM accounts, data providers and message channels.

The schema of such a section is the ``Config`` of the connector's file, so a new connector needs no change here. A field
of type ``SecretStr`` must be a reference, ``{setting: LEADSTREAM_SECRET_…}`` or ``{file: /path}``: the file of a tenant
holds no secret. ``Config.process_fields`` are those that a process has, not an account; a tenant cannot set them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from infra import plugins
from infra.settings import PREFIX, Settings

# Kind of section -> the package of its connectors, and what one of them is called.
KINDS = {
    "crm": ("sinks.crm", "CRM"),
    "provider": ("streams.enrichment.providers", "provider"),
    "channel": ("sinks.messages", "channel"),
}
_SETTING = re.compile(PREFIX + r"(SECRET|CRM|PROVIDER|CHANNEL)_[A-Z0-9_]{1,100}")
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_PLACEHOLDER = SecretStr("x" * 32)  # stands for a secret while the other fields are validated
_MAX_SECRET = 65_536  # bytes
HOW = f"write {{setting: {PREFIX}SECRET_…}} or {{file: /path}}"

Config = TypeVar("Config", bound=BaseModel)


class AccountError(Exception):
    """A section cannot be used in this process: a secret is missing, or its fields do not fit those of the process."""


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Where a secret is: the name of a setting, or the path of a file."""

    setting: str = ""
    file: str = ""

    def resolve(self, settings: Settings) -> SecretStr:
        """Return the secret.

        Raises:
            AccountError: it is missing or empty; the message names the reference, never the secret.

        """
        if self.setting:
            value = settings.secret(self.setting)
            if not value:
                raise AccountError(f"the setting {self.setting} is not set")
            return SecretStr(value)
        try:
            with Path(self.file).open("rb") as opened:
                content = opened.read(_MAX_SECRET + 1)
            text = content.decode("utf-8").rstrip("\r\n")
        except OSError as error:
            raise AccountError(f"the file {self.file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccountError(f"the file {self.file} is not UTF-8") from None
        if not text or len(content) > _MAX_SECRET:
            raise AccountError(f"the file {self.file} is {'too large' if text else 'empty'}")
        return SecretStr(text)


@dataclass(frozen=True, slots=True)
class Section:
    """The values of one connector in a tenant's file. Secrets are references."""

    kind: str
    name: str
    values: tuple[tuple[str, Any], ...]

    @property
    def references(self) -> list[tuple[str, SecretReference]]:
        """The fields that are secrets."""
        return [(name, value) for name, value in self.values if isinstance(value, SecretReference)]

    def config(self, model: type[Config], process: Mapping[str, Any], settings: Settings) -> Config:
        """Return the settings of the account: ``process`` has the values of ``process_fields``.

        No other setting of the environment is used: those are the account of another tenant.

        Raises:
            AccountError: a secret is missing, or a value is invalid; the message has no value.

        """
        values: dict[str, Any] = dict(process)
        for name, value in self.values:
            values[name] = value.resolve(settings) if isinstance(value, SecretReference) else value
        try:
            return model.model_validate(values)
        except ValidationError as error:
            texts = [f"{'.'.join(map(str, e['loc']))}: {message(e)}" for e in error.errors(include_input=False)]
            raise AccountError("; ".join(texts)) from None


@cache
def connectors(kind: str) -> Mapping[str, ModuleType]:
    """Return the connectors of ``kind`` by name."""
    return plugins.discover(KINDS[kind][0])


def process_fields(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a connector's ``Config`` that are settings of the process."""
    found: frozenset[str] = getattr(model, "process_fields", frozenset())
    return found


def is_secret(model: type[BaseModel], name: str) -> bool:
    """Return whether the field ``name`` is a secret."""
    return model.model_fields[name].annotation is SecretStr


SectionProblem = tuple[tuple[str | int, ...], str, bool]  # path in the section, message, of the key


def read_section(kind: str, name: str, values: Any) -> tuple[Section | None, list[SectionProblem]]:
    """Return the section ``name`` of a file, or None and its problems."""
    if name not in connectors(kind):
        known = ", ".join(connectors(kind)) or "none"
        return None, [((), f"no such {KINDS[kind][1]}; there are: {known}", True)]
    if not isinstance(values, dict):
        return None, [((), "must be a map of settings", False)]
    model: type[BaseModel] = connectors(kind)[name].Config
    problems: list[SectionProblem] = []
    found: dict[str, Any] = {}
    for field, value in values.items():
        if field not in model.model_fields or field in process_fields(model):
            problems.append(((field,), _unknown(kind, name, model, field), True))
        elif is_secret(model, field):
            read = _reference(value)
            if isinstance(read, SecretReference):
                found[field] = read
            else:
                problems.append(((field,), read, False))
        elif isinstance(value, str) and _CREDENTIALS.search(value):
            problems.append(((field,), "must not contain a user name or password: use the fields for them", False))
        else:
            found[field] = value
    problems += _invalid(model, found, {path[0] for path, _, _ in problems})
    return (None, problems) if problems else (Section(kind, name, tuple(found.items())), [])


def unknown_key(key: str, known: list[str]) -> str:
    """Return the message for a key that is not one of ``known``."""
    close = difflib.get_close_matches(key, known, 1)
    return f"no such key{f'; did you mean {close[0]}?' if close else ''} There are: {', '.join(sorted(known))}"


def message(error: Any) -> str:
    """Return the message of one of pydantic's errors, which has no value."""
    return str(error["msg"]).removeprefix("Value error, ")


def _unknown(kind: str, name: str, model: type[BaseModel], field: str) -> str:
    if field in process_fields(model):
        setting = f"{PREFIX}{kind}_{name}_{field}".upper()
        return f"is a setting of the process, not of a tenant: use {setting}"
    return unknown_key(field, [each for each in model.model_fields if each not in process_fields(model)])


def _reference(value: Any) -> SecretReference | str:
    """Return the reference in ``value``, or what is wrong with it."""
    if not isinstance(value, dict) or len(value) != 1 or not isinstance(next(iter(value.values())), str):
        return f"must be a reference to a secret, not a value: {HOW}"
    ((key, text),) = value.items()
    if key == "setting":
        if not _SETTING.fullmatch(text):
            return f"setting: must be the name of a setting, such as {PREFIX}SECRET_ACME_TOKEN"
        return SecretReference(setting=text)
    if key == "file":
        if not Path(text).is_absolute() or "\0" in text:
            return "file: must be an absolute path"
        return SecretReference(file=text)
    return f"a reference has the key setting or file: {HOW}"


def _invalid(model: type[BaseModel], found: Mapping[str, Any], reported: set[str | int]) -> Iterator[SectionProblem]:
    values = {n: _PLACEHOLDER if isinstance(v, SecretReference) else v for n, v in found.items()}
    try:
        model.model_validate(values)
    except ValidationError as error:
        for each in error.errors(include_input=False):
            field = each["loc"][0] if each["loc"] else ""
            if field in reported:
                continue
            missing = each["type"] == "missing"
            hint = f"is missing{f': {HOW}' if is_secret(model, str(field)) else ''}" if missing else message(each)
            yield each["loc"], hint, False
