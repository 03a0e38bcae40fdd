"""The JSON Schema and the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbdr.config import schema
from lbdr.config.document import json_schema, reference
from lbdr.config.load import parse
from lbdr.model import SCHEDULER_FLAGS

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_current() -> None:
    current = DOCS.read_text() == reference()
    assert current, "run: .venv/bin/lbdr schema --format markdown > docs/configuration.md"


def test_the_references_example_is_valid() -> None:
    match = re.search(r"```yaml\n(.*?)```", reference(), re.DOTALL)
    assert match is not None
    assert len(parse(match[1].encode(), "f").configuration.virtual_services) == 1


def test_every_key_is_described() -> None:
    for section in schema.SECTIONS:
        for key, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{key}"
            assert field.description.endswith("."), f"{section.__name__}.{key}"
            assert f"| `{key}` |" in reference()


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON Schema."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


def test_the_json_schema_allows_no_unknown_key_and_no_null() -> None:
    whole = json_schema()
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for node in nodes(whole):
        assert node.get("type") != "null"
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            assert node["additionalProperties"] is False
    assert whole["required"] == ["virtual_services"]


def test_the_json_schema_has_every_section_and_its_short_form() -> None:
    whole = json_schema()
    names = {section.__name__ for section in schema.SECTIONS} - {"Document"}
    assert set(whole["$defs"]) == names
    for name in ("RealServerUse", "SorryServer"):
        assert whole["$defs"][name]["anyOf"][0]["type"] == "string"
    service = whole["$defs"]["VirtualService"]["properties"]
    assert service["ports"]["anyOf"][0] == {"const": "any"}
    assert service["scheduler"]["enum"] == list(SCHEDULER_FLAGS)
