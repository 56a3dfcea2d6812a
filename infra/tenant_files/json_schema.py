"""The JSON Schema of a tenant file, for editors: it is shipped as ``tenants/tenant.schema.json``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from infra.tenant_files.model import SECTIONS, Tenant, lead_fields
from infra.tenant_files.sections import KINDS, connectors, is_secret, process_fields

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SECRET = {
    "description": "Where the secret is: a setting of the process, or a file.",
    "oneOf": [
        {
            "type": "object",
            "properties": {"setting": {"type": "string", "pattern": "^LEADSTREAM_(SECRET|CRM|PROVIDER|CHANNEL)_"}},
            "required": ["setting"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"file": {"type": "string", "pattern": "^/"}},
            "required": ["file"],
            "additionalProperties": False,
        },
    ],
}


def json_schema() -> dict[str, Any]:
    """Return the schema of a tenant file. The sections of connectors have the schema of their settings."""
    schema = Tenant.model_json_schema()
    for own in ("name", "file"):
        del schema["properties"][own]
    definitions = schema["$defs"]
    definitions.pop("Section", None)
    definitions["Secret"] = _SECRET
    for kind, place in SECTIONS.items():
        parent = schema if len(place) == 1 else definitions["Enrichment"]
        for name, module in connectors(kind).items():
            definitions[f"{kind}_{name}"] = _account(module.Config, f"An account of the {KINDS[kind][1]} {name}.")
        parent["properties"][place[-1]] = {
            "type": "object",
            "description": parent["properties"][place[-1]]["description"],
            "properties": {name: {"$ref": f"#/$defs/{kind}_{name}"} for name in connectors(kind)},
            "additionalProperties": False,
        }
    schema["properties"]["precedence"]["propertyNames"] = {"enum": list(lead_fields())}
    return {"$schema": _DIALECT, **schema, "title": "A tenant of leadstream", "description": "One file a tenant."}


def _account(model: type[BaseModel], description: str) -> dict[str, Any]:
    schema = model.model_json_schema()
    fields = [name for name in model.model_fields if name not in process_fields(model)]
    properties: dict[str, Any] = {}
    for name in fields:
        each = schema["properties"][name]
        about = {"description": each.get("description", "")}
        properties[name] = {"$ref": "#/$defs/Secret"} | about if is_secret(model, name) else _without_title(each)
    required = [name for name in schema.get("required", ()) if name in fields]
    account = {"type": "object", "description": description, "properties": properties, "additionalProperties": False}
    return account | ({"required": required} if required else {})


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}
