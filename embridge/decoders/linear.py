"""LinearHead: a linear decoder as two arrays, which can be combined with a map into one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import numpy as np

from embridge.arrays import check_rows, unit_where_off
from embridge.decoders.agreement import Link, check_decisions, check_values, columns, link_of, make_rows, quietly
from embridge.decoders.base import KINDS, Decoded, Decoder, Kind, as_classes, decoded
from embridge.decoders.bounds import SIDECAR_BYTES, parse_json
from embridge.decoders.declaration import stored_classes, stored_space
from embridge.errors import DecoderError, MapError, ParameterError, SpaceMismatchError, UnreadableFileError
from embridge.maps import KernelMap, Map
from embridge.tensors import reading_tensors, write_tensors
from embridge.types import Space, decoder_mismatch

_FORMAT = "embridge.head.1"


@dataclass(frozen=True, eq=False, repr=False)
class LinearHead(Decoder):
    """A linear decoder, ``scores = coef @ x + intercept``.

    A head combined with a map into a normalized space (`after`) has `length` and `offset` too, and is
    ``scores = (coef @ x + intercept) / ||length @ [x, 1]|| + offset``: scaling to unit length is not affine, but the length of a
    translation is that of a linear image of [x, 1].

    Parameters
    ----------
    coef : ndarray of shape (n_outputs, dim)
        Kept as float32. A classifier of two classes may have one row: the score of the second.
    intercept : ndarray of shape (n_outputs,)
    space : Space
        What it takes.
    kind : {"classifier", "regressor", "output"}, default "classifier"
    classes : sequence of str or int
        Of a classifier, in the order of its rows.
    link : {"softmax", "sigmoid"}, optional
        Link from a classifier's scores to probabilities (``sigmoid`` for a single score). Without it the scores are the output.
    length : ndarray of shape (r, dim + 1), optional
    offset : ndarray of shape (n_outputs,), optional
    scales_rows : bool, default False
        x is scaled to unit length first, as a map does that it was combined with (`LinearMap.scales_rows`).
    path : str, optional
        Its path.

    Raises
    ------
    SpaceMismatchError
        The shapes are not those of the space.
    ParameterError
        Classes, kind and link are inconsistent.
    BadVectorsError
        NaN or infinite coefficients.
    """

    format: ClassVar[str] = "linear"

    coef: np.ndarray
    intercept: np.ndarray
    space: Space
    kind: Kind = "classifier"
    classes: np.ndarray | None = None
    link: Link | None = None
    length: np.ndarray | None = None
    offset: np.ndarray | None = None
    scales_rows: bool = False
    path: str | None = None
    _device = "cpu"

    def __post_init__(self) -> None:
        coef, intercept = np.array(self.coef, np.float32, order="C"), np.array(self.intercept, np.float32)
        dim, outputs = self.space.dim, len(coef)
        if coef.ndim != 2 or coef.shape[1] != dim or intercept.shape != (outputs,) or not outputs:
            raise SpaceMismatchError(
                f"A linear head over {self.space.name!r} must have coef of shape (n_outputs, {dim}) and intercept of shape "
                f"(n_outputs,). Got {coef.shape} and {intercept.shape} instead."
            )
        arrays = {"coef": coef, "intercept": intercept}
        if (self.length is None) != (self.offset is None):
            raise ParameterError("length and offset must be given together.")
        if self.length is not None:
            arrays |= {"length": np.array(self.length, np.float32, order="C"), "offset": np.array(self.offset, np.float32)}
            if arrays["length"].ndim != 2 or arrays["length"].shape[1] != dim + 1 or arrays["offset"].shape != (outputs,):
                raise ParameterError.must_be("LinearHead.length", f"of shape (r, {dim + 1})", arrays["length"].shape)
        for name, array in arrays.items():
            check_rows(array.reshape(len(array), -1), range(len(array)), name, zero_is_bad=False)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "classes", self._checked_classes())

    def _checked_classes(self) -> np.ndarray | None:
        outputs = len(self.coef)
        if self.kind not in KINDS:
            raise ParameterError.must_be("kind", f"one of {', '.join(KINDS)}", self.kind)
        if self.kind != "classifier":
            if self.classes is not None or self.link is not None:
                raise ParameterError(f"A head of kind {self.kind!r} has neither classes nor link.")
            return None
        expected = 2 if outputs == 1 else outputs
        if self.classes is None or len(self.classes) != expected:
            found = "none" if self.classes is None else len(self.classes)
            raise ParameterError.must_be("classes", f"{expected} labels for {outputs} rows of coef", found)
        if self.link not in (None, "softmax", "sigmoid") or self.link == ("softmax" if outputs == 1 else "sigmoid"):
            raise ParameterError.must_be("link", "'sigmoid' for a single score, 'softmax' for several, or None", self.link)
        return as_classes(self.classes)

    @cached_property
    def _product(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of shape (dim, n_outputs + r) and offsets: all terms linear in x as one matrix."""
        if self.length is None:
            return np.ascontiguousarray(self.coef.T), self.intercept
        weight = np.vstack([self.coef, self.length[:, :-1]])
        return np.ascontiguousarray(weight.T), np.concatenate([self.intercept, self.length[:, -1]])

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores of checked rows of shape (n, dim): float32 of shape (n, n_outputs)."""
        weight, add = self._product
        rows = unit_where_off(rows) if self.scales_rows else rows
        if self._device == "cpu":
            found = rows.astype(np.float32, copy=False) @ weight
            found += add
        else:
            import torch

            x, w, b = (torch.tensor(array, dtype=torch.float32, device=self._device) for array in (rows, weight, add))
            found = torch.addmm(b, x, w).cpu().numpy()
        if self.length is None or self.offset is None:
            return found
        outputs = len(self.coef)
        image = found[:, outputs:]
        lengths = np.sqrt(np.einsum("ij,ij->i", image, image))
        return found[:, :outputs] / np.where(lengths > 0, lengths, 1)[:, None] + self.offset

    def _decode(self, rows: np.ndarray) -> Decoded:
        scores = self.scores(rows)
        if self.link == "softmax":
            grown = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = grown / grown.sum(axis=1, keepdims=True)
        elif self.link == "sigmoid":
            half = np.exp(-np.abs(scores))
            scores = np.where(scores > 0, 1, half) / (1 + half)
        return decoded(self.kind, scores, self.classes, probabilities=self.link is not None)

    def to(self, device: str) -> Self:
        return self._moved(_device=str(device))

    def after(self, translation: Map) -> LinearHead:
        """This head behind a map, as one head over the map's source.

        Exact: ``head.after(map).decode(x)`` is ``head.decode(map.apply(x))`` up to float32 rounding, also where the map scales to
        unit length. Then ``||W x + b|| = ||R [x, 1]||`` with the R of the QR decomposition of [W b], which has at most
        dim_source + 1 rows, and the head keeps R as its `length`.

        Raises
        ------
        SpaceMismatchError
            The map does not lead into the head's space.
        MapError
            The map is not affine; or both the map's target and the target of a map that the head was combined with before are
            normalized: no single head can do both.
        """
        if isinstance(translation, KernelMap):
            raise MapError.not_affine("a linear head cannot be combined with it")
        if not translation.target.same_as(self.space):
            raise decoder_mismatch(self.name, self.space, "the map's target", translation.target)
        coef, intercept = self.coef.astype(np.float64), self.intercept.astype(np.float64)
        weight, shift = translation.coef.astype(np.float64), translation.intercept.astype(np.float64)
        length, offset = self.length, self.offset
        to_unit = translation.target.normalized or self.scales_rows
        augmented = np.hstack([weight, shift[:, None]])
        if self.length is not None:
            if to_unit:
                raise MapError(
                    f"The head was already combined with a map into a normalized space, and {translation.target.name!r} is too: "
                    "scaling to unit length twice is not a single matrix. Hint: translate first, then decode."
                )
            last = np.zeros((1, augmented.shape[1]))
            last[0, -1] = 1
            length = self.length.astype(np.float64) @ np.vstack([augmented, last])
            new, add = coef @ weight, coef @ shift + intercept
        elif to_unit:
            length, offset = np.linalg.qr(augmented, mode="r"), intercept
            new, add = coef @ weight, coef @ shift
        else:
            new, add = coef @ weight, coef @ shift + intercept
        scales_rows = translation.scales_rows
        return LinearHead(new, add, translation.source, self.kind, self.classes, self.link, length, offset, scales_rows)

    @classmethod
    def from_estimator(cls, estimator: Any, space: Space, *, kind: Kind | None = None) -> LinearHead:
        """The head of a linear fitted scikit-learn estimator or pipeline.

        Any estimator that is affine from end to end is supported: LinearSVC, LogisticRegression, RidgeClassifier, Ridge, Lasso,
        PCA, and pipelines of scalers and these. ``intercept = f(0)`` and ``coef = f(I) - f(0)``, where f is its decision
        function, its prediction or its transformation, in float64. That f is affine, and that the head's predictions are the
        estimator's own, is checked on rows that cover every class and both sides of every boundary
        (`embridge.decoders.agreement`).

        Parameters
        ----------
        estimator : fitted estimator
        space : Space
            Space of the vectors it was trained on.
        kind : {"regressor", "output"}, optional
            Kind of a model without classes. Default: ``regressor`` if it predicts, else ``output``.

        Raises
        ------
        DecoderError
            The estimator is not linear, does not predict the class of the largest score (a threshold, votes), gives several
            labels at once, or needs more than float32.
        SpaceMismatchError
            It takes vectors of another width.
        """
        width = getattr(estimator, "n_features_in_", space.dim)
        if width != space.dim:
            raise SpaceMismatchError.width(f"The estimator {type(estimator).__name__}", int(width), space.dim)
        function, found = _function(estimator, kind)
        name = type(estimator).__name__
        classes = as_classes(estimator.classes_) if found == "classifier" else None
        intercept = columns(quietly(function, np.zeros((1, space.dim)), name))[0]
        coef = (columns(quietly(function, np.eye(space.dim), name)) - intercept).T
        if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
            raise DecoderError.not_linear(name)
        batches = make_rows(coef, intercept)
        if classes is None:
            head = cls(coef, intercept, space, found)
            check_values(estimator, batches, function, coef, intercept, head.scores)
            return head
        if len(coef) != (1 if len(classes) == 2 and len(coef) < 2 else len(classes)):
            raise DecoderError(
                f"{name} has {len(classes)} classes and {len(coef)} scores (perhaps one per pair), so it is not a linear head."
            )
        check_values(estimator, batches, function, coef, intercept, None)
        head = cls(coef, intercept, space, found, classes, link_of(estimator, batches, coef, intercept))
        check_decisions(estimator, batches, coef, intercept, cast(np.ndarray, head.classes), head.decode)
        return head

    @property
    def fingerprint(self) -> str:
        """Content hash of coefficients, space, kind, classes and link: 32 hexadecimal digits."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for name, array in self._tensors().items():
            digest.update(name.encode() + repr(array.shape).encode() + array.tobytes())
        digest.update(json.dumps(self._facts(), sort_keys=True).encode())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in ("coef", "intercept", "length", "offset")}
        return {name: array for name, array in found.items() if array is not None}

    def _facts(self) -> dict[str, Any]:
        classes = None if self.classes is None else self.classes.tolist()
        facts = {"space": self.space.to_dict(), "kind": self.kind, "classes": classes, "link": self.link}
        return facts | ({"scales_rows": True} if self.scales_rows else {})

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write safetensors: the arrays (float32), and everything else as metadata.

        Raises
        ------
        OutputExistsError
            The file exists and `overwrite` is False.
        """
        metadata = {"format": _FORMAT, "head": json.dumps(self._facts()), "fingerprint": self.fingerprint}
        write_tensors(path, self._tensors(), metadata, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearHead:
        """Read a head that `save` wrote.

        Raises
        ------
        MissingFileError
            The file does not exist.
        UnreadableFileError
            Truncated, not a linear head of embridge, or altered.
        """
        name = os.fspath(path)
        with reading_tensors(name, (_FORMAT,), "a linear head") as (metadata, arrays):
            facts = parse_json(metadata["head"], SIDECAR_BYTES)
            stated = {"space": stored_space(facts["space"]), "classes": stored_classes(facts["classes"])}
            stated["scales_rows"] = facts.get("scales_rows") is True
            with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused
                loaded = cls(**arrays, kind=facts["kind"], link=facts["link"], **stated, path=name)
        if loaded.fingerprint != metadata.get("fingerprint"):
            raise UnreadableFileError.altered(name)
        return loaded


def _function(estimator: Any, kind: Kind | None) -> tuple[Any, Kind]:
    """The function of an estimator that may be affine, and the kind of decoder."""
    if getattr(estimator, "classes_", None) is not None:
        function, found = getattr(estimator, "decision_function", None), "classifier"
    elif hasattr(estimator, "predict") and not (kind == "output" and hasattr(estimator, "transform")):
        function, found = estimator.predict, kind or "regressor"
    else:
        function, found = getattr(estimator, "transform", None), kind or "output"
    if function is None:
        raise DecoderError.not_linear(type(estimator).__name__)
    return function, cast(Kind, found)
