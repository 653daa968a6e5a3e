"""Whether what a reader was shown is a stream as promised: no gap, no repeat, one end, the right text. Pure."""

from __future__ import annotations

from modelnet.messages import Delta, Failure, Final, Output, Progress, Reset
from modelnet.reader import StreamEvent

__all__ = ["StreamCheck"]


class StreamCheck:
    """Feed it a stream's events as they are shown, and the text view beside each; it keeps what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.final: Final | None = None
        self.resets = 0
        self._last = 0
        self._texts: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        """The text that the events make, by the reader's rules."""
        return "".join(text for _, text in self._texts)

    @property
    def begun(self) -> bool:
        """Whether any text has been shown."""
        return bool(self._texts)

    def begin_again(self) -> None:
        """The reader was told that its connection is lost, and reads from the start; problems are kept."""
        self._last, self._texts = 0, []

    def see(self, event: StreamEvent, text_view: str) -> None:
        """The next event, and what the text view shows with it."""
        if self.final is not None:
            self.problems.append(f"{event.kind} after the Final")
        if isinstance(event, Reset):
            self.resets += 1
            if event.to > self._last:
                self.problems.append(f"reset to {event.to}, but only {self._last} were shown")
            self._last = event.to
            self._texts = [(number, text) for number, text in self._texts if number <= event.to]
        elif isinstance(event, Final):
            self.final = event
            self._see_final(event, text_view)
        elif isinstance(event, Delta | Progress | Output | Failure):
            self._see_number(event.number, event.kind)
            if isinstance(event, Delta):
                self._texts.append((event.number, event.text))

    def _see_number(self, number: int, kind: str) -> None:
        if number > self._last + 1:
            self.problems.append(f"gap: {kind} {number} after {self._last}")
        elif number <= self._last:
            self.problems.append(f"repeat: {kind} {number} after {self._last}")
        self._last = max(self._last, number)

    def _see_final(self, final: Final, text_view: str) -> None:
        # Before the end it may be ahead of the events: some are shown one by one that were read together.
        if text_view != self.text:
            self.problems.append(f"the text view shows {len(text_view)} characters, the events {len(self.text)}")
        if final.status != "completed":
            return
        if final.number is not None and self._last != final.number - 1:
            self.problems.append(f"gap: Final {final.number} after {self._last}")
        whole = (final.output or {}).get("text")
        if self.begun and whole != self.text:
            self.problems.append("the text streamed is not the text of the output")
