"""Writes `schemas/`: a JSON Schema for every message and one AsyncAPI document for all channels. Run it as a module.

    python -m modelnet.schemas            write
    python -m modelnet.schemas --check    exit 1 and name what differs from the models

The contracts in `schemas/capabilities` are written by hand and no business of this module.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from modelnet import messages
from modelnet.bus.channels import describe
from modelnet.messages import Message

__all__ = ["DIALECT", "FOLDER", "asyncapi", "drift", "message_classes", "message_schema", "normalised", "write"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

FOLDER = Path(__file__).resolve().parents[1] / "schemas"


def message_classes() -> list[type[Message]]:
    """Every message that travels by itself, by name."""
    public = (getattr(messages, name) for name in sorted(messages.__all__))
    return [c for c in public if isinstance(c, type) and issubclass(c, Message) and c is not Message]


def message_schema(message: type[Message]) -> dict[str, Any]:
    """JSON Schema of what a peer may send as this message. Fields it does not name are ignored by every reader."""
    schema = message.model_json_schema()
    head = {key: schema.pop(key) for key in ("title", "description")}
    return {"$schema": DIALECT, **head, **schema}


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3 document of the whole network."""
    return normalised(json.loads(describe().to_specification().to_json()))


def normalised(document: dict[str, Any]) -> dict[str, Any]:
    """A document as FastStream serves it, without the server it names, and with what AsyncAPI 3 demands beyond it."""
    # Names of components may hold letters, digits, `.`, `-` and `_` only; FastStream joins them with colons.
    text = re.sub(r":(SubscribeMessage|Message|Payload)\b", r".\1", json.dumps(document))
    document = json.loads(text)
    document.pop("servers", None)
    for channel in document["channels"].values():
        channel.pop("servers", None)
        if names := re.findall(r"\{(\w+)\}", channel["address"]):
            channel["parameters"] = {name: {} for name in names}
    return document


def _files() -> dict[str, str]:
    found = {f"messages/{c.__name__}.json": message_schema(c) for c in message_classes()}
    texts = {path: _json(schema) for path, schema in found.items()}
    # FastStream collects channels in sets: only sorted does the document come out the same each time.
    texts["asyncapi.json"] = _json(asyncapi(), sort=True)
    return texts


def _json(value: Any, *, sort: bool = False) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort) + "\n"


def _superfluous(folder: Path, wanted: dict[str, str]) -> list[Path]:
    return [file for file in sorted(folder.glob("messages/*.json")) if f"messages/{file.name}" not in wanted]


def drift(folder: Path = FOLDER) -> list[str]:
    """What in `folder` is not as the models say, one line each; empty if all is."""
    wanted = _files()
    found = [f"{path.relative_to(folder)}: no such message" for path in _superfluous(folder, wanted)]
    for name, text in wanted.items():
        path = folder / name
        if not path.exists():
            found.append(f"{name}: missing")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{name}: differs")
    return found


def write(folder: Path = FOLDER) -> None:
    """Bring `folder` in line with the models."""
    wanted = _files()
    for path in _superfluous(folder, wanted):
        path.unlink()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Entry of `python -m modelnet.schemas`; returns the exit status."""
    if arguments == ["--check"]:
        found = drift()
        for line in found:
            print(f"schemas/{line}", file=sys.stderr)
        if found:
            print("run: python -m modelnet.schemas", file=sys.stderr)
        return 1 if found else 0
    if arguments:
        print("usage: python -m modelnet.schemas [--check]", file=sys.stderr)
        return 2
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
