"""Pure decisions: who wins, at what price, and what happens next. No I/O, no clock, no randomness of its own."""

from .directory import Candidate, Directory
from .line import Line, Place
from .negotiation import Negotiation, Policy, State
from .pace import Pace
from .reference import ReferencePrices
from .scoring import Terms, payment, rank

__all__ = [
    "Candidate",
    "Directory",
    "Line",
    "Negotiation",
    "Pace",
    "Place",
    "Policy",
    "ReferencePrices",
    "State",
    "Terms",
    "payment",
    "rank",
]
