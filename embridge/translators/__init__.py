"""How a map is fitted. `fit` finds the method by its name."""

from __future__ import annotations

import inspect
from typing import Any, Literal, overload

import torch

from embridge.anchors import Anchors
from embridge.errors import ParameterError
from embridge.feature_maps import FeatureMap, Map
from embridge.folds import Folds
from embridge.maps import LinearMap
from embridge.moments import Moments
from embridge.translators.base import Translator
from embridge.translators.bridge import Bridge, Purpose, Ridge
from embridge.translators.calibration import calibrate
from embridge.translators.kernel import Kernel
from embridge.translators.paper import Affine, Linear, LOrtho, Ortho
from embridge.translators.rigid import Isometry, Rotation
from embridge.translators.select import Auto

__all__ = [
    "METHODS",
    "Affine",
    "Auto",
    "Bridge",
    "Isometry",
    "Kernel",
    "LOrtho",
    "Linear",
    "Ortho",
    "Ridge",
    "Rotation",
    "Translator",
    "calibrate",
    "fit",
]

AffineMethod = Literal["auto", "bridge", "ridge", "rotation", "isometry", "affine", "linear", "l-ortho", "ortho"]

METHODS: dict[str, type[Translator]] = {cls.name: cls for cls in (Bridge, Ridge, Rotation, Isometry, Affine, Linear, LOrtho, Ortho)}


@overload
def fit(
    anchors: Anchors | Moments | Folds,
    method: Literal["kernel"] | Kernel,
    *,
    purpose: Purpose = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> FeatureMap: ...
@overload
def fit(
    anchors: Anchors | Moments | Folds,
    method: AffineMethod | Translator = ...,
    *,
    purpose: Purpose = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> LinearMap: ...
@overload
def fit(
    anchors: Anchors | Moments | Folds,
    method: str | Translator | Kernel,
    *,
    purpose: Purpose = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> Map: ...
def fit(
    anchors: Anchors | Moments | Folds,
    method: str | Translator | Kernel = "auto",
    *,
    purpose: Purpose = "search",
    device: str | torch.device | None = "cpu",
    **parameters: Any,
) -> Map:
    """Fit a map from the source to the target of some anchors.

    Parameters
    ----------
    anchors : Anchors, Moments or Folds
        ``kernel`` takes Anchors only.
    method : str, Translator or Kernel, default "auto"
        ``bridge``, ``ridge``, ``rotation``, ``isometry``, ``affine``, ``linear``, ``l-ortho``, ``ortho``; ``auto`` chooses
        among them on folds (see `Auto`). ``kernel`` follows the target further than any of these where there are anchors
        enough, but it is no affine map: it moves no index and has no adjoint (see `Kernel`).
    purpose : {"search", "decode"}, default "search"
        What is chosen for, by methods that choose.
    device : str, default "cpu"
    **parameters
        Of the method.

    Returns
    -------
    LinearMap, or FeatureMap by ``kernel``
        With `record` telling how it was chosen.

    Raises
    ------
    ParameterError
        No such method or parameter, or one out of its range.
    TooFewAnchorsError
    """
    if isinstance(method, Translator | Kernel):
        if parameters:
            raise ParameterError(f"{method!r} has its parameters already; leave {', '.join(parameters)} out.")
        return _fit(method, anchors, device)
    # With a parameter of bridge's given there is nothing left to choose among methods.
    cls: type[Translator] | type[Kernel] | None = METHODS.get("bridge" if method == "auto" and parameters else method)
    if method == "auto" and not parameters:
        cls = Auto
    if method == Kernel.name:
        cls = Kernel
    if cls is None:
        raise ParameterError.must_be("method", f"auto or one of {', '.join([*METHODS, Kernel.name])}", method)
    known = [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "args", "kwargs")]
    for name in parameters:
        if name not in known:
            takes = ", ".join(known) or "no parameters"
            raise ParameterError(f"{cls.name!r} has no parameter {name!r}. It takes {takes}.")
    if "purpose" in known:
        parameters["purpose"] = purpose
    return _fit(cls(**parameters), anchors, device)


def _fit(translator: Translator | Kernel, anchors: Anchors | Moments | Folds, device: str | torch.device | None) -> Map:
    if isinstance(translator, Translator):
        return translator.fit(anchors, device=device)
    if not isinstance(anchors, Anchors):
        raise ParameterError("'kernel' needs the anchors themselves; moments do not hold rows.")
    return translator.fit(anchors, device=device)
