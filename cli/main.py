"""Puts the command groups together: every module of this package that has a ``register`` function is one."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer

import cli
from infra.errors import DependencyAway
from infra.runtime import EX_CONFIG
from infra.settings import SettingsError

_CHECKOUT = ("local", "simulators")  # packages that the wheel and the production image do not hold


def build() -> typer.Typer:
    """Return the whole command."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=cli.__doc__)
    for module in sorted(pkgutil.iter_modules(cli.__path__), key=lambda m: m.name):
        register = getattr(importlib.import_module(f"cli.{module.name}"), "register", None)
        if register is not None:
            register(app)
    return app


def main() -> None:
    """Run the command; exit codes are 0 done, 1 failed, 2 wrong usage, 78 wrong settings."""
    try:
        build()()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None
    except ModuleNotFoundError as error:
        if error.name not in _CHECKOUT:
            raise
        sys.stderr.write("This command needs the embedded stack, which is in a checkout of leadstream and not in the ")
        sys.stderr.write("installed package: clone the repository, run `make setup`, use .venv/bin/leadstream there.\n")
        raise SystemExit(1) from None
    except DependencyAway as error:
        sys.stderr.write(f"{error}\nIs the stack up? See `leadstream status`.\n")
        raise SystemExit(1) from None
