"""Measures all strategies for answering new-space queries, on rows that the map was not fitted on.

Every result is compared with keeping the old model and with re-encoding everything.
"""

from embridge.evaluation.bootstrap import bootstrap_interval, bootstrap_intervals
from embridge.evaluation.measure import check_confidence, evaluate

__all__ = ["bootstrap_interval", "bootstrap_intervals", "check_confidence", "evaluate"]
