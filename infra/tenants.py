"""The tenants of an installation: one file each, ``<tenant>.yaml`` in ``LEADSTREAM_TENANTS_DIR``.

``default.yaml`` serves every tenant without a file: the installation is open. It is closed without that file, or by
``LEADSTREAM_TENANTS_CLOSED``; then only tenants with a file are known.

Guarantees:

- A changed file takes effect within seconds in every process that runs :meth:`Tenants.watch`, also if it is replaced
  atomically or by a link. A file is read when it has not changed for a second, so that a half-written one is not used.
- An invalid file changes nothing: the last valid content stays in use, the metric ``leadstream_tenant_file_invalid``
  is 1, and each content is logged once. If there is no valid content, the tenant is ``invalid``: it is not served.
  :mod:`infra.tenant_files.last_valid` keeps the last valid content across restarts.
- Nobody is served by ``default.yaml`` because of a problem with its own file: not if that is invalid, has a wrong
  ending, or disappears while the process runs. In a closed installation a tenant whose file disappears is unknown.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection
from enum import StrEnum
from pathlib import Path

from infra import metrics
from infra.outcomes import Dead, Problem, Reason
from infra.runtime import Stop, log
from infra.settings import Settings, SettingsError
from infra.tenant_files.model import DEFAULT, NAME, Budget, Enrichment, IdentityPolicy, Tenant
from infra.tenant_files.positions import FileProblem
from infra.tenant_files.reading import read_content, wrong_name
from infra.tenant_files.sections import AccountError, SecretReference, Section

__all__ = [
    "DEFAULT",
    "AccountError",
    "Budget",
    "Enrichment",
    "FileProblem",
    "IdentityPolicy",
    "SecretReference",
    "Section",
    "State",
    "Tenant",
    "Tenants",
]

_POLL_S = 1.0
_ENDINGS = (".yaml", ".yml")  # in any case; all but .yaml are reported
_MAX_SERVED = 10_000  # tenants of default.yaml that are kept

_Stamp = tuple[int, int, int, int]
Check = Callable[[Tenant], str]


class State(StrEnum):
    """What is known of a tenant."""

    OWN = "own"  # it has a file of its own
    DEFAULT = "default"  # default.yaml serves it
    INVALID = "invalid"  # its file is invalid and was not valid since the process started: its work waits
    UNKNOWN = "unknown"  # the installation is closed and has no file for it


class Tenants:
    """The tenants of ``folder``.

    Args:
        folder: of the files.
        closed: whether ``default.yaml`` serves nobody.
        check: returns what else is wrong with a tenant for this process, such as a missing secret, or "".

    Raises:
        SettingsError: the folder does not exist.

    """

    def __init__(self, folder: Path, *, closed: bool = False, check: Check | None = None) -> None:
        if not folder.is_dir():
            raise SettingsError(
                f"LEADSTREAM_TENANTS_DIR: the folder {folder} does not exist; create it with a file default.yaml, "
                "which may be empty, to serve every tenant"
            )
        self._folder = folder
        self._closed = closed
        self._check = check or (lambda _: "")
        self._valid: dict[str, Tenant] = {}
        self._problems: dict[str, list[FileProblem]] = {}
        self._served: dict[str, Tenant] = {}
        self._contents: dict[str, bytes] = {}
        self._logged: dict[str, bytes] = {}
        self._unreadable = False
        self._seen: dict[Path, _Stamp] = {}
        self._seen = self._stamps()
        self._load(self._seen)

    @classmethod
    def load(cls, settings: Settings, check: Check | None = None) -> Tenants:
        """Return the tenants of the folder in ``settings``."""
        return cls(settings.tenants_dir, closed=settings.tenants_closed, check=check)

    def get(self, tenant: str) -> Tenant | None:
        """Return the tenant, or None if it must not be served: see :meth:`state` for why.

        A tenant of ``default.yaml`` has its own ``name`` and the ``file`` default.
        """
        own = self._valid.get(tenant)
        if own is not None and (tenant != DEFAULT or not self._closed):
            return own
        served = self._served.get(tenant)
        if served is None and self.state(tenant) is State.DEFAULT:
            if len(self._served) >= _MAX_SERVED:
                self._served.clear()
            served = self._served[tenant] = self._valid[DEFAULT].model_copy(update={"name": tenant})
        return served

    def refusal(self, tenant: str) -> Dead | None:
        """Return why an event of the tenant must not be accepted, or None if the tenant is served."""
        if self.get(tenant) is not None:
            return None
        if self.state(tenant) is State.INVALID:
            problem = Problem("/envelope/tenant", "the tenant's file is invalid: correct it, then send this again")
            return Dead(Reason.TENANT_INVALID, (problem,))
        problem = Problem("/envelope/tenant", "no such tenant: this installation serves only tenants with a file")
        return Dead(Reason.UNKNOWN_TENANT, (problem,))

    def state(self, tenant: str) -> State:
        """Return whether and why the tenant is served."""
        if tenant == DEFAULT and self._closed:
            return State.UNKNOWN
        if tenant in self._valid:
            return State.OWN
        if tenant in self._problems:
            return State.INVALID
        if self._closed or not NAME.fullmatch(tenant):
            return State.UNKNOWN
        return (
            State.DEFAULT if DEFAULT in self._valid else State.INVALID if DEFAULT in self._problems else State.UNKNOWN
        )

    @property
    def own(self) -> Collection[Tenant]:
        """The valid tenants with a file, ``default`` included unless the installation is closed."""
        return [tenant for name, tenant in self._valid.items() if name != DEFAULT or not self._closed]

    @property
    def open(self) -> bool:
        """Whether tenants without a file are served."""
        return DEFAULT in self._valid and not self._closed

    @property
    def problems(self) -> dict[str, list[FileProblem]]:
        """The problems of the invalid files, by tenant."""
        return dict(self._problems)

    @property
    def contents(self) -> dict[str, bytes]:
        """The content of each file that is or was valid, by tenant."""
        return dict(self._contents)

    def restore(self, name: str, content: bytes) -> None:
        """Use an earlier content of the invalid file of the tenant ``name``, unless it was valid in this process."""
        if name in self._valid or name not in self._problems:
            return
        tenant = self._read(self._folder / f"{name}.yaml", content)
        if isinstance(tenant, Tenant):
            self._valid = self._valid | {name: tenant}
            self._served = {}
            log("tenants").warning(
                "the last valid content of a tenant file is used", extra={"fields": {"tenant": name}}
            )

    async def watch(self, stop: Stop, changed: Callable[[], Awaitable[None]] | None = None) -> None:
        """Look for changed files every second until ``stop``, and call ``changed`` after a change has taken effect."""
        before = self._seen
        while not await stop.wait(_POLL_S):
            now = await asyncio.to_thread(self._stamps)
            stable, before = now == before, now
            if stable and now != self._seen:
                self._seen = now
                await asyncio.to_thread(self._load, now)
                if changed is not None:
                    await changed()

    def _stamps(self) -> dict[Path, _Stamp]:
        """Return what changes when a file changes, for each tenant file and each file with a secret."""
        try:
            files = [file for file in self._folder.iterdir() if file.suffix.lower() in _ENDINGS]
        except OSError as error:  # such as a lost volume: nobody's file has disappeared
            if self._seen:
                if not self._unreadable:
                    log("tenants").error("the tenant files cannot be read", extra={"fields": {"error": str(error)}})
                self._unreadable = True
                return self._seen
            files = []
        self._unreadable = False
        for tenant in self._valid.values():
            for section in tenant.sections:
                files += [Path(reference.file) for _, reference in section.references if reference.file]
        found: dict[Path, _Stamp] = {}
        for file in files:
            if file.name.startswith("."):
                continue
            try:
                stat = file.stat()
            except OSError:  # deleted since the folder was listed, a broken link, or no permission
                found[file] = (0, 0, 0, 0)
                continue
            found[file] = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
        return found

    def _load(self, stamps: Collection[Path]) -> None:
        """Read all files and replace what has changed."""
        files = [file for file in stamps if file.parent == self._folder and file.suffix.lower() in _ENDINGS]
        valid, problems = dict(self._valid), dict[str, list[FileProblem]]()
        for file in sorted(files, key=lambda file: file.suffix):  # a file .yml is reported, also beside a file .yaml
            name = file.stem.lower()
            content = _content(file)
            tenant = self._read(file, content)
            if isinstance(tenant, Tenant):
                valid[name] = tenant
                if isinstance(content, bytes):
                    self._contents[name] = content
            else:
                problems[name] = tenant
                self._report(file, name, content, tenant)
        self._remove({file.stem.lower() for file in files}, valid, problems)
        changed = valid != self._valid or problems.keys() != self._problems.keys()
        for name in self._problems.keys() - problems.keys():
            metrics.TENANT_FILE_INVALID.labels(name).set(0)
            self._logged.pop(name, None)
        # One assignment each: callers run in another thread and see the old or the new ones.
        self._valid, self._problems, self._served = valid, problems, {}
        if changed:
            fields = {"tenants": sorted(valid)[:100], "invalid": sorted(problems)}
            log("tenants").info("tenants loaded", extra={"fields": fields})

    def _read(self, file: Path, content: bytes | OSError) -> Tenant | list[FileProblem]:
        if wrong := wrong_name(file):
            return [FileProblem(wrong)]
        if isinstance(content, OSError):
            return [FileProblem(f"cannot be read: {content.strerror}")]
        tenant = read_content(file, content)
        if isinstance(tenant, Tenant) and (wrong := self._check(tenant)):
            return [FileProblem(wrong)]
        return tenant

    def _remove(self, names: set[str], valid: dict[str, Tenant], problems: dict[str, list[FileProblem]]) -> None:
        """Handle the tenants whose file has disappeared."""
        closed = self._closed or (DEFAULT not in valid and DEFAULT not in problems)
        for name in valid.keys() - names:
            if closed:
                del valid[name]
                continue
            problems[name] = [FileProblem("has disappeared: its last content stays in use until a restart")]
            self._report(self._folder / f"{name}.yaml", name, b"", problems[name])

    def _report(self, file: Path, name: str, content: bytes | OSError, problems: list[FileProblem]) -> None:
        label = name if NAME.fullmatch(name) else "other"
        metrics.TENANT_FILE_INVALID.labels(label).set(1)
        texts = [f"{file}:{p.line}:{p.column}: {p.message}" if p.line else f"{file}: {p.message}" for p in problems]
        words = (content if isinstance(content, bytes) else b"") + "\n".join(texts).encode()
        digest = hashlib.sha256(words).digest()
        if self._logged.get(name) == digest:
            return
        self._logged[name] = digest
        event = "the tenant file is invalid; its last valid content stays in use"
        if name not in self._valid:
            event = "the tenant file is invalid; the tenant is not served until it is corrected"
        log("tenants").error(event, extra={"fields": {"tenant": name, "problems": texts[:20]}})


def _content(file: Path) -> bytes | OSError:
    try:
        with file.open("rb") as opened:
            return opened.read(1 << 20)
    except OSError as error:
        return error
