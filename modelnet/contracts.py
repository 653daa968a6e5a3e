"""Contracts at work: checking bodies against them, and showing bidders the shape of an input but not what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs
from pydantic import ValidationError

from modelnet.errors import UsageError
from modelnet.messages import Contract, Features, matches

__all__ = ["check", "compile_schema", "features_of", "load_contract", "sketch", "standard_contract"]

_MAX_SHAPE_BYTES = 2048


@lru_cache(maxsize=1024)
def _compiled(schema: str) -> Any:
    return jsonschema_rs.validator_for(json.loads(schema), validate_formats=True, offline=True)


def compile_schema(schema: Mapping[str, Any]) -> Any:
    """A validator for a JSON Schema; raises `UsageError` if it is none."""
    try:
        return _compiled(json.dumps(schema, sort_keys=True))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise UsageError(f"not a JSON Schema: {str(error).splitlines()[0]}") from None


def check(validator: Any, value: Any) -> str | None:
    """How `value` breaks the schema, in one line, or None."""
    if validator.is_valid(value):
        return None
    error = next(iter(validator.iter_errors(value)))
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path).lstrip(".")
    message = error.message if len(error.message) <= 500 else error.message[:500] + "…"
    return f"{where}: {message}" if where else message


def load_contract(capability: str, contract: Contract | Mapping[str, Any] | str | Path | None) -> Contract:
    """The contract in any form a worker may name it: a Contract, a dictionary with `input` and `output` schemas, a
    file, or None for the standard contract of the capability. Raises `UsageError`."""
    if isinstance(contract, Contract):
        loaded = contract
    elif contract is None:
        loaded = standard_contract(capability) or Contract(capability=capability)
    else:
        if isinstance(contract, str | Path):
            try:
                contract = json.loads(Path(contract).read_text())
            except (OSError, ValueError) as error:
                raise UsageError(f"contract {contract}: {error}") from None
        if not isinstance(contract, Mapping) or not set(contract) <= {"input", "output", "description", "capability"}:
            raise UsageError('a contract is {"input": JSON Schema, "output": JSON Schema}')
        try:
            loaded = Contract(**{**contract, "capability": capability})
        except ValidationError as error:
            wrong = error.errors()[0]
            raise UsageError(f"contract of {capability}: {wrong['loc'][0]}: {wrong['msg']}") from None
    compile_schema(loaded.input)
    compile_schema(loaded.output)
    return loaded.model_copy(update={"capability": capability})


@lru_cache(maxsize=1)
def _standard() -> list[Contract]:
    try:
        folder = resources.files("schemas") / "capabilities"
        files = [entry for entry in folder.iterdir() if entry.name.endswith(".json")]
    except (ModuleNotFoundError, FileNotFoundError):
        return []
    return [Contract.decode(file.read_text()) for file in sorted(files, key=lambda f: f.name)]


def standard_contract(capability: str) -> Contract | None:
    """The contract in `schemas/capabilities` that covers a capability or prefix: the most exact one."""
    found = [c for c in _standard() if c.capability == capability or matches(c.capability, capability)]
    return max(found, key=lambda c: len(c.capability), default=None)


def features_of(value: dict[str, Any], size: int, schema: Mapping[str, Any]) -> Features:
    """What bidders learn of an input of `size` bytes: its shape, and the properties the schema marks `x-public`."""
    shape = _shape(value, schema)
    if len(json.dumps(shape)) > _MAX_SHAPE_BYTES:
        # Which properties are there, the public ones, and the lengths of texts: what most prices and times hang on.
        top = {key: None if _has_parts(part) else part for key, part in shape["object"].items()}
        shape = {"object": top}
        if len(json.dumps(shape)) > _MAX_SHAPE_BYTES:
            shape = None
    return Features.model_construct(input_bytes=size, shape=shape)


def _has_parts(shape: Any) -> bool:
    return isinstance(shape, dict) and "public" not in shape


def _shape(value: Any, schema: Any) -> Any:
    if isinstance(schema, Mapping) and schema.get("x-public") is True:
        return {"public": value}
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        properties = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
        return {"object": {key: _shape(item, properties.get(key)) for key, item in value.items()}}
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, Mapping) else None
        return {"array": [_shape(item, items) for item in value]}
    return None


def sketch(shape: Any) -> Any:
    """A value of this shape, for a price that is computed from the input: right lengths and public properties, filler
    text, zero for hidden numbers."""
    if isinstance(shape, int):
        return "x" * shape
    if isinstance(shape, Mapping):
        if "public" in shape:
            return shape["public"]
        if "object" in shape:
            return {key: sketch(item) for key, item in shape["object"].items()}
        if "array" in shape:
            return [sketch(item) for item in shape["array"]]
    return 0
