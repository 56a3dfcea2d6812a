"""Run one sink as a process: ``python -m sinks clickhouse``, ``python -m sinks crm NAME``, ``... messages NAME``."""

from __future__ import annotations

import argparse
from functools import partial

from infra.runtime import run
from sinks import app


def main() -> None:
    """Read the command line and run until stopped."""
    parser = argparse.ArgumentParser(prog="python -m sinks")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("clickhouse", help="lead changes, outcomes and dead letters to ClickHouse")
    kinds.add_parser("crm", help="leads to a CRM").add_argument("name", help="such as hubspot")
    kinds.add_parser("messages", help="messages to people").add_argument("name", help="such as email")
    given = parser.parse_args()
    if given.kind == "clickhouse":
        run(app.clickhouse, "sink-clickhouse")
    elif given.kind == "crm":
        run(partial(app.crm, name=given.name), f"crm-{given.name}")
    else:
        run(partial(app.messages, name=given.name), f"messages-{given.name}")


if __name__ == "__main__":
    main()
