"""Fits maps from collections in one call: forward and reverse, calibrated, from new anchors or from moments of earlier ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from embridge.anchors import Anchors, match
from embridge.anchors.fold_moments import FoldMoments
from embridge.errors import ParameterError, TooFewAnchorsError
from embridge.maps import LinearMap, Map
from embridge.outputs import Output, replacing
from embridge.ray import Backend, as_backend, connected
from embridge.records import AnchorRecord
from embridge.stores.base import Collection
from embridge.stores.ids import hash_ids
from embridge.tensors import encode_tensors
from embridge.translators import fit
from embridge.translators.calibration import LEAST_ROWS, calibrate
from embridge.translators.scoring import QueryPairs, Role, as_role

_LEAST_QUERIES = 20
_OTHER: dict[Role, Role] = {"documents": "queries", "queries": "documents", "decode": "decode"}


@dataclass(frozen=True, eq=False)
class FittedMaps:
    """The result of `fit_maps`.

    Attributes
    ----------
    forward : LinearMap or KernelMap
    reverse : LinearMap or KernelMap, optional
        The regression from target to source, on the same rows; not the inverse of `forward`.
    moments : FoldMoments, optional
        Moments that both were fitted on, for later updates.
    anchors : AnchorRecord
        The split of the shared rows.
    """

    forward: Map
    reverse: Map | None
    moments: FoldMoments | None
    anchors: AnchorRecord

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        reverse: str | os.PathLike[str] | None = None,
        moments: str | os.PathLike[str] | None = None,
        inputs: Sequence[str | None] = (),
        overwrite: bool = False,
    ) -> None:
        """Write the map and the other named files; all of them or none.

        Raises
        ------
        OutputExistsError
            A file exists and `overwrite` is False, or two names are the same file.
        ParameterError
            There is no reverse map, or there are no moments, to write.
        """
        outputs = [(path, self.forward), (reverse, self.reverse), (moments, self.moments)]
        named = [(os.fspath(name), value) for name, value in outputs if name is not None]
        with replacing(*(Output(name) for name, _ in named), inputs=inputs, overwrite=overwrite) as temporaries:
            for temporary, (name, value) in zip(temporaries, named, strict=True):
                if value is None:
                    raise ParameterError(f"There is nothing to write to {name!r}. Hint: fit_maps(reverse=True, keep_moments=True).")
                temporary.write_bytes(encode_tensors(*value.to_file()))


def fit_maps(
    source: Collection,
    target: Collection,
    method: str = "auto",
    *,
    role: str = "documents",
    keep_affine: bool = False,
    reverse: bool = False,
    queries: Anchors | None = None,
    qrels: Mapping[Any, Sequence[Any] | Mapping[Any, float]] | None = None,
    keep_moments: bool = False,
    update: FoldMoments | None = None,
    remove: bool = False,
    test_size: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    backend: Backend = "local",
    progress: Callable[[str], contextlib.AbstractContextManager[None]] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> FittedMaps:
    """Match two collections by id, hold rows out, fit one map or both, and calibrate their confidence.

    Parameters
    ----------
    source, target : Collection
        Collections in two different spaces.
    method : str, default "auto"
        See `fit`.
    role : {"documents", "queries", "decode"}, default "documents"
        Role of the map from source to target. The reverse map gets the opposite role: queries where this one is for documents,
        and vice versa.
    keep_affine : bool, default False
        ``auto`` considers affine maps only.
    reverse : bool, default False
        Also fit the map from target to source, on the same rows.
    queries : Anchors, optional
        Queries by both models (`match` of two collections), which ``auto`` compares candidates on. Half of them, by a hash of
        the id, is used; the other half is left for evaluation.
    qrels : mapping of query id to document ids, or to a mapping of document id to grade, optional
        Relevance judgments of the queries.
    keep_moments : bool, default False
        Keep the moments, for `update`.
    update : FoldMoments, optional
        Moments of earlier anchors, to which new shared rows are added.
    remove : bool, default False
        Remove the shared rows from `update` instead.
    test_size : float, default 0.1
        Share of the shared rows held out, by a hash of the id. With at least 100 of them, half calibrate the
        confidence of an affine map.
    seed : int, default 0
    device : str, default "cpu"
    backend : {"local", "ray"} or RayBackend, default "local"
        With Ray tasks take the moments of shards of the anchors, which were matched here, and the map is the same to the last bit.
        Both sides are Parquet, and all nodes can read them. Rows themselves, which ``kernel`` needs, are used here.
    progress : callable, optional
        Called with the name of a step; returns a context manager that is active during the step.
    parameters : mapping, optional
        Parameters of the method.

    Returns
    -------
    FittedMaps

    Raises
    ------
    ParameterError
        Options that cannot be combined.
    TooFewAnchorsError, NoSharedIdsError, BadIdsError, BadVectorsError, SpaceMismatchError
        As for `match` and `fit`.

    Examples
    --------
    >>> import embridge as eb
    >>> old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    >>> found = eb.fit_maps(old, new, "rotation", reverse=True)
    >>> found.forward.source.name, found.reverse.record.role
    ('minilm', 'queries')
    """
    chosen = as_role(role)
    _check_options(
        method,
        reverse=reverse,
        keep_moments=keep_moments,
        update=update,
        remove=remove,
        has_queries=queries is not None,
        has_qrels=qrels is not None,
    )
    step, ray = progress or (lambda _: contextlib.nullcontext()), as_backend(backend)
    with connected(ray):
        with step("matching ids"):
            known = None if update is None or remove else update.anchor_hashes
            train, held_out = match(source, target, known=known, backend=ray).split(test_size, seed)
        if update is not None and not len(train):
            raise ParameterError(f"{source.name!r} and {target.name!r} share no row to fit on that is not in the moments already.")
        pairs = None if queries is None else query_pairs(queries, qrels, seed)
        folds = None
        if keep_moments or update is not None:
            with step("taking moments"):
                # Reverse maps, and maps for queries, need full moments.
                folds = _folds(train, update, device, remove=remove, full=reverse or chosen == "queries")
        data = folds or train
        directions = [(chosen, data, held_out, pairs)]
        if reverse:
            directions.append((_OTHER[chosen], data.reversed(), held_out.reversed(), pairs and pairs.reversed()))
        made: list[Map] = []
        for direction, rows, left, real_queries in directions:
            with step(f"fitting {method}"):
                translation = fit(
                    rows, method, role=direction, keep_affine=keep_affine, queries=real_queries, device=device, **(parameters or {})
                )
                record = left.record
                translation = translation.recorded(held_out=len(left), sources=(record.source, record.target))
            half = len(left) // 2  # the other half remains for `evaluate` to check the confidence on
            if half >= LEAST_ROWS and isinstance(translation, LinearMap):
                with step("calibrating"):
                    translation = calibrate(translation, rows, left.sample(half, seed), seed=seed, device=device)
            made.append(translation)
        return FittedMaps(made[0], made[1] if reverse else None, folds, train.record)


def _folds(train: Anchors, update: FoldMoments | None, device: Any, *, remove: bool, full: bool) -> FoldMoments:
    """Moments of the anchors, added to or removed from earlier ones."""
    if update is None:
        return train.folds(device=device, full=full)
    folds = train.folds(device=device, partial=True, full=update.full)
    return update - folds if remove else update + folds


def _check_options(
    method: str, *, reverse: bool, keep_moments: bool, update: FoldMoments | None, remove: bool, has_queries: bool, has_qrels: bool
) -> None:
    """Refuse options that cannot be combined."""
    if remove and update is None:
        raise ParameterError("There are no moments to remove rows from. Hint: pass them (--update FILE, update=...).")
    if method == "kernel" and (keep_moments or update is not None):
        raise ParameterError("'kernel' needs the anchors themselves; moments do not hold rows. Leave moments and update out.")
    if update is not None and not update.full and reverse:
        raise ParameterError(
            "The moments hold only the diagonal of Syy, which is not enough for a reverse map. "
            "Hint: `embridge fit --moments FILE --reverse-output MAP` on all anchors keeps them in full."
        )
    if has_qrels and not has_queries:
        raise ParameterError("Judgments need queries. Hint: pass queries by both models.")


def query_pairs(
    queries: Anchors, qrels: Mapping[Any, Sequence[Any] | Mapping[Any, float]] | None = None, seed: int = 0, half: int = 0
) -> QueryPairs:
    """The half of the queries (0 or 1, by a hash of the id) used to choose maps; documents graded above zero are relevant.

    Maps that are chosen by one half are evaluated on the other.

    Raises
    ------
    TooFewAnchorsError
        Fewer than 20 queries.
    ParameterError
        Judgments without any of the queries.
    """
    if len(queries) < _LEAST_QUERIES:
        raise TooFewAnchorsError(
            f"Choosing a map needs at least {_LEAST_QUERIES} queries. Got {len(queries)} instead. Hint: leave queries out."
        )
    chosen = queries.at(hash_ids(queries.ids, "half", seed) % np.uint64(2) == half)
    if qrels is None:
        return QueryPairs(chosen.x, chosen.y)
    if not any(query in qrels for query in queries.ids.tolist()):
        raise ParameterError(f"The judgments have none of the {len(queries):,} queries. Hint: compare their query ids.")
    relevant = []
    for query in chosen.ids.tolist():
        graded = qrels.get(query, ())
        named = [d for d in graded if not isinstance(graded, Mapping) or (graded[d] or 0) > 0]
        whole = all(isinstance(document, int) for document in named)
        relevant.append(np.array(named, np.int64 if whole and named else object))
    return QueryPairs(chosen.x, chosen.y, tuple(relevant))
