"""The connection settings of Kafka as Faust's credentials.

Source: https://faust-streaming.github.io/faust/userguide/settings.html#broker-credentials
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import faust
import httpx
from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from faust.types.auth import CredentialsT

from infra.kafka.client import tls_context
from infra.kafka_settings import KafkaSettings

_TIMEOUT_S = 10.0
_FRESH_SHARE = 0.8  # share of a token's lifetime during which it is used for new connections


def credentials(settings: KafkaSettings) -> CredentialsT | None:
    """Return the credentials for Faust, or None for a connection without TLS and SASL."""
    context = tls_context(settings)
    if settings.kafka_sasl_mechanism is None:
        return faust.SSLCredentials(context) if context is not None else None
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        return faust.OAuthCredentials(oauth_cb=TokenProvider(settings), ssl_context=context)
    password = settings.kafka_sasl_password
    return faust.SASLCredentials(
        mechanism=settings.kafka_sasl_mechanism,
        username=settings.kafka_sasl_username,
        password=password.get_secret_value() if password is not None else "",
        ssl_context=context,
    )


class TokenProvider(AbstractTokenProvider):
    """Requests OAuth 2.0 tokens with client credentials, as librdkafka's method ``oidc`` does for its own clients.

    Source: RFC 6749, section 4.4.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = clock
        self._token = ""
        self._fresh_until = float("-inf")

    async def token(self) -> str:
        """Return a token: the same one for 80 % of its lifetime. aiokafka calls this once for each connection.

        Raises:
            KafkaConnectionError: the token endpoint did not return one; aiokafka then retries with backoff.

        """
        if self._clock() >= self._fresh_until:
            response = await self._request()
            self._token = str(response["access_token"])
            self._fresh_until = self._clock() + _FRESH_SHARE * float(response.get("expires_in", 0))
        return self._token

    async def _request(self) -> dict[str, Any]:
        settings, secret = self._settings, self._settings.kafka_oauth_client_secret
        form = {"grant_type": "client_credentials"}
        if settings.kafka_oauth_scope:
            form["scope"] = settings.kafka_oauth_scope
        login = httpx.BasicAuth(settings.kafka_oauth_client_id, secret.get_secret_value() if secret else "")
        try:
            async with httpx.AsyncClient(transport=self._transport, timeout=_TIMEOUT_S, trust_env=False) as http:
                response = await http.post(settings.kafka_oauth_token_url, data=form, auth=login)
            response.raise_for_status()
            found: dict[str, Any] = response.json()
            found["access_token"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            # aiokafka retries this type with backoff. Any other type ends its client without a log event.
            raise KafkaConnectionError(f"no token from the token endpoint: {type(error).__name__}") from error
        return found
