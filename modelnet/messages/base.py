"""What all messages share: how they are encoded, and the types of their fields. No message lives here."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, Field
from uuid_utils import uuid7

__all__ = [
    "Capability",
    "Digest",
    "Identifier",
    "Message",
    "Micro",
    "Money",
    "Part",
    "Pattern",
    "is_capability",
    "matches",
    "new_id",
]

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""One token of a subject: letters, digits, `-` and `_`."""

Capability = Annotated[str, Field(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$", max_length=128)]
"""A dotted, hierarchical name of what a model can do: `text.generate.medical`."""

Pattern = Annotated[str, Field(pattern=r"^([a-z0-9_-]+\.)*([a-z0-9_-]+|>)$", max_length=128)]
"""A capability, or a prefix of capabilities ending in `>`: `normalize.>`. NATS subject semantics."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

Micro = Annotated[int, Field(ge=0, le=2**53)]
"""Money: an integer of micro-credits. Bounded so that every language's JSON reads it exactly."""

Money = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""Money that may flow the other way: below 0, it is the worker's owner that pays."""

_CAPABILITY = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class _Blank(NamedTuple):
    """A message that nothing was filled in to."""

    values: dict[str, Any]
    """By field, in their order: its default; None where there is none, or it is made anew each time."""
    made: dict[str, Callable[[], Any]]
    required: frozenset[str]


@cache
def _blank(part: type[BaseModel]) -> _Blank:
    fields = part.model_fields.items()
    return _Blank(
        {name: None if f.is_required() else f.default for name, f in fields},
        {name: cast("Callable[[], Any]", f.default_factory) for name, f in fields if f.default_factory},
        frozenset(name for name, f in fields if f.is_required()),
    )


class Part(BaseModel):
    """A piece of a message. Unknown fields are ignored, so a newer peer can talk to an older one."""

    # JSON has no infinity: without the check `1e999` is read as one, and written back as null.
    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64"
    )

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:  # type: ignore[override]
        """An instance of values that this process has made itself, unchecked. Pydantic's own takes twice as long: it
        looks for aliases, and no message has any."""
        blank, made, required = _blank(cls)
        fields = values
        if len(values) < len(blank):
            fields = blank | values
            for name, make in made.items():
                if name not in values:
                    fields[name] = make()
            if not required <= values.keys():
                for name in required - values.keys():
                    del fields[name]
        message = cls.__new__(cls)
        object.__setattr__(message, "__dict__", fields)
        object.__setattr__(message, "__pydantic_fields_set__", set(values) if _fields_set is None else _fields_set)
        object.__setattr__(message, "__pydantic_extra__", None)
        object.__setattr__(message, "__pydantic_private__", None)
        return message

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, nulls included, without the version."""
        return self.model_dump(mode="json", exclude={"version"})


def _require_defaults(schema: dict[str, Any]) -> None:
    """Defaults that save typing in Python but are no licence to leave the field out on the wire: readers tell messages
    on one subject apart by `kind`, and a task is the one whose `id` its subject names."""
    named = [name for name in ("kind", "id") if name in schema.get("properties", {})]
    if named:
        schema["required"] = [*named, *schema.get("required", ())]


class Message(Part):
    """Base of everything that travels by itself."""

    model_config = ConfigDict(json_schema_extra=_require_defaults)

    version: int = Field(default=1, ge=1, description="Version of the message's schema.")

    def encode(self) -> bytes:
        """This message as UTF-8 JSON."""
        return self.__pydantic_serializer__.to_json(self)

    @classmethod
    def decode(cls, body: bytes | str) -> Self:
        """The message in `body`; raises `pydantic.ValidationError`."""
        return cls.model_validate_json(body)


def new_id() -> str:
    """A fresh id: a UUIDv7 in hex, so ids sort by the time they were made."""
    return uuid7().hex


def is_capability(name: str) -> bool:
    """Whether `name` is a well-formed capability."""
    return len(name) <= 128 and _CAPABILITY.fullmatch(name) is not None


def matches(pattern: str, capability: str) -> bool:
    """Whether a worker subscribed to `pattern` hears requests for `capability`."""
    return pattern == capability or (pattern.endswith(">") and capability.startswith(pattern[:-1]))
