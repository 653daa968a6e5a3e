"""A task's record in words: who won and why, at what price, and what happened when. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from modelnet.market.scoring import RESERVE_MARGIN, SCORE_FLOOR, contested
from modelnet.messages import Final, Transcript

if TYPE_CHECKING:
    from modelnet.history import TaskTrace

__all__ = ["attempts", "ending", "timeline", "trace_object", "why"]


def trace_object(found: TaskTrace) -> dict[str, Any]:
    """The whole trace as one JSON object."""
    final = next((entry for _, entry in found.journal if entry.kind == "final"), None)
    return {
        "task": found.task,
        "auctions": [{**transcript.to_dict(), "why": why(transcript)} for _, transcript in found.transcripts],
        "attempts": attempts(found),
        "timeline": [{"ms": ms, "event": what} for ms, what in timeline(found)],
        "parts": [trace_object(part) for part in found.parts],
        "final": final.to_dict() if final else None,
    }


def attempts(found: TaskTrace) -> list[dict[str, Any]]:
    """Every attempt and how it ended; the last one of a task without a Final is still at work."""
    if not found.attempts or any(entry.kind == "final" for _, entry in found.journal):
        return found.attempts
    *earlier, last = found.attempts
    return [*earlier, {**last, "outcome": "running"} if last["outcome"] == "abandoned" else last]


def why(transcript: Transcript) -> str:
    """Why this winner, and why this price."""
    if transcript.winner is None:
        return "no bid was acceptable"
    if transcript.rule == "posted":
        return f"a newcomer is tried, at the posted price {transcript.price}"
    if transcript.rule == "offered":
        count = len(transcript.bids)
        among = f"of {count} standing offers" if count > 1 else "the only standing offer"
        return f"best score {transcript.bids[0].score:.1f}, {among}; paid what it offers: {transcript.price}"
    if transcript.rule == "asked":
        slow = "by what is known of their times no bid is worth its price"
        return f"{slow}; {transcript.winner} is believed, and paid what it asks: {transcript.price}"
    eligible = [bid for bid in transcript.bids if bid.eligible]
    best, others = eligible[0], eligible[1:]
    text = f"best score {best.score:.1f}"
    if others:
        text += f", runner-up {others[0].worker} {others[0].score:.1f}"
        if round(others[0].score) == round(best.score):
            text += " (a tie, broken by a hash of task and worker)"
    else:
        text += ", the only acceptable bid"
    second = max([SCORE_FLOOR, *(bid.score for bid in others)])
    second_price = math.floor(best.value - second)
    reference = transcript.reference_price.get(best.worker)
    reserve, named = transcript.budget, "the budget"
    if reference is not None and reference * RESERVE_MARGIN < reserve and not contested(best, others):
        reserve, named = math.floor(reference * RESERVE_MARGIN), f"{RESERVE_MARGIN} x reference price {reference}"
    if transcript.rule == "settled":
        staked = f"with a deposit of {transcript.deposit}, by what the answer turns out to be worth"
        return f"{text}; asked {best.price}, paid {staked}: {transcript.price} at most"
    if best.price >= min(reserve, second_price):
        rule = "its own price"
    elif second_price <= reserve:
        rule = f"value {best.value:.1f} - second score {second:.1f}, below the reserve {reserve}"
    else:
        rule = f"the reserve, {named}; by the second score it were {second_price}"
    return f"{text}; asked {best.price}, paid {transcript.price}: {rule}"


def ending(final: Final) -> str:
    """How a task ended, and what was paid."""
    if final.status == "cancelled" and final.price is not None:
        ran = f"{final.worker} had worked for {final.timings.running_ms:.1f} ms (attempt {final.attempt})"
        return f"cancelled: {ran} and is paid {final.price}"
    settled = [
        f"{one.worker} {'passed' if one.passed else 'failed'} after {one.time_ms:.1f} ms and is paid {one.price}"
        for one in final.settlements
    ]
    return ": ".join([final.status, "; ".join(settled)]) if settled else final.status


def timeline(found: TaskTrace) -> list[tuple[float, str]]:
    """What happened when, in ms since the task was submitted, as far as is known."""
    final = next(((at, entry) for at, entry in found.journal if entry.kind == "final"), None)
    times = [at for at, _ in found.journal] + [at for at, _ in found.transcripts]
    start = min(times, default=0.0)
    if final is not None:
        start = min(start, final[0] - final[1].timings.total_ms / 1e3)
    events = [(start, "submitted")]
    for at, transcript in found.transcripts:
        if transcript.closed_by == "offers":
            events.append((at, f"took one of {len(transcript.bids)} standing offers"))
            continue
        events.append((at - transcript.window_ms / 1e3, f"asked {transcript.asked} for bids"))
        events.append((at, f"closed: {len(transcript.bids)} bids, {transcript.closed_by.replace('_', ' ')}"))
    for at, entry in found.journal:
        if entry.kind == "awarded":
            events.append((at, f"awarded to {entry.worker} for {entry.price} (attempt {entry.attempt})"))
        elif entry.kind == "waiting":
            events.append((at, f"waiting: {entry.reason.replace('_', ' ')}"))
        elif entry.kind == "planned":
            events.append((at, entry.why))
        elif entry.kind == "cancel":
            events.append((at, "cancel asked"))
        else:
            events.append((at, ending(entry)))
    events.extend((a["ended_at"], f"{a['worker']} said {a['outcome']}") for a in found.attempts if a["ended_at"])
    # Entries of one moment keep the order in which they follow from one another; no clock is before the submit.
    events = [(max(at, start), what) for at, what in events]
    return [((at - start) * 1e3, what) for at, what in sorted(events, key=lambda event: event[0])]
