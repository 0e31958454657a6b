"""Structured logs: one JSON object a line on stderr. Vectors, texts and keys are never among the fields."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

LOG = logging.getLogger("embridge.serving")


class JsonLines(logging.Formatter):
    """A record as one line of JSON. Of an exception only its type and places in the code are kept: its text may quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line |= {"error": record.exc_info[0].__name__, "at": [f"{f.filename}:{f.lineno} {f.name}" for f in frames]}
        return json.dumps(line, default=str)


def log(level: int, event: str, **fields: object) -> None:
    """Log an event with its fields."""
    LOG.log(level, event, extra={"fields": fields})


def to_stderr() -> None:
    """Write the logs of the service, and warnings of its server and of embridge, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("embridge", logging.WARNING), ("embridge.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers, logger.propagate = ([] if name == "embridge.serving" else [handler]), name == "embridge.serving"
