"""A rollout: a live collection moves to a new encoder step by step, searchable at every moment, never below the old model."""

from embridge.rollout.rollout import Rollout

__all__ = ["Rollout"]
