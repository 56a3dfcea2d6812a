"""Runs one sink as a process: ``python -m sinks clickhouse``, ``python -m sinks crm NAME``, ``... messages NAME``."""

from __future__ import annotations

import argparse
from functools import partial

from infra.runtime import run
from sinks import app


def main() -> None:
    """Parse the command line and run the sink until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m sinks")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("clickhouse", help="write lead changes, outcomes and dead letters to ClickHouse")
    kinds.add_parser("crm", help="sync leads to a CRM").add_argument("name", help="the CRM, such as hubspot")
    kinds.add_parser("messages", help="send messages").add_argument("name", help="the channel, such as email")
    args = parser.parse_args()
    if args.kind == "clickhouse":
        run(app.clickhouse, "sink-clickhouse")
    elif args.kind == "crm":
        run(partial(app.crm, name=args.name), f"crm-{args.name}")
    else:
        run(partial(app.messages, name=args.name), f"messages-{args.name}")


if __name__ == "__main__":
    main()
