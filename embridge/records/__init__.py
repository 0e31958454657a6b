"""Results of every verb: frozen records that turn into JSON and into rows of the catalog."""

from embridge.records.artifacts import Artifact, Summary
from embridge.records.curves import CurvePoint, LandmarkCost, LazyDepth, LearningCurve
from embridge.records.evaluation import CorpusSize, Difference, Evaluation, LabelScore, PerQuery, StrategyScore
from embridge.records.fitting import AnchorRecord, Candidate, FitRecord, FitReport
from embridge.records.outputs import Conversion, DecoderRecord, Decoding, Merge, Migration
from embridge.records.planning import (
    FEW_QUERIES,
    CostedScore,
    LabelFigures,
    NormDistribution,
    Plan,
    Recommendation,
    SpaceIsotropy,
)
from embridge.records.quality import (
    ConfidenceCheck,
    DecoderEvaluation,
    DecoderStrategy,
)
from embridge.records.queries import QrelsCoverage
from embridge.records.runs import Run
from embridge.records.stitching import Stitching, StitchingScore

__all__ = [
    "FEW_QUERIES",
    "AnchorRecord",
    "Artifact",
    "Candidate",
    "ConfidenceCheck",
    "Conversion",
    "CorpusSize",
    "CostedScore",
    "CurvePoint",
    "DecoderEvaluation",
    "DecoderRecord",
    "DecoderStrategy",
    "Decoding",
    "Difference",
    "Evaluation",
    "FitRecord",
    "FitReport",
    "LabelFigures",
    "LabelScore",
    "LandmarkCost",
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
    "SpaceIsotropy",
    "Stitching",
    "StitchingScore",
    "StrategyScore",
    "Summary",
]
