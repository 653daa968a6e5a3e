"""Pure decisions: who wins, at what price, and what happens next. No I/O, no clock, no randomness of its own."""

from .calibration import Calibration
from .candidate import Candidate
from .claims import Claims
from .composite import Composite
from .decision import Decision, decide, differences, recompute
from .directory import Directory, Invited
from .line import Line, Place
from .negotiation import Negotiation, Policy
from .pace import Pace
from .records import Outcome, TrackRecord, TrackRecords
from .reference import ReferencePrices
from .reputation import Estimate, Reputation
from .scoring import Offered, Terms, payment, rank
from .strategy import COMPOSITE, Plan, View, choose
from .turns import Turns
from .undertaking import Journal, State, Undertaking

__all__ = [
    "COMPOSITE",
    "Calibration",
    "Candidate",
    "Claims",
    "Composite",
    "Decision",
    "Directory",
    "Estimate",
    "Invited",
    "Journal",
    "Line",
    "Negotiation",
    "Offered",
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
    "Turns",
    "Undertaking",
    "View",
    "choose",
    "decide",
    "differences",
    "payment",
    "rank",
    "recompute",
]
