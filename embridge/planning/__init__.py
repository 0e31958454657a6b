"""Scores and costs of all strategies for answering new-space queries, and a recommendation."""

from embridge.planning.plan import plan
from embridge.planning.reencoding import rows_to_reencode

__all__ = ["plan", "rows_to_reencode"]
