"""Pure decisions: who wins, at what price, and what happens next. No I/O, no clock, no randomness of its own."""

from .calibration import Calibration
from .claims import Claims
from .decision import Decision, decide, differences, recompute
from .directory import Candidate, Directory, Invited
from .line import Line, Place
from .negotiation import Negotiation, Policy, State
from .pace import Pace
from .records import Outcome, TrackRecord, TrackRecords
from .reference import ReferencePrices
from .reputation import Estimate, Reputation
from .scoring import Terms, payment, rank
from .turns import Turns

__all__ = [
    "Calibration",
    "Candidate",
    "Claims",
    "Decision",
    "Directory",
    "Estimate",
    "Invited",
    "Line",
    "Negotiation",
    "Outcome",
    "Pace",
    "Place",
    "Policy",
    "ReferencePrices",
    "Reputation",
    "State",
    "Terms",
    "TrackRecord",
    "TrackRecords",
    "Turns",
    "decide",
    "differences",
    "payment",
    "rank",
    "recompute",
]
