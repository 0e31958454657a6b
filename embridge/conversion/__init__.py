"""Convert a whole collection to another space, streaming, and verify the result."""

from __future__ import annotations

from embridge.conversion.batch import prepare, translate_batch
from embridge.conversion.engine import TranslateOptions
from embridge.conversion.run import convert
from embridge.conversion.verify import verify

__all__ = ["TranslateOptions", "convert", "prepare", "translate_batch", "verify"]
