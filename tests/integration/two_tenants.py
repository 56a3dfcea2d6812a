"""An installation with two tenants that have accounts of their own, and a third that default.yaml serves.

Each tenant has its own HubSpot, People Data Labs and SMTP server (simulators), so that what reaches whom can be seen.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.clock import now_us
from infra.settings import child_environment
from local.attached import AttachedStack
from tests.events import payload

OWN = ("acme", "globex")
DEFAULT = "initech"  # has no file
TENANTS = (*OWN, DEFAULT)
PEOPLE = 6
MERGING = 2  # the last events of each tenant: they merge two leads
_FILE = """
phone_region: DE
crm:
  hubspot:
    base_url: http://127.0.0.1:{hubspot}
    token: {{setting: LEADSTREAM_SECRET_{upper}}}
enrichment:
  providers:
    pdl: {{base_url: "http://127.0.0.1:{pdl}", api_key: {{file: {secret}}}, min_likelihood: 1}}
campaigns: {name}-campaigns
sender:
  email:
    url: smtp://127.0.0.1:{smtp}
    from_address: {name} <hello@{name}.example>
"""
_CAMPAIGN = """
name: {name}_demo
trigger: {{event: form_submitted, where: {{event.form_id: demo}}}}
consent: {{required: false}}
step: {{subject: "{name} thanks {{{{ lead.company }}}}", template: demo.html.j2}}
"""


def canary(tenant: str) -> str:
    """Return the one word in which the data of the tenants differ."""
    return f"canary{tenant}word"


@dataclass
class Installation:
    """``folders``: service -> tenant -> the state folder of its simulator. ``ports``: the ports of the simulators."""

    state: Mapping[str, Any]
    home: Path
    folders: Mapping[str, Mapping[str, Path]]
    ports: Mapping[str, Mapping[str, int]]


def events(tenant: str) -> list[bytes]:
    """Return the events of a tenant: the same people, event ids and times for each; two of them are one person."""
    now, made = now_us() - 60_000_000, list[bytes]()
    for n in range(PEOPLE):
        who: dict[str, Any] = {
            "email": f"person{n}@example.com",
            "external_id": f"user-{n}",
            "phone": f"+49301234560{n}",
        }
        form = {"form_id": "demo", "first_name": f"Person{n}", "company": canary(tenant), "at": now + n}
        made.append(payload("form_submitted", f"form-{n}", tenant=tenant, **who, **form))
    for n in range(2):  # the second one merges two leads
        who = {"external_id": f"other-{n}"}
        made.append(
            payload("lead_updated", f"other-{n}", tenant=tenant, **who, company=canary(tenant), at=now + 100 + n)
        )
    both = {"external_id": "other-0", "email": "other@example.com"}
    made.append(payload("lead_updated", "other-mail", tenant=tenant, **both, at=now + 200))
    both = {"external_id": "other-1", "email": "other@example.com"}
    made.append(payload("lead_updated", "merge", tenant=tenant, **both, title="CTO", at=now + 300))
    return made


@contextmanager
def installation(folder: Path) -> Iterator[Installation]:
    """Start the installation; all of it stops at the end."""
    tenants = folder / "tenants"
    tenants.mkdir()
    (tenants / "default.yaml").touch()
    with ExitStack() as started:
        services = {
            service: {tenant: folder / service / tenant for tenant in OWN} for service in ("hubspot", "pdl", "smtp")
        }
        ports = {
            service: {tenant: started.enter_context(_simulator(service, place)) for tenant, place in places.items()}
            for service, places in services.items()
        }
        for tenant in OWN:
            secret = folder / f"{tenant}.secret"
            secret.write_text(f"key-of-{tenant}\n", "utf-8")
            own = {service: each[tenant] for service, each in ports.items()}
            text = _FILE.format(name=tenant, upper=tenant.upper(), secret=secret, **own)
            (tenants / f"{tenant}.yaml").write_text(text, "utf-8")
            _campaigns(tenants / f"{tenant}-campaigns", tenant)
        settings = {"LEADSTREAM_TENANTS_DIR": str(tenants), "LEADSTREAM_CAMPAIGNS_DIR": str(folder / "campaigns")}
        settings |= {f"LEADSTREAM_SECRET_{tenant.upper()}": f"pat-{tenant}" for tenant in OWN}
        _campaigns(folder / "campaigns", DEFAULT)
        stack = started.enter_context(AttachedStack(folder / "home", settings=settings))
        home = stack.home / "simulators"
        for service, places in services.items():
            places[DEFAULT] = home / service
        yield Installation(stack.state, stack.home, services, ports)


def _campaigns(folder: Path, name: str) -> None:
    (folder / "templates").mkdir(parents=True)
    (folder / "templates" / "demo.html.j2").write_text("<p>{{ lead.company }}</p>", "utf-8")
    (folder / f"{name}.yaml").write_text(_CAMPAIGN.format(name=name), "utf-8")


@contextmanager
def _simulator(service: str, state: Path) -> Iterator[int]:
    """Run a simulator; return its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    state.mkdir(parents=True)
    command = [sys.executable, "-m", "simulators", service, "--port", str(port), "--state", str(state)]
    process = subprocess.Popen(command, env=child_environment({}, inherit=False))
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            assert process.poll() is None, f"{service} has ended"
            assert time.monotonic() < deadline, f"{service} does not listen"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)
