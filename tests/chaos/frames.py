"""The NATS protocol cut into frames: what a proxy must know to hold, drop or repeat whole messages. Pure."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Frame", "FrameParser"]

_WITH_BODY = {b"PUB": (False, False), b"HPUB": (False, True), b"MSG": (True, False), b"HMSG": (True, True)}
"""Verbs that carry a body: whether a subscription's id stands behind the subject, and whether headers come first."""


class Frame(NamedTuple):
    """One line of the protocol, with its body if it has one."""

    verb: str
    """PUB, MSG, HPUB and HMSG carry messages; anything else is between the connection's two ends."""
    subject: str
    reply: str
    body: bytes
    """Without headers."""
    raw: bytes
    """As it travels."""

    @property
    def is_message(self) -> bool:
        """Whether it may be repeated: repeating anything else breaks the connection."""
        return bool(self.subject)


class FrameParser:
    """Feed it bytes as they come; it returns the frames that are complete."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by these bytes."""
        rest, found, start = self._rest, list[Frame](), 0
        rest += data
        while (end := rest.find(b"\r\n", start)) >= 0:
            words = bytes(rest[start:end]).split()
            verb = words[0].upper() if words else b""
            stop, kind = end + 2, _WITH_BODY.get(verb)
            if kind is None:
                found.append(Frame(verb.decode(errors="replace"), "", "", b"", bytes(rest[start:stop])))
                start = stop
                continue
            body_at, stop = stop, stop + int(words[-1]) + 2
            if len(rest) < stop:
                break
            with_id, with_headers = kind
            between = words[2 + with_id : len(words) - 1 - with_headers]
            if with_headers:
                body_at += int(words[-2])
            found.append(
                Frame(
                    verb.decode(),
                    words[1].decode(errors="replace"),
                    between[0].decode(errors="replace") if between else "",
                    bytes(rest[body_at : stop - 2]),
                    bytes(rest[start:stop]),
                )
            )
            start = stop
        del rest[:start]
        return found
