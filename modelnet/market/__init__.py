"""Pure decisions: who wins, at what price, and what happens next. No I/O, no clock, no randomness of its own."""

from .calibration import Calibration
from .composite import Composite
from .decision import Decision, decide, differences, recompute
from .directory import Candidate, Directory
from .line import Line, Place
from .negotiation import Negotiation, Policy
from .pace import Pace
from .records import Outcome, TrackRecord, TrackRecords
from .reference import ReferencePrices
from .reputation import Estimate, Reputation
from .scoring import Terms, payment, rank
from .strategy import COMPOSITE, Plan, View, choose
from .undertaking import Journal, State, Undertaking

__all__ = [
    "COMPOSITE",
    "Calibration",
    "Candidate",
    "Composite",
    "Decision",
    "Directory",
    "Estimate",
    "Journal",
    "Line",
    "Negotiation",
    "Outcome",
    "Pace",
    "Place",
    "Plan",
    "Policy",
    "ReferencePrices",
    "Reputation",
    "State",
    "Terms",
    "TrackRecord",
    "TrackRecords",
    "Undertaking",
    "View",
    "choose",
    "decide",
    "differences",
    "payment",
    "rank",
    "recompute",
]
