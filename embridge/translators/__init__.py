"""How a map is fitted. `fit` finds the method by its name."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from embridge.anchors import Anchors
from embridge.errors import ParameterError
from embridge.folds import Folds
from embridge.maps import LinearMap
from embridge.moments import Moments
from embridge.translators.base import Translator
from embridge.translators.bridge import Bridge, Purpose, Ridge
from embridge.translators.calibration import calibrate
from embridge.translators.paper import Affine, Linear, LOrtho, Ortho
from embridge.translators.rigid import Isometry, Rotation
from embridge.translators.select import Auto

__all__ = [
    "METHODS",
    "Affine",
    "Auto",
    "Bridge",
    "Isometry",
    "LOrtho",
    "Linear",
    "Ortho",
    "Ridge",
    "Rotation",
    "Translator",
    "calibrate",
    "fit",
]

METHODS: dict[str, type[Translator]] = {cls.name: cls for cls in (Bridge, Ridge, Rotation, Isometry, Affine, Linear, LOrtho, Ortho)}


def fit(
    anchors: Anchors | Moments | Folds,
    method: str | Translator = "auto",
    *,
    purpose: Purpose = "search",
    device: str | torch.device | None = "cpu",
    **parameters: Any,
) -> LinearMap:
    """Fit a map from the source to the target of some anchors.

    Parameters
    ----------
    anchors : Anchors, Moments or Folds
    method : str or Translator, default "auto"
        ``bridge``, ``ridge``, ``rotation``, ``isometry``, ``affine``, ``linear``, ``l-ortho``, ``ortho``; ``auto`` chooses
        among them on folds (see `Auto`).
    purpose : {"search", "decode"}, default "search"
        What is chosen for, by methods that choose.
    device : str, default "cpu"
    **parameters
        Of the method.

    Returns
    -------
    LinearMap
        With `record` telling how it was chosen.

    Raises
    ------
    ParameterError
        No such method or parameter, or one out of its range.
    TooFewAnchorsError
    """
    if isinstance(method, Translator):
        if parameters:
            raise ParameterError(f"{method!r} has its parameters already; leave {', '.join(parameters)} out.")
        return method.fit(anchors, device=device)
    # With a parameter of bridge's given there is nothing left to choose among methods.
    cls = METHODS.get("bridge" if method == "auto" and parameters else method)
    if method == "auto" and not parameters:
        cls = Auto
    if cls is None:
        raise ParameterError.must_be("method", f"auto or one of {', '.join(METHODS)}", method)
    known = [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "args", "kwargs")]
    for name in parameters:
        if name not in known:
            takes = ", ".join(known) or "no parameters"
            raise ParameterError(f"{cls.name!r} has no parameter {name!r}. It takes {takes}.")
    if "purpose" in known:
        parameters["purpose"] = purpose
    return cls(**parameters).fit(anchors, device=device)
