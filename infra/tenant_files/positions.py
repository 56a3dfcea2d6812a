"""Reads YAML and keeps where each value is, so that a problem can be reported with line and column.

A subset of YAML: one document, no anchors, aliases or tags, each key once. Words are as in YAML 1.2: ``NO`` is a text
(the country), only ``true`` and ``false`` are booleans, and a date is a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_MAX_DEPTH = 20

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One problem of a file. ``line`` and ``column`` start at 1; 0: of the file as a whole."""

    message: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Positions:
    """The content of a file, and line and column of each key and value by its path."""

    content: Any
    keys: Mapping[Path, tuple[int, int]]
    values: Mapping[Path, tuple[int, int]]

    def problem(self, path: Sequence[str | int], message: str, *, key: bool = False) -> FileProblem:
        """Return a problem of the value at ``path``, or of its key; if it does not exist, of what would contain it."""
        at = tuple(path)
        where = ".".join(map(str, at))
        if key and at in self.keys:
            return FileProblem(f"{where}: {message}", *self.keys[at])
        while at and at not in self.values:
            at = at[:-1]
        return FileProblem(f"{where}: {message}" if where else message, *self.values.get(at, (1, 1)))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the words of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":bool", ":timestamp", ":merge", ":int", ":value"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|false"), ["t", "f"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]{1,18}"), [*"-+0123456789"])


def parse(text: str) -> Positions | list[FileProblem]:
    """Return the content of ``text`` with its positions, or its problems. Raises nothing, whatever ``text`` is."""
    try:
        return _parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {error.problem or error.context}"
        return [FileProblem(message, *(_at(mark) if mark else (0, 0)))]
    except yaml.reader.ReaderError as error:
        return [FileProblem(f"not valid YAML: the character {error.character!r} is not allowed")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [FileProblem(f"not valid YAML: {type(error).__name__}")]


def _parse(text: str) -> Positions | list[FileProblem]:
    for token in yaml.scan(text, Loader=_Loader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            return [FileProblem("anchors, aliases and tags (&, *, !) are not supported", *_at(token.start_mark))]
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        keys: dict[Path, tuple[int, int]] = {}
        values: dict[Path, tuple[int, int]] = {}
        problems: list[FileProblem] = []
        if root is None:
            return Positions({}, keys, {(): (1, 1)})
        _walk(root, (), keys, values, problems)
        return problems or Positions(loader.construct_document(root), keys, values)
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node,
    path: Path,
    keys: dict[Path, tuple[int, int]],
    values: dict[Path, tuple[int, int]],
    problems: list[FileProblem],
) -> None:
    values[path] = _at(node.start_mark)
    if len(path) > _MAX_DEPTH:
        problems.append(FileProblem("nested too deeply", *values[path]))
        return
    if isinstance(node, yaml.SequenceNode):
        for index, each in enumerate(node.value):
            _walk(each, (*path, index), keys, values, problems)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problems.append(FileProblem("a key must be a text", *_at(key.start_mark)))
            continue
        below = (*path, key.value)
        if below in keys:
            problems.append(FileProblem(f"{'.'.join(map(str, below))}: the key is there twice", *_at(key.start_mark)))
        keys[below] = _at(key.start_mark)
        if key.tag != "tag:yaml.org,2002:str":
            problems.append(FileProblem(f"the key {key.value} is not a text: put it in quotation marks", *keys[below]))
        _walk(value, below, keys, values, problems)


def _at(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1
