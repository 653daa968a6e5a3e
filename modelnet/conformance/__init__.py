"""The conformance kit: whether an implementation keeps docs/protocol.md, found out from outside, over a real server.

The kit plays the rest of the network towards the implementation under test, a worker or a client, and says of each
numbered requirement whether it was kept, broken, or could not be checked, and why.
"""

from .client import ClientSuite
from .report import Finding, Report
from .requirements import REQUIREMENTS
from .worker import WorkerSuite

__all__ = ["REQUIREMENTS", "ClientSuite", "Finding", "Report", "WorkerSuite"]
