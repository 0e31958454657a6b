"""Every strategy of answering new-space queries, measured on rows that the map was not fitted on.

Each result stands beside keeping the old model and beside re-encoding everything.
"""

from embridge.evaluation.bootstrap import bootstrap_interval, bootstrap_intervals
from embridge.evaluation.measure import check_confidence, evaluate

__all__ = ["bootstrap_interval", "bootstrap_intervals", "check_confidence", "evaluate"]
