"""Builds the command line: every module of this package with a ``register`` function adds its commands."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer

import cli
from infra.errors import DependencyUnavailable
from infra.runtime import EX_CONFIG
from infra.settings import SettingsError, exempt_loopback_from_proxies

_HELP = "Run and inspect leadstream, a pipeline for real-time lead events."
_ONLY_IN_REPOSITORY = ("local", "simulators")  # packages that the wheel and the production image do not contain
_NO_EMBEDDED_STACK = (
    "This command needs the embedded stack, which the installed package does not contain: "
    "clone the repository, run `make setup`, and use .venv/bin/leadstream there.\n"
)


def build() -> typer.Typer:
    """Return the ``leadstream`` command with all of its command groups."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=_HELP)
    for module in sorted(pkgutil.iter_modules(cli.__path__), key=lambda m: m.name):
        register = getattr(importlib.import_module(f"cli.{module.name}"), "register", None)
        if register is not None:
            register(app)
    return app


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 78 invalid settings. docs/runbooks/README.md lists those of processes.
    """
    exempt_loopback_from_proxies()
    try:
        build()()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None
    except ModuleNotFoundError as error:
        if error.name not in _ONLY_IN_REPOSITORY:
            raise
        sys.stderr.write(_NO_EMBEDDED_STACK)
        raise SystemExit(1) from None
    except DependencyUnavailable as error:
        sys.stderr.write(f"{error}\nCheck that the stack is running: `leadstream status`.\n")
        raise SystemExit(1) from None
