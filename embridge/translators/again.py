"""The method of a map, to be fitted again on other anchors."""

from __future__ import annotations

from embridge.records import FitRecord
from embridge.translators import METHODS, Bridge, Projection, Ridge, Translator


def same_method(record: FitRecord, factor: float = 1.0) -> Translator:
    """The method of an affine map with its parameters, alpha multiplied by `factor`."""
    parameters = record.parameters
    if record.method == "bridge":
        return Bridge(
            parameters["alpha"] * factor, parameters["shrinkage_target_weight"], mean_weight=parameters.get("mean_weight", 1.0)
        )
    if record.method == "ridge":
        return Ridge(parameters["alpha"] * factor)
    if record.method == "projection":
        return Projection(parameters["alpha"] * factor, parameters["mean_weight"])
    return METHODS[record.method]()
