"""Translators: estimators of maps. `fit` selects one by name."""

from __future__ import annotations

import inspect
from typing import Any, Literal, overload

import torch

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import ParameterError
from embridge.maps import KernelMap, LinearMap, Map
from embridge.translators.base import Translator
from embridge.translators.bridge import Bridge, Ridge
from embridge.translators.calibration import calibrate
from embridge.translators.kernel import Kernel
from embridge.translators.paper import Affine, Linear, LOrtho, Ortho
from embridge.translators.projection import Projection
from embridge.translators.rigid import Isometry, Rotation
from embridge.translators.scoring import QueryPairs, Role, as_role
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
    "Projection",
    "QueryPairs",
    "Ridge",
    "Role",
    "Rotation",
    "Translator",
    "calibrate",
    "fit",
]

AffineMethod = Literal["bridge", "ridge", "rotation", "isometry", "projection", "affine", "linear", "l-ortho", "ortho"]

METHODS: dict[str, type[Translator]] = {
    cls.name: cls for cls in (Bridge, Ridge, Rotation, Isometry, Projection, Affine, Linear, LOrtho, Ortho)
}


@overload
def fit(
    anchors: Anchors | Moments | FoldMoments,
    method: Literal["kernel"] | Kernel,
    *,
    role: str = ...,
    keep_affine: bool = ...,
    queries: QueryPairs | None = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> KernelMap: ...
@overload
def fit(
    anchors: Anchors | Moments | FoldMoments,
    method: AffineMethod | Translator,
    *,
    role: str = ...,
    keep_affine: bool = ...,
    queries: QueryPairs | None = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> LinearMap: ...
@overload
def fit(
    anchors: Anchors | Moments | FoldMoments,
    method: Literal["auto"] = ...,
    *,
    keep_affine: Literal[True],
    role: str = ...,
    queries: QueryPairs | None = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> LinearMap: ...
@overload
def fit(
    anchors: Anchors | Moments | FoldMoments,
    method: str | Translator | Kernel | Auto = ...,
    *,
    role: str = ...,
    keep_affine: bool = ...,
    queries: QueryPairs | None = ...,
    device: str | torch.device | None = ...,
    **parameters: Any,
) -> Map: ...
def fit(
    anchors: Anchors | Moments | FoldMoments,
    method: str | Translator | Kernel | Auto = "auto",
    *,
    role: str = "documents",
    keep_affine: bool = False,
    queries: QueryPairs | None = None,
    device: str | torch.device | None = "cpu",
    **parameters: Any,
) -> Map:
    """Fit a map from the source to the target of some anchors.

    Parameters
    ----------
    anchors : Anchors, Moments or FoldMoments
        ``kernel`` takes Anchors only.
    method : str, Translator, Kernel or Auto, default "auto"
        ``bridge``, ``ridge``, ``rotation``, ``isometry``, ``projection``, ``affine``, ``linear``, ``l-ortho``, ``ortho`` or
        ``kernel``; ``auto`` chooses for the role (see `Auto`). ``kernel`` is more accurate for documents than any affine map,
        but it cannot migrate an index and has no adjoint (see `Kernel`).
    role : {"documents", "queries", "decode"}, default "documents"
        What the map is for: translating the rows of a collection (``documents``, also ``search``), projecting queries of the
        source space onto native rows of the target space, or feeding decoders of the target space.
    keep_affine : bool, default False
        ``auto`` does not consider ``kernel``.
    queries : QueryPairs, optional
        Queries encoded by both models, which ``auto`` compares candidates on.
    device : str, default "cpu"
    **parameters
        Parameters of the method.

    Returns
    -------
    LinearMap, or KernelMap for ``kernel``
        Its `record` says how it was chosen.

    Raises
    ------
    ParameterError
        An unknown method, role or parameter, or a value out of range.
    TooFewAnchorsError
    """
    name = as_role(role)
    if isinstance(method, Translator | Kernel | Auto):
        if parameters:
            raise ParameterError(f"{method!r} is a translator with parameters; leave {', '.join(parameters)} out.")
        return _fit(method, anchors, device)
    if method == "auto" and not parameters:
        return Auto(name, keep_affine, queries).fit(anchors, device=device).recorded(role=name)
    if queries is not None:
        raise ParameterError(f"Only 'auto' uses queries. Hint: leave queries out, or method={method!r} and its parameters.")
    # A given parameter of bridge selects bridge.
    known_methods: dict[str, type[Translator] | type[Kernel]] = {**METHODS, Kernel.name: Kernel}
    cls = known_methods.get("bridge" if method == "auto" else method)
    if cls is None:
        raise ParameterError.must_be("method", f"auto or one of {', '.join(known_methods)}", method)
    known = [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "args", "kwargs", "role")]
    for parameter in parameters:
        if parameter not in known:
            takes = ", ".join(known) or "no parameters"
            raise ParameterError(f"{cls.name!r} has no parameter {parameter!r}. It takes {takes}.")
    if "role" in inspect.signature(cls.__init__).parameters:
        parameters["role"] = name
    return _fit(cls(**parameters), anchors, device).recorded(role=name)


def _fit(method: Translator | Kernel | Auto, anchors: Anchors | Moments | FoldMoments, device: str | torch.device | None) -> Map:
    if isinstance(method, Translator | Auto):
        return method.fit(anchors, device=device)
    if not isinstance(anchors, Anchors):
        raise ParameterError("'kernel' needs the anchors themselves; moments do not hold rows.")
    return method.fit(anchors, device=device)
