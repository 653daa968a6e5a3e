"""What messages say, as rows for those who watch: plain values, short texts, nothing of an input or an output. Pure."""

from __future__ import annotations

import re

from modelnet.messages import Awarded, CancelAsked, CapabilityCard, JournalEntry, Planned, Transcript, Waiting
from modelnet.telling import why

from .table import Row

__all__ = ["auction_row", "cut", "entry_fields", "rounded", "served_row"]

_BIDS = 8
_TEXT = 160

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Characters that would act on a terminal, or turn the direction of what follows."""


def cut(text: str, most: int = _TEXT) -> str:
    """What somebody else has written, fit for a cell of a table."""
    fits = len(text) <= most
    return _CONTROL.sub(" ", text if fits else text[: most - 1] + "…")


def served_row(card: CapabilityCard) -> Row:
    """One of a worker's capabilities."""
    return {
        "pattern": card.pattern,
        "model": cut(card.model, 80) if card.model else None,
        "price": card.price,
        "claimed": card.quality,
    }


def auction_row(transcript: Transcript, at: float) -> Row:
    """An auction, with its best bids."""
    bids = transcript.bids[:_BIDS]
    return {
        "id": transcript.auction,
        "task": transcript.task,
        "tenant": transcript.tenant,
        "capability": transcript.capability,
        "attempt": transcript.attempt,
        "at": at,
        "window_ms": round(transcript.window_ms, 1),
        "closed_by": transcript.closed_by,
        "asked": transcript.asked,
        "budget": transcript.budget,
        "bids": [
            {
                "worker": bid.worker,
                "price": bid.price,
                "p50_ms": rounded(bid.expected_p50_ms or bid.p50_ms),
                "quality": round(bid.quality, 3),
                "score": round(bid.score, 1),
                "eligible": bid.eligible,
            }
            for bid in bids
        ],
        "bid_count": len(transcript.bids),
        "refusals": len(transcript.refusals),
        "winner": transcript.winner,
        "price": transcript.price,
        "rule": transcript.rule,
        "why": cut(why(transcript), 300),
        "strategy": cut(transcript.strategy),
    }


def entry_fields(entry: JournalEntry, at: float) -> Row:
    """What a journal entry says about its task's row."""
    if isinstance(entry, Awarded):
        return {"status": "running", "worker": entry.worker, "price": entry.price, "attempt": entry.attempt, "note": ""}
    if isinstance(entry, Waiting):
        return {"status": "waiting", "note": entry.reason.replace("_", " ")}
    if isinstance(entry, Planned):
        return {"status": "running", "note": cut(entry.why)}
    if isinstance(entry, CancelAsked):
        return {"note": "cancel asked"}
    told: Row = {
        "status": entry.status,
        "capability": entry.capability,
        "worker": entry.worker,
        "price": entry.price,
        "bids": entry.bids,
        "total_ms": round(entry.timings.total_ms, 1),
        "ended": at,
        "note": cut(f"{entry.error.code}: {entry.error.message}") if entry.error else "",
    }
    if entry.attempts:
        told["attempt"] = entry.attempts
    return told


def rounded(ms: float) -> float:
    """Two digits: more would change with every message, and mean nothing."""
    return float(f"{ms:.2g}")
