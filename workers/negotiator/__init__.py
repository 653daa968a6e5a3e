"""The negotiator: takes tasks off the stream and auctions them. It decides nothing itself: see modelnet/market.

One process holds many tasks at once and any number of processes share the work. What it keeps in memory can be lost at
any moment: a task is acknowledged only after its Final stands in the journal.
"""

from .app import app, make_app
from .negotiator import Negotiator

__all__ = ["Negotiator", "app", "make_app"]
