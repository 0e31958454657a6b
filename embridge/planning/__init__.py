"""Every strategy of answering new-space queries with its scores and costs, and which one is recommended."""

from embridge.planning.plan import plan
from embridge.planning.reencoding import rows_to_reencode

__all__ = ["plan", "rows_to_reencode"]
