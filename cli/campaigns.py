"""``campaigns list``, ``campaigns check`` and ``campaigns preview``: the campaigns in the campaigns folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.settings import Settings, SettingsError

if TYPE_CHECKING:
    from streams.campaigns.triggers import Campaign

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List, check and preview campaigns.")
    group.command("list")(list_)
    group.command("check")(check)
    group.command("preview")(preview)
    app.add_typer(group, name="campaigns")


def list_(*, as_json: _Json = False) -> None:
    """List the campaigns with their triggers and messages."""
    from streams.campaigns.triggers import load_campaigns  # noqa: PLC0415 - only these commands need it

    campaigns = load_campaigns(Settings.load().campaigns_dir)
    if as_json:
        print(json.dumps([campaign.model_dump(by_alias=True) for campaign in campaigns.values()], indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    table = Table("campaign", "event", "where", "once per", "channel", "template", box=None, pad_edge=False)
    for each in campaigns.values():
        where = ", ".join(f"{path} = {value}" for path, value in each.trigger.where.items())
        step = each.step
        table.add_row(each.name, each.trigger.event, where or "always", each.once_per, step.channel, step.template)
    Console().print(table if campaigns else "No campaigns.", markup=False)


def check(*, as_json: _Json = False) -> None:
    """Check every campaign and template, those of the folders of tenants too.

    Prints every problem; exit code 1 when there is one.
    """
    from streams.campaigns.templates import load_campaigns_and_templates  # noqa: PLC0415 - only these commands need it

    settings = Settings.load()
    names: dict[str, list[str]] = {}
    problems: list[str] = []
    for owner, folder in {"": settings.campaigns_dir, **_tenants(settings)}.items():
        try:
            names[owner] = list(load_campaigns_and_templates(folder)[0])
        except SettingsError as error:
            problems.append(f"{owner}: {error}" if owner else str(error))
    if problems:
        sys.stderr.write("\n".join(problems) + "\n")
        raise typer.Exit(1)
    own = {owner: each for owner, each in names.items() if owner}
    if as_json:
        print(json.dumps({"campaigns": names[""]} | ({"tenants": own} if own else {}), indent=1))
        return
    print(f"{sum(map(len, names.values()))} campaigns, no problems")


def preview(
    name: Annotated[str, typer.Argument(help="Name of the campaign.")],
    *,
    as_json: _Json = False,
) -> None:
    """Show the message of a campaign for an example lead."""
    from streams.campaigns.templates import Templates, example  # noqa: PLC0415

    campaigns = _load()
    if name not in campaigns:
        sys.stderr.write(f"No campaign {name!r}. Campaigns: {', '.join(campaigns) or 'none'}.\n")
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
    sender = message["from"] or "(default address of the channel)"
    headers = {"From": sender, "To": message["to"], "Subject": message["subject"]}
    print("".join(f"{label}: {value}\n" for label, value in headers.items()))
    print(rendered.body)


def _tenants(settings: Settings) -> dict[str, Path]:
    """Return the campaigns folder of each tenant whose valid file names one."""
    from infra.tenants import Tenants  # noqa: PLC0415 - see above

    return {each.name: each.campaigns for each in Tenants.load(settings).own if each.campaigns is not None}


def _load() -> dict[str, Campaign]:
    from streams.campaigns.templates import load_campaigns_and_templates  # noqa: PLC0415

    try:
        return load_campaigns_and_templates(Settings.load().campaigns_dir)[0]
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(1) from None
