"""Schema and reference page, made from the model.

``python -m pybalancer.config.reference`` prints the page.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from pybalancer.config import direct_model, model, packet_model
from pybalancer.config.load import ENVIRONMENT

_SECTIONS: Final = (
    ("[balancer]", model.BalancerConfig),
    ("[log]", model.LogConfig),
    ("[[listeners]]", model.ListenerConfig),
    ("[[listeners.routes]]", model.RouteConfig),
    ("[listeners.routes.request_headers], [listeners.routes.response_headers]", model.FieldsConfig),
    ("[packet]", packet_model.PacketConfig),
    ("[pools.NAME]", model.PoolConfig),
    ("[[pools.NAME.backends]]", model.BackendConfig),
    ("[pools.NAME.health]", model.HealthConfig),
    ("[pools.NAME.drain]", model.DrainConfig),
    ("[pools.NAME.direct]", direct_model.DirectConfig),
    ("[pools.NAME.rebalance]", model.RebalanceConfig),
)

_INTRODUCTION: Final = """\
# Configuration

Made from `pybalancer/config/model.py` by `make docs`; do not edit.

The file is [TOML](https://toml.io). `pybalancer check FILE` tells everything that is wrong with it, with
line and column; `pybalancer check --schema` prints a JSON Schema for editors. Unknown keys are errors.

Times are text with a unit: `250ms`, `30s`, `5m`, `1h30m`; `0` means never where that makes sense. Rates are
`2000/s` or `100/m`. Flags go before the environment, the environment before the file:
"""


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a configuration file."""
    made = model.Config.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "pybalancer.toml"}


def reference() -> str:
    """``docs/config.md``."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield "| variable | key |"
    yield "|---|---|"
    for variable, path in ENVIRONMENT.items():
        yield f"| `{variable}` | `{'.'.join(path)}` |"
    for title, section in _SECTIONS:
        yield f"\n## `{title}`\n"
        yield f"{section.__doc__ or ''}\n"
        yield "| key | type | default | what it is |"
        yield "|---|---|---|---|"
        for name, field in section.model_fields.items():
            if _holds_section(field.annotation):
                continue
            kind = _type(section, name)
            required = (
                "**required**"
                if field.is_required()
                else _default(field.get_default(call_default_factory=True), name, kind)
            )
            example = f" For example `{_literal(field.examples[0])}`." if field.examples else ""
            text = f"{field.description or ''}{example}".replace("|", "\\|")
            yield f"| `{name}` | {kind} | {required} | {text} |"


def _holds_section(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_section(part) for part in typing.get_args(annotation))


def _type(section: type[BaseModel], name: str) -> str:
    made = section.model_json_schema(mode="validation")["properties"][name]
    options = [option for option in made.get("anyOf", [made]) if option.get("type") != "null"]
    return " or ".join(dict.fromkeys(_option(option) for option in options))


def _option(option: dict[str, Any]) -> str:
    if "enum" in option:
        return ", ".join(f"`{word}`" for word in option["enum"])
    if "const" in option:
        return f"`{option['const']}`"
    kind = option.get("type", "text")
    if kind == "array":
        inner = option.get("items") or {}
        return f"list of {_option(inner)}s" if inner else "list"
    if isinstance(kind, list):
        return "text, number or list"
    word = {
        "string": "text",
        "integer": "number",
        "number": "number",
        "boolean": "true, false",
        "object": "table",
    }
    low, high = option.get("minimum", option.get("exclusiveMinimum")), option.get("maximum")
    limits = f" {_number(low)} to {_number(high)}" if low is not None and high is not None else ""
    if option.get("format") == "password":
        return "text"
    if str(option.get("pattern", "")).startswith("^(0|"):
        return "time"
    if "/(s|m|h)" in str(option.get("pattern", "")):
        return "rate"
    return word.get(str(kind), str(kind)) + limits


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _default(value: Any, name: str, kind: str) -> str:
    return "unset" if value is None else f"`{_written(value, name, kind)}`"


def _written(value: Any, name: str, kind: str) -> str:
    if name == "unix_mode":
        return f'"{value:04o}"'
    if name == "expect":
        return '"200-399"'
    if kind == "time":
        return f'"{value:g}s"' if value else '"0"'
    return _literal(value)


def _literal(value: Any) -> str:
    """As TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        items = [f"{_literal(key)} = {_literal(item)}" for key, item in value.items()]
        return f"{{ {', '.join(items)} }}" if items else "{}"
    return str(value)


if __name__ == "__main__":
    print(reference(), end="")
