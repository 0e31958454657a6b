"""Every way of answering new-space queries side by side, what it costs, and which one is recommended."""

from embridge.planning.plan import plan
from embridge.planning.record import LearningCurve, Plan, PlannedStrategy, Recommendation

__all__ = ["LearningCurve", "Plan", "PlannedStrategy", "Recommendation", "plan"]
