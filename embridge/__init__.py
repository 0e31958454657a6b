"""embridge keeps embeddings useful when the encoder changes.

Names are loaded when they are first used: importing embridge loads none of torch, FAISS, DuckDB and pyarrow.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads (torch, FAISS) spin by default, which on a busy machine starves the threads they wait for: a fit that takes
# 2 s so took 16 to 90 s with four processes on two cores. It must stand in the environment before either library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Arrow's own allocator keeps what it once held: a conversion needs 700 to 800 MB with it, 640 with the system's, at one speed.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

if TYPE_CHECKING:
    from embridge.anchors import Anchors as Anchors
    from embridge.anchors import match as match
    from embridge.anchors import sample_rows as sample_rows
    from embridge.catalog import Catalog as Catalog
    from embridge.confidence import Confidence as Confidence
    from embridge.conversion import convert as convert
    from embridge.conversion import encode as encode
    from embridge.conversion import verify as verify
    from embridge.decoder_evaluation import evaluate_decoder as evaluate_decoder
    from embridge.decoders import Decoded as Decoded
    from embridge.decoders import Decoder as Decoder
    from embridge.decoders import LinearHead as LinearHead
    from embridge.decoders import decode as decode
    from embridge.decoders import open_decoder as open_decoder
    from embridge.decoders import register_decoder as register_decoder
    from embridge.decoders import save_decoder as save_decoder
    from embridge.errors import EmbridgeError as EmbridgeError
    from embridge.evaluation import evaluate as evaluate
    from embridge.feature_maps import FeatureMap as FeatureMap
    from embridge.feature_maps import load_map as load_map
    from embridge.folds import Folds as Folds
    from embridge.indexes.migrate import migrate as migrate
    from embridge.maps import LinearMap as LinearMap
    from embridge.merging import merge as merge
    from embridge.moments import Moments as Moments
    from embridge.neighbours import top_k as top_k
    from embridge.planning import plan as plan
    from embridge.planning import rows_to_reencode as rows_to_reencode
    from embridge.records import DecoderEvaluation as DecoderEvaluation
    from embridge.records import Decoding as Decoding
    from embridge.records import Evaluation as Evaluation
    from embridge.records import Merge as Merge
    from embridge.records import Migration as Migration
    from embridge.records import Plan as Plan
    from embridge.reporting import write_report as write_report
    from embridge.representations import relative as relative
    from embridge.retrieval import Index as Index
    from embridge.retrieval import build_index as build_index
    from embridge.retrieval import open_index as open_index
    from embridge.retrieval import search as search
    from embridge.samples import sample_path as sample_path
    from embridge.stitching import compare_stitching as compare_stitching
    from embridge.stitching import stitch as stitch
    from embridge.stores import Collection as Collection
    from embridge.stores import MemoryCollection as MemoryCollection
    from embridge.stores import open_collection as open  # noqa: A004, F401
    from embridge.summary import summarise as summarise
    from embridge.translators import Affine as Affine
    from embridge.translators import Auto as Auto
    from embridge.translators import Bridge as Bridge
    from embridge.translators import Isometry as Isometry
    from embridge.translators import Kernel as Kernel
    from embridge.translators import Linear as Linear
    from embridge.translators import LOrtho as LOrtho
    from embridge.translators import Ortho as Ortho
    from embridge.translators import Projection as Projection
    from embridge.translators import QueryPairs as QueryPairs
    from embridge.translators import Ridge as Ridge
    from embridge.translators import Rotation as Rotation
    from embridge.translators import Translator as Translator
    from embridge.translators import calibrate as calibrate
    from embridge.translators import fit as fit
    from embridge.translators.fitting import FittedMaps as FittedMaps
    from embridge.translators.fitting import fit_maps as fit_maps
    from embridge.types import Hits as Hits
    from embridge.types import Metric as Metric
    from embridge.types import Space as Space

__version__ = "0.1.0"

_HOMES = {
    "anchors": ("Anchors", "match", "sample_rows"),
    "catalog": ("Catalog",),
    "confidence": ("Confidence",),
    "conversion": ("convert", "encode", "verify"),
    "decoder_evaluation": ("evaluate_decoder",),
    "decoders": ("Decoded", "Decoder", "LinearHead", "decode", "open_decoder", "register_decoder", "save_decoder"),
    "errors": ("EmbridgeError",),
    "evaluation": ("evaluate",),
    "feature_maps": ("FeatureMap", "load_map"),
    "folds": ("Folds",),
    "indexes.migrate": ("migrate",),
    "maps": ("LinearMap",),
    "moments": ("Moments",),
    "merging": ("merge",),
    "neighbours": ("top_k",),
    "planning": ("plan", "rows_to_reencode"),
    "records": ("DecoderEvaluation", "Decoding", "Evaluation", "Merge", "Migration", "Plan"),
    "reporting": ("write_report",),
    "representations": ("relative",),
    "retrieval": ("Index", "build_index", "open_index", "search"),
    "samples": ("sample_path",),
    "stitching": ("compare_stitching", "stitch"),
    "stores": ("Collection", "MemoryCollection"),
    "summary": ("summarise",),
    "translators": (
        "Affine",
        "Auto",
        "Bridge",
        "Isometry",
        "Kernel",
        "LOrtho",
        "Linear",
        "Ortho",
        "Projection",
        "QueryPairs",
        "Ridge",
        "Rotation",
        "Translator",
        "calibrate",
        "fit",
    ),
    "translators.fitting": ("FittedMaps", "fit_maps"),
    "types": ("Hits", "Metric", "Space"),
}
_NAMES = {name: (home, name) for home, names in _HOMES.items() for name in names} | {"open": ("stores", "open_collection")}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'embridge' has no attribute {name!r}")
    home, attribute = _NAMES[name]
    value = getattr(importlib.import_module(f"embridge.{home}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
