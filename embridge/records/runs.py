"""One verb that was carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embridge.records.artifacts import Artifact
from embridge.records.evaluation import Evaluation
from embridge.records.fitting import AnchorRecord, FitRecord
from embridge.records.outputs import Conversion, DecoderRecord, Decoding
from embridge.records.planning import Plan
from embridge.records.quality import DecoderEvaluation

Detail = FitRecord | AnchorRecord | Evaluation | Plan | Conversion | Decoding | DecoderEvaluation | DecoderRecord


@dataclass(frozen=True)
class Run:
    """One verb that was carried out: what the catalog stores first of all."""

    verb: str
    parameters: dict[str, Any]
    seconds: float
    inputs: tuple[Artifact, ...] = ()
    outputs: tuple[Artifact, ...] = ()
    rows: int | None = None
    device: str | None = None
    details: tuple[Detail, ...] = ()
