"""Finds connectors: each file of a folder that defines ``Config`` is a connector.

Its ``NAME`` must equal the name of its file, because processes and topics are named by the file. A new connector is a
new file: there is no list to extend.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


class PluginError(Exception):
    """The ``NAME`` of a connector is not the name of its file, or there is no connector of the requested name."""


def discover(package: str) -> dict[str, ModuleType]:
    """Return the connectors of ``package`` (dotted name) by name, in the order of their names.

    Raises:
        PluginError: ``NAME`` is missing or differs from the file's name; the message names the file.

    """
    found: dict[str, ModuleType] = {}
    folder = importlib.import_module(package)
    for file in sorted(pkgutil.iter_modules(folder.__path__), key=lambda f: f.name):
        module = importlib.import_module(f"{package}.{file.name}")
        if not hasattr(module, "Config"):
            continue
        name = getattr(module, "NAME", None)
        if name != file.name:
            raise PluginError(f"{module.__name__}: NAME must equal the file's name, {file.name!r}; it is {name!r}")
        found[name] = module
    return found


def find(package: str, name: str) -> ModuleType:
    """Return the connector ``name`` of ``package``.

    Raises:
        PluginError: there is no such connector; the message lists the existing ones.

    """
    found = discover(package)
    if name not in found:
        raise PluginError(f"no {name!r} in {package}; there are: {', '.join(found) or 'none'}")
    return found[name]
