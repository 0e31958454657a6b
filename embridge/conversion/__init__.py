"""A whole collection, streaming: translated, verified, or encoded from texts."""

from __future__ import annotations

from embridge.conversion.encode import encode
from embridge.conversion.run import convert
from embridge.conversion.verify import verify

__all__ = ["convert", "encode", "verify"]
