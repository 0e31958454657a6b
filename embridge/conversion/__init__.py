"""A whole collection, streaming: translated, or encoded from texts."""

from __future__ import annotations

from embridge.conversion.encode import encode
from embridge.conversion.run import convert

__all__ = ["convert", "encode"]
