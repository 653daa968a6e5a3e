"""Documents that a JSON Schema of ours permits, drawn by hypothesis."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import strategies as st

__all__ = ["documents", "json_values"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


def documents(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Instances of a schema as Pydantic writes them: the keywords that occur there, and no others."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    if "$ref" in schema:
        return documents(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return st.one_of([documents(choice, definitions) for choice in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return st.integers(least, schema.get("maximum", 2**53))
        case "number":
            return _numbers(schema)
        case "string":
            return _strings(schema)
        case "array":
            return st.lists(documents(schema["items"], definitions), max_size=3)
        case "object":
            return _objects(schema, definitions)
    return json_values


def _numbers(schema: dict[str, Any]) -> st.SearchStrategy[float]:
    return st.floats(
        min_value=schema.get("minimum", schema.get("exclusiveMinimum")),
        max_value=schema.get("maximum"),
        exclude_min="exclusiveMinimum" in schema,
        allow_nan=False,
        allow_infinity=False,
    )


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if schema.get("format") == "base64url":
        return st.binary(max_size=30).map(lambda body: base64.urlsafe_b64encode(body).decode())
    longest = schema.get("maxLength")
    if "pattern" in schema:
        drawn = st.from_regex(schema["pattern"], fullmatch=True)
        return drawn if longest is None else drawn.filter(lambda text: len(text) <= longest)
    return st.text(max_size=min(longest or 30, 30))


def _objects(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:
        extra = schema.get("additionalProperties")
        values = documents(extra, definitions) if isinstance(extra, dict) else json_values
        return st.dictionaries(st.text(max_size=10), values, max_size=3)
    fields = {name: documents(inner, definitions) for name, inner in schema["properties"].items()}
    required = {name: fields[name] for name in schema.get("required", ())}
    optional = {name: drawn for name, drawn in fields.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)
