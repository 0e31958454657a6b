"""Every way of answering new-space queries side by side, what it costs, and which one is recommended."""

from embridge.planning.plan import plan
from embridge.planning.reach import rows_to_reencode

__all__ = ["plan", "rows_to_reencode"]
