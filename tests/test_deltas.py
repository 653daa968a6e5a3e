"""Text deltas are joined: by answer, in time, and with all that comes with the text."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from modelnet import deltas
from modelnet.deltas import COALESCE_CHARS, COALESCE_S, DELTA_CHARS, DELTAS_PER_S, DeltaBuffer, Piece
from modelnet.messages import TokenLogprob, ToolCallPart


class Sent:
    """What a buffer has sent, and when."""

    def __init__(self, crowd: int = 1) -> None:
        self.pieces: list[Piece] = []
        self.at: list[float] = []
        self.news = asyncio.Event()
        self.buffer = DeltaBuffer(self._take, lambda: crowd)

    async def _take(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.at.append(time.perf_counter())
        self.news.set()


async def test_the_first_of_each_answer_goes_at_once_and_the_rest_by_answer() -> None:
    sent = Sent()
    for round_ in range(3):
        for answer in (0, 1):
            await sent.buffer.add(Piece(f"{answer}{round_} ", (round_,), answer=answer))
    assert [(str(piece), piece.answer) for piece in sent.pieces] == [("00 ", 0), ("10 ", 1)]
    await sent.buffer.flush()
    assert [(str(piece), piece.answer, piece.tokens) for piece in sent.pieces[2:]] == [
        ("01 02 ", 0, (1, 2)),
        ("11 12 ", 1, (1, 2)),
    ]


async def test_logprobs_calls_and_early_ids_come_with_their_text() -> None:
    sent = Sent()
    one, two = (TokenLogprob(token=token, logprob=-1.0) for token in "ab")
    call = ToolCallPart(position=0, id="1", name="f")
    await sent.buffer.add(Piece("x", (1,)))
    await sent.buffer.add(Piece("", (2,)))
    await sent.buffer.add(Piece("a", (3,), logprobs=(one,), restarts=True))
    await sent.buffer.add(Piece("", (4,), logprobs=(two,), tool_calls=(call,)))
    await sent.buffer.flush()
    last = sent.pieces[-1]
    assert (str(last), last.tokens, last.logprobs, last.tool_calls, last.restarts) == (
        "a",
        (2, 3, 4),
        (one, two),
        (call,),
        True,
    )


async def test_a_call_without_text_is_sent_too() -> None:
    sent = Sent()
    await sent.buffer.add(Piece("", (1,), tool_calls=(ToolCallPart(position=0, name="f"),)))
    assert len(sent.pieces) == 1


async def test_a_flood_is_few_messages() -> None:
    sent = Sent()
    for _ in range(10_000):
        await sent.buffer.add(Piece("word", (1,)))
    await sent.buffer.flush()
    assert len(sent.pieces) <= 10_000 * 4 / COALESCE_CHARS + 2
    assert sum(len(piece.tokens or ()) for piece in sent.pieces) == 10_000


async def test_a_crowd_waits_longer() -> None:
    for crowd in (1, 20 * int(DELTAS_PER_S * COALESCE_S)):
        sent = Sent(crowd)
        await sent.buffer.add("a")
        sent.news.clear()
        began = time.perf_counter()
        await sent.buffer.add("b")
        await asyncio.wait_for(sent.news.wait(), 10)
        assert sent.at[-1] - began >= max(COALESCE_S, crowd / DELTAS_PER_S) * 0.9


async def test_what_is_too_long_for_one_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "DELTA_CHARS", 10)
    assert DELTA_CHARS > 10
    sent = Sent()
    await sent.buffer.add(Piece("x" * 25, (1, 2)))
    assert [len(piece) for piece in sent.pieces] == [10, 10, 5]
    assert {piece.tokens for piece in sent.pieces} == {None}


async def test_what_comes_late_enough_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("modelnet.deltas.time", SimpleNamespace(monotonic=lambda: now))  # not the event loop's
    sent = Sent()
    await sent.buffer.add("a")
    now += COALESCE_S
    await sent.buffer.add("b")
    now += COALESCE_S / 2
    await sent.buffer.add("c")
    assert [str(piece) for piece in sent.pieces] == ["a", "b"]
    sent.news.clear()
    await asyncio.wait_for(sent.news.wait(), 10)
    assert [str(piece) for piece in sent.pieces] == ["a", "b", "c"]
