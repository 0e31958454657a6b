"""What every verb leaves behind: frozen records, plain enough for JSON and for the catalog."""

from embridge.records.artifacts import Artifact, Summary
from embridge.records.evaluation import CorpusSize, Difference, Evaluation, LabelStrategy, PerQuery, Strategy
from embridge.records.fitting import AnchorRecord, Candidate, FitRecord, FitReport
from embridge.records.outputs import Conversion, DecoderRecord, Decoding, Merge, Migration
from embridge.records.planning import LabelFigures, LearningCurve, NormDistribution, Plan, PlannedStrategy, Recommendation
from embridge.records.quality import (
    ConfidenceCheck,
    DecoderEvaluation,
    DecoderStrategy,
    Stitching,
    StitchingScore,
)
from embridge.records.runs import Run

__all__ = [
    "AnchorRecord",
    "Artifact",
    "Candidate",
    "ConfidenceCheck",
    "Conversion",
    "CorpusSize",
    "DecoderEvaluation",
    "DecoderRecord",
    "DecoderStrategy",
    "Decoding",
    "Difference",
    "Evaluation",
    "FitRecord",
    "FitReport",
    "LabelFigures",
    "LabelStrategy",
    "LearningCurve",
    "Merge",
    "Migration",
    "NormDistribution",
    "PerQuery",
    "Plan",
    "PlannedStrategy",
    "Recommendation",
    "Run",
    "Stitching",
    "StitchingScore",
    "Strategy",
    "Summary",
]
