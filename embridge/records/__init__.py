"""What every verb leaves behind: frozen records, plain enough for JSON and for the catalog."""

from embridge.records.artifacts import Artifact, Summary
from embridge.records.fitting import AnchorRecord, Candidate, FitRecord
from embridge.records.outputs import Conversion, DecoderRecord, Decoding, Merge, Migration
from embridge.records.planning import LabelFigures, LearningCurve, NormDistribution, Plan, PlannedStrategy, Recommendation
from embridge.records.quality import (
    ConfidenceCheck,
    DecoderEvaluation,
    DecoderStrategy,
    Evaluation,
    Stitching,
    StitchingScore,
    Strategy,
)
from embridge.records.runs import Run

__all__ = [
    "AnchorRecord",
    "Artifact",
    "Candidate",
    "ConfidenceCheck",
    "Conversion",
    "DecoderEvaluation",
    "DecoderRecord",
    "DecoderStrategy",
    "Decoding",
    "Evaluation",
    "FitRecord",
    "LabelFigures",
    "LearningCurve",
    "Merge",
    "Migration",
    "NormDistribution",
    "Plan",
    "PlannedStrategy",
    "Recommendation",
    "Run",
    "Stitching",
    "StitchingScore",
    "Strategy",
    "Summary",
]
