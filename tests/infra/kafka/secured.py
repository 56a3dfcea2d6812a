"""A broker that requires a login: the embedded one with SASL listeners, and an endpoint for OAuth tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from infra.kafka import client
from infra.kafka_settings import KafkaSettings
from local.brokers import Cluster
from local.kafka import kafka
from local.ports import free_port
from local.process_spec import ProcessSpec

USER, PASSWORD = "ada", "right-4711"
_MODULES = "org.apache.kafka.common.security"
_LOGINS = {
    "plain": f'{_MODULES}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
    "scram-sha-256": f"{_MODULES}.scram.ScramLoginModule required;",
    "scram-sha-512": f"{_MODULES}.scram.ScramLoginModule required;",
    # The broker's default validator accepts tokens without a signature.
    "oauthbearer": f'{_MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";',
}


@dataclass(frozen=True)
class Secured:
    """The addresses of the broker (without login, with login, with login over TLS) and of the token endpoint."""

    plain: str
    sasl: str
    sasl_ssl: str
    ca: Path
    token_url: str

    def environment(self, mechanism: str, *, tls: bool = False, password: str = PASSWORD) -> dict[str, str]:
        login = (
            {"OAUTH_TOKEN_URL": self.token_url, "OAUTH_CLIENT_ID": USER, "OAUTH_CLIENT_SECRET": password}
            if mechanism == "OAUTHBEARER"
            else {"SASL_USERNAME": USER, "SASL_PASSWORD": password}
        )
        found = {
            "BOOTSTRAP": self.sasl_ssl if tls else self.sasl,
            "SECURITY_PROTOCOL": "SASL_SSL" if tls else "SASL_PLAINTEXT",
            "SASL_MECHANISM": mechanism,
        }
        found |= login | ({"SSL_CA": str(self.ca)} if tls else {})
        return {f"LEADSTREAM_KAFKA_{name}": value for name, value in found.items()}


@contextmanager
def secured_broker(home: Path) -> Iterator[Secured]:
    """Run the broker, with a user for each mechanism, for the body of the ``with``."""
    ports = [free_port() for _ in range(4)]
    plain, controller, sasl, sasl_ssl = ports
    part = kafka(
        Cluster(home, ("kafka",), {"kafka": plain, "kafka-controller": controller}, "leadstream-test-cluste"), "kafka"
    )
    ca = _certificate(home)
    add_listeners(home, plain, sasl, sasl_ssl)
    with (home / "kafka.log").open("wb") as log, _token_endpoint() as token_url:
        process = subprocess.Popen(part.command, stdout=log, stderr=log, cwd=part.folder)
        try:
            asyncio.run(ready(part))
            _add_scram_user(f"127.0.0.1:{plain}")
            yield Secured(f"127.0.0.1:{plain}", f"127.0.0.1:{sasl}", f"127.0.0.1:{sasl_ssl}", ca, token_url)
        finally:
            process.kill()
            process.wait(30)


def add_listeners(home: Path, plain: int, sasl: int, sasl_ssl: int) -> None:
    """Add the listeners with a login to the broker's configuration."""
    file = home / "kafka.properties"
    open_listener = f"PLAINTEXT://127.0.0.1:{plain}"
    added = f"SASL_PLAINTEXT://127.0.0.1:{sasl},SASL_SSL://127.0.0.1:{sasl_ssl}"
    text = file.read_text("utf-8").replace(open_listener, f"{open_listener},{added}")
    text = text.replace("protocol.map=", "protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,")
    lines = [f"sasl.enabled.mechanisms={','.join(name.upper() for name in _LOGINS)}"]
    for listener in ("sasl_plaintext", "sasl_ssl"):
        lines += [f"listener.name.{listener}.{name}.sasl.jaas.config={login}" for name, login in _LOGINS.items()]
    lines += ["ssl.keystore.type=PEM", f"ssl.keystore.location={home / 'broker.pem'}"]
    file.write_text("\n".join([text, *lines, ""]), "utf-8")


def _certificate(home: Path) -> Path:
    """Create a self-signed certificate for 127.0.0.1."""
    key, certificate = home / "key.pem", home / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    (home / "broker.pem").write_text(key.read_text("utf-8") + certificate.read_text("utf-8"), "utf-8")
    return certificate


async def ready(part: ProcessSpec) -> None:
    """Wait until the broker is ready."""
    async with asyncio.timeout(60):
        while not await part.is_ready():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)


def _add_scram_user(bootstrap: str) -> None:
    admin = client.admin(KafkaSettings(kafka_bootstrap=bootstrap), "test")
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        wanted = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
        for future in admin.alter_user_scram_credentials([wanted]).values():
            future.result(30)


@contextmanager
def _token_endpoint() -> Iterator[str]:
    """Serve unsigned tokens to clients with the password (RFC 6749, section 4.4)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            allowed = self.headers["Authorization"] == f"Basic {login}"
            body = {"access_token": _token(), "expires_in": 3600} if allowed else {"error": "invalid_client"}
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _token() -> str:
    now = int(time.time())
    parts = ({"alg": "none", "typ": "JWT"}, {"sub": USER, "iat": now, "exp": now + 3600})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, ""])
