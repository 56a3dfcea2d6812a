"""``campaigns list``, ``check`` and ``preview``: what the folder of campaigns says, before it runs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from infra.settings import Settings, SettingsError

if TYPE_CHECKING:
    from streams.campaigns.triggers import Campaign


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Campaigns: what is sent to whom, and when.")
    group.command("list")(list_)
    group.command("check")(check)
    group.command("preview")(preview)
    app.add_typer(group, name="campaigns")


def list_(*, as_json: Annotated[bool, typer.Option("--json", help="For other tools.")] = False) -> None:
    """Name the campaigns, what triggers each and what it sends."""
    from streams.campaigns.triggers import load_campaigns  # noqa: PLC0415 - only these commands need it

    campaigns = load_campaigns(Settings.load().campaigns_dir)
    if as_json:
        print(json.dumps([campaign.model_dump(by_alias=True) for campaign in campaigns.values()], indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    table = Table("campaign", "event", "where", "once per", "channel", "template", box=None, pad_edge=False)
    for each in campaigns.values():
        where = ", ".join(f"{path} = {wanted}" for path, wanted in each.trigger.where.items())
        step = each.step
        table.add_row(each.name, each.trigger.event, where or "always", each.once_per, step.channel, step.template)
    Console().print(table if campaigns else "No campaigns.", markup=False)


def check() -> None:
    """Check every campaign and template; exit with 1 and every problem when something is wrong."""
    print(f"{len(_checked())} campaigns, no problems")


def preview(
    name: Annotated[str, typer.Argument(help="The campaign's name.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For other tools.")] = False,
) -> None:
    """Show the message of a campaign as an example lead would get it."""
    from streams.campaigns.templates import Templates, example  # noqa: PLC0415

    campaigns = _checked()
    if name not in campaigns:
        sys.stderr.write(f"no campaign {name!r}; there are: {', '.join(campaigns) or 'none'}\n")
        raise typer.Exit(1)
    campaign, signal = campaigns[name], example(campaigns[name])
    rendered = Templates(Settings.load().campaigns_dir).render(campaign, signal)
    message = {
        "campaign": name,
        "channel": campaign.step.channel,
        "from": campaign.step.sender,
        "to": str(signal.lead["email"]),
        "subject": rendered.subject,
        "body": rendered.body,
    }
    if as_json:
        print(json.dumps(message, indent=1))
        return
    head = {"From": message["from"] or "(the channel's address)", "To": message["to"], "Subject": message["subject"]}
    print("".join(f"{label}: {value}\n" for label, value in head.items()))
    print(rendered.body)


def _checked() -> dict[str, Campaign]:
    from streams.campaigns.templates import checked  # noqa: PLC0415

    try:
        return checked(Settings.load().campaigns_dir)[0]
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(1) from None
