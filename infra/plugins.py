"""Connectors by folder: a file that defines ``Config`` is a connector, ``NAME`` is the name that users type.

Adding one is adding a file: there is no list to extend. Files of the folder without ``Config`` are not connectors.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


class PluginError(Exception):
    """A connector has no name, two have the same one, or there is none with the requested name."""


def discover(package: str) -> dict[str, ModuleType]:
    """Return the connectors of ``package`` (dotted name) by their names, sorted.

    Raises:
        PluginError: a connector without ``NAME``, or two with the same.

    """
    found: dict[str, ModuleType] = {}
    folder = importlib.import_module(package)
    for file in sorted(pkgutil.iter_modules(folder.__path__), key=lambda f: f.name):
        module = importlib.import_module(f"{package}.{file.name}")
        if not hasattr(module, "Config"):
            continue
        name = getattr(module, "NAME", "")
        if not name:
            raise PluginError(f"{module.__name__} defines Config but no NAME")
        if name in found:
            raise PluginError(f"{module.__name__} and {found[name].__name__} are both named {name!r}")
        found[name] = module
    return dict(sorted(found.items()))


def find(package: str, name: str) -> ModuleType:
    """Return the connector ``name`` of ``package``.

    Raises:
        PluginError: there is none; the message lists the existing ones.

    """
    found = discover(package)
    if name not in found:
        raise PluginError(f"no {name!r} in {package}; there are: {', '.join(found) or 'none'}")
    return found[name]
