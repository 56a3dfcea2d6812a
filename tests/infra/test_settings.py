"""Settings: the combinations of the Kafka connection, secrets, and the file of a running stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings, SettingsError

SASL = {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "SCRAM-SHA-512"}
LOGIN = {"SASL_USERNAME": "ada", "SASL_PASSWORD": "s3cret-1"}


def load(values: dict[str, str]) -> Settings:
    return Settings.load({f"LEADSTREAM_KAFKA_{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (SASL, ["SASL_USERNAME: missing", "SASL_PASSWORD: missing"]),
        (SASL | LOGIN | {"SASL_PASSWORD": ""}, ["SASL_PASSWORD: missing"]),
        ({"SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, ["SASL_MECHANISM: missing"]),
        (
            {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "OAUTHBEARER"},
            ["OAUTH_TOKEN_URL: missing", "OAUTH_CLIENT_ID: missing", "OAUTH_CLIENT_SECRET: missing"],
        ),
        (LOGIN, ["SASL_USERNAME: no effect", "SASL_PASSWORD: no effect", "SECURITY_PROTOCOL to SASL_SSL"]),
        ({"SSL_CA": __file__}, ["SSL_CA: no effect"]),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CA": "nowhere.pem"}, ["SSL_CA: there is no file nowhere.pem"]),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CERTIFICATE": __file__}, ["SSL_KEY: missing"]),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_KEY": __file__}, ["SSL_CERTIFICATE: missing"]),
        ({"SECURITY_PROTOCOL": "TLS"}, ["SECURITY_PROTOCOL: Input should be"]),
        ({"SASL_MECHANISM": "GSSAPI"}, ["SASL_MECHANISM: Input should be"]),
    ],
)
def test_a_combination_that_cannot_work_is_named(values: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(values)
    assert [text for text in named if text not in str(caught.value)] == []
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"SECURITY_PROTOCOL": "SSL"},
        {"SECURITY_PROTOCOL": "SSL", "SSL_CA": __file__, "SSL_CERTIFICATE": __file__, "SSL_KEY": __file__},
        SASL | LOGIN,
        SASL | LOGIN | {"SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
    ],
)
def test_a_combination_that_works_is_accepted(values: dict[str, str]) -> None:
    load(values)


def test_no_secret_is_shown() -> None:
    url = "postgresql://leadstream:s3cret-2@127.0.0.1:5432/leadstream"
    values = {f"LEADSTREAM_KAFKA_{name}": value for name, value in (SASL | LOGIN).items()}
    shown = repr(Settings.load(values | {"LEADSTREAM_DATABASE_URL": url}))
    assert "ada" in shown
    assert "s3cret" not in shown


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_setting_that_the_environment_does_not_have_is_read_from_the_stack_file(tmp_path: Path) -> None:
    (tmp_path / "stack.env").write_text("LEADSTREAM_KAFKA_BOOTSTRAP=127.0.0.1:1\nLEADSTREAM_API_PORT=2\n", "utf-8")
    found = Settings.load({"LEADSTREAM_HOME": str(tmp_path), "LEADSTREAM_API_PORT": "3"})
    assert (found.kafka_bootstrap, found.api_port) == ("127.0.0.1:1", 3)


@pytest.mark.parametrize(
    "origin",
    [
        *("www.example.com", "https://", "https://www.example.com/", "https://www.example.com/path", "null"),
        *("https://*.example.com", "https://WWW.example.com", "https://www.example.com:443", "http://a.example:80"),
        *("https://a.example https://b.example", "https://bücher.example", "https://user@a.example", "**"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_by_name(origin: str) -> None:
    with pytest.raises(SettingsError, match="LEADSTREAM_CORS_ORIGINS") as refused:
        Settings.load({"LEADSTREAM_CORS_ORIGINS": f"https://www.example.com,{origin}"})
    assert repr(origin) in str(refused.value)


def test_origins_are_separated_by_commas() -> None:
    text = " https://www.example.com , http://localhost:3000,http://[::1]:8080,,chrome-extension://abcdef "
    assert Settings.load({"LEADSTREAM_CORS_ORIGINS": text}).allowed_origins == (
        *("https://www.example.com", "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abcdef"),
    )
    assert Settings.load({"LEADSTREAM_CORS_ORIGINS": "*"}).allowed_origins == ("*",)
    assert Settings.load({}).allowed_origins == ()


URL = "postgresql://leadstream:s3cret-3@db:5432/leadstream"


@pytest.mark.parametrize(
    ("setting", "url", "problem"),
    [
        ("DATABASE_URL", f"{URL}?sslmode=verify-all", "sslmode must be one of"),
        ("DATABASE_URL", f"{URL}?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "there is no file /nowhere/ca.pem"),
        ("DATABASE_URL", f"{URL}?sslrootcert={__file__}", "sslmode=verify-full"),
        ("CLICKHOUSE_URL", f"http://u:s3cret-3@ch:8123/d?ca_cert={__file__}", "https://"),
        ("CLICKHOUSE_URL", "https://u:s3cret-3@ch:8443/d?ca_cert=/nowhere", "there is no file /nowhere"),
        ("CLICKHOUSE_READ_URL", "https://u:s3cret-3@ch:8443/d?client_cert=/nowhere", "there is no file /nowhere"),
        ("REDIS_URL", "rediss://:s3cret-3@r:6379/0?ssl_ca_certs=/nowhere", "there is no file /nowhere"),
        ("REDIS_URL", f"redis://:s3cret-3@r:6379/0?ssl_ca_certs={__file__}", "rediss://"),
        ("API_KEY", "ls_s3cret-3", "keys create"),
    ],
)
def test_a_wrong_parameter_of_a_connection_is_named_without_the_password(setting: str, url: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({f"LEADSTREAM_{setting}": url})
    assert f"LEADSTREAM_{setting}: " in str(caught.value)
    assert problem in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("DATABASE_URL", URL),
        ("DATABASE_URL", f"{URL}?sslmode=verify-full&sslrootcert={__file__}"),
        ("CLICKHOUSE_URL", f"https://u:s3cret-3@ch:8443/d?ca_cert={__file__}"),
        ("REDIS_URL", f"rediss://:s3cret-3@r:6379/0?ssl_ca_certs={__file__}"),
        ("API_KEY", ""),
        ("API_KEY", "ls_abcdefghij01_" + "x" * 43),
    ],
)
def test_a_connection_with_tls_is_accepted(setting: str, url: str) -> None:
    assert "s3cret" not in repr(Settings.load({f"LEADSTREAM_{setting}": url}))
