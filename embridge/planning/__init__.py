"""Every way of answering new-space queries side by side, what it costs, and which one is recommended."""

from embridge.planning.plan import plan

__all__ = ["plan"]
