"""Convert a whole collection to another space, or copy it, streaming, and verify the result."""

from __future__ import annotations

from embridge.conversion.batch import prepare, translate_batch
from embridge.conversion.engine import TranslateOptions
from embridge.conversion.run import convert, copy
from embridge.conversion.verify import verify

__all__ = ["TranslateOptions", "convert", "copy", "prepare", "translate_batch", "verify"]
