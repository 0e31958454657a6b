"""What every verb leaves behind: frozen records, plain enough for JSON and for the catalog."""

from embridge.records.artifacts import Artifact, Summary
from embridge.records.evaluation import CorpusSize, Difference, Evaluation, LabelScore, PerQuery, QrelsCoverage, StrategyScore
from embridge.records.fitting import AnchorRecord, Candidate, FitRecord
from embridge.records.outputs import Conversion, DecoderRecord, Decoding, Merge, Migration
from embridge.records.planning import (
    FEW_QUERIES,
    CostedScore,
    LabelFigures,
    LazyDepth,
    LearningCurve,
    NormDistribution,
    Plan,
    Recommendation,
)
from embridge.records.quality import (
    ConfidenceCheck,
    DecoderEvaluation,
    DecoderStrategy,
    Stitching,
    StitchingScore,
)
from embridge.records.runs import Run

__all__ = [
    "FEW_QUERIES",
    "AnchorRecord",
    "Artifact",
    "Candidate",
    "ConfidenceCheck",
    "Conversion",
    "CorpusSize",
    "CostedScore",
    "DecoderEvaluation",
    "DecoderRecord",
    "DecoderStrategy",
    "Decoding",
    "Difference",
    "Evaluation",
    "FitRecord",
    "LabelFigures",
    "LabelScore",
    "LazyDepth",
    "LearningCurve",
    "Merge",
    "Migration",
    "NormDistribution",
    "PerQuery",
    "Plan",
    "QrelsCoverage",
    "Recommendation",
    "Run",
    "Stitching",
    "StitchingScore",
    "StrategyScore",
    "Summary",
]
