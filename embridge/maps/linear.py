"""LinearMap: the affine map that translators return."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch

from embridge.arrays import as_vectors, check_rows, unit, unit_where_off
from embridge.device import Product, unit_rows
from embridge.device import unit_where_off as tensor_unit_where_off
from embridge.errors import MapError, SpaceMismatchError, UnreadableFileError
from embridge.maps.confidence import Confidence
from embridge.records import FitRecord
from embridge.tensors import reading_tensors, write_tensors
from embridge.types import Metric, Space

Vectors = TypeVar("Vectors", np.ndarray, torch.Tensor)
FORMAT = "embridge.map.1"
_MANY = 64  # rows from which on torch is worth its overhead of some microseconds


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An affine map between two spaces, ``y = coef @ x + intercept``.

    Parameters
    ----------
    coef : ndarray of shape (dim_target, dim_source)
        Kept as float32.
    intercept : ndarray of shape (dim_target,)
    source, target : Space
        Spaces of its input and output.
    record : FitRecord
        How it was fitted.
    anchor_hashes : ndarray of uint64
        Sorted hashes of the ids it was fitted on, so that an evaluation can leave those rows out.
    confidence : Confidence, optional
        Predicts the error of each row (see `calibrate`).

    Raises
    ------
    SpaceMismatchError
        The shapes are not those of the spaces.
    BadVectorsError
        NaN or infinite coefficients.
    MapError
        The confidence is of another map.
    """

    coef: np.ndarray
    intercept: np.ndarray
    source: Space
    target: Space
    record: FitRecord = field(default_factory=lambda: FitRecord("given"))
    anchor_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        # Copies: an array that the caller still holds could change under the map.
        coef = np.array(self.coef, dtype=np.float32, order="C")
        intercept = np.array(self.intercept, dtype=np.float32)
        hashes = np.array(self.anchor_hashes, dtype=np.uint64)
        if coef.shape != (self.target.dim, self.source.dim) or intercept.shape != (self.target.dim,):
            raise SpaceMismatchError(
                f"A map from {self.source.name!r} to {self.target.name!r} must have coef of shape "
                f"({self.target.dim}, {self.source.dim}) and intercept of shape ({self.target.dim},). "
                f"Got {coef.shape} and {intercept.shape} instead."
            )
        check_rows(coef, range(len(coef)), "coef (by target feature)", zero_is_bad=False)
        check_rows(intercept[None], ["intercept"], "intercept", zero_is_bad=False)
        for name, array in (("coef", coef), ("intercept", intercept), ("anchor_hashes", hashes)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if (known := self.confidence) is not None:
            if not np.array_equal(known.coef, coef) or not np.array_equal(known.intercept, intercept):
                raise MapError(
                    "The confidence is of a map with other coefficients. Hint: calibrate this map again, or leave it out."
                )
            object.__setattr__(self, "confidence", replace(known, coef=coef, intercept=intercept))  # held once

    # The transpose for products with rows, computed once: a single query then costs one product only.
    @cached_property
    def _weight(self) -> np.ndarray:
        return self.coef.T

    @property
    def scales_rows(self) -> bool:
        """Rows of other lengths are scaled to unit length before they are translated.

        So where the map was fitted on vectors of unit length and their metric is cosine: the length of a row has no meaning there,
        and the intercept belongs to unit length.
        """
        return self.source.normalized and self.source.metric == Metric.COSINE

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Rows of shape (n, dim_source) as the map takes them: of unit length where it `scales_rows`, else as they are."""
        return unit_where_off(vectors) if self.scales_rows else vectors

    def apply(self, vectors: Vectors) -> Vectors:
        """Translate vectors of the source space.

        Parameters
        ----------
        vectors : ndarray or Tensor of shape (n, dim_source) or (dim_source,)
            float16, float32 or float64; a tensor is translated on the device it is on.

        Returns
        -------
        ndarray or Tensor of shape (n, dim_target) or (dim_target,), float32
            ``x @ coef.T + intercept``, scaled to unit length if, and only if, the target space is normalized. Where the map
            `scales_rows`, x is scaled to unit length first.

        Raises
        ------
        SpaceMismatchError
            Vectors of another width.
        """
        if isinstance(vectors, torch.Tensor):
            return cast(Vectors, self.apply_tensor(vectors))
        if not isinstance(vectors, np.ndarray) or vectors.ndim not in (1, 2) or vectors.dtype.kind != "f":
            vectors = as_vectors(vectors, what="vectors")
        if vectors.shape[-1] != self.source.dim:
            raise SpaceMismatchError.width(f"The map from {self.source.name!r}", self.source.dim, vectors.shape[-1])
        rows = self.scaled(vectors.reshape(-1, self.source.dim)).reshape(vectors.shape)
        if rows.ndim == 2 and len(rows) >= _MANY:
            out = self.product().of_array(rows)
        else:
            out = rows.astype(np.float32, copy=False) @ self._weight
            out += self.intercept
        if not self.target.normalized:
            return cast(Vectors, out)
        if out.ndim == 1:
            length = np.sqrt(out @ out)
            return cast(Vectors, out / length if length > 0 else out)
        return cast(Vectors, unit(out))

    def apply_tensor(self, vectors: torch.Tensor, add: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> torch.Tensor:
        """`apply` for tensors; `add` receives rows and their products, and adds to these before they are scaled to unit length."""
        if vectors.shape[-1] != self.source.dim:
            raise SpaceMismatchError.width(f"The map from {self.source.name!r}", self.source.dim, vectors.shape[-1])
        rows = vectors.reshape(-1, self.source.dim).to(torch.float32)
        if self.scales_rows:
            rows = tensor_unit_where_off(rows)
        out = self.product(vectors.device)(rows)
        if add is not None:
            add(rows, out)
        if self.target.normalized:
            out = unit_rows(out)
        return out.reshape(*vectors.shape[:-1], self.target.dim)

    def product(self, device: torch.device | str = "cpu") -> Product:
        """``rows @ coef.T + intercept`` on `device`, prepared once."""
        cache: dict[str, Product] = self.__dict__.setdefault("_products", {})
        if str(device) not in cache:
            cache[str(device)] = Product(self.coef, self.intercept, device)
        return cache[str(device)]

    @cached_property
    def isometry_scale(self) -> float | None:
        """s where ``coef.T @ coef = s^2 I`` to float32 accuracy (distances are kept up to s), else None."""
        gram = self.coef.T.astype(np.float64) @ self.coef
        square = np.trace(gram) / len(gram)
        gram[np.diag_indices_from(gram)] -= square
        return float(np.sqrt(square)) if square > 0 and np.abs(gram).max() < 1e-5 * square else None

    def project_queries(self, queries: np.ndarray) -> np.ndarray:
        """Queries of the target space as queries over untranslated rows of the source space.

        Under inner product this is the adjoint, ``q @ coef``: since <q, W x + b> = <W^T q, x> + <q, b>, it ranks the original
        rows exactly as `queries` rank the translated ones, for any map. Under cosine it is exact where the map is a rotation
        without intercept, else an approximation. Under L2 it is ``W^T (q - b) / s^2`` and needs an isometry.

        Parameters
        ----------
        queries : ndarray of shape (n_queries, dim_target)

        Returns
        -------
        ndarray of shape (n_queries, dim_source), float32

        Raises
        ------
        MapError
            The source space is measured by L2 and the map is not an isometry.
        SpaceMismatchError
            Queries of another width.
        """
        rows = as_vectors(queries, self.target.dim, f"queries of {self.target.name!r}").astype(np.float32, copy=False)
        if self.source.metric != Metric.L2:
            return rows @ self.coef
        if self.isometry_scale is None:
            raise MapError(
                "Under L2, queries can be projected by an isometry only, and this map is not one. "
                "Hint: fit a map from the space of the queries to the space of the index."
            )
        return (rows - self.intercept) @ self.coef / np.float32(self.isometry_scale**2)

    def then(self, other: LinearMap) -> LinearMap:
        """This map followed by `other`, as one map.

        ``a.then(b).apply(x) = b.apply(a.apply(x))`` where the space in the middle is not normalized. Scaling to unit
        length is not affine, so in the middle of a chain it is left out. The errors of the chain are unknown: it has
        no confidence.

        Raises
        ------
        MapError
            `other` does not start where this map ends, or it is not affine.
        """
        if not isinstance(other, LinearMap):
            raise MapError.not_affine("it cannot be combined with another into one map")
        if not self.target.same_as(other.source):
            raise MapError(
                f"A map into {self.target.name!r} ({self.target.dim}) cannot be followed by a map from "
                f"{other.source.name!r} ({other.source.dim})."
            )
        coef = other.coef.astype(np.float64) @ self.coef
        intercept = other.coef.astype(np.float64) @ self.intercept + other.intercept
        record = FitRecord("then", sources=(self.fingerprint, other.fingerprint))
        both = np.union1d(self.anchor_hashes, other.anchor_hashes)
        return LinearMap(coef, intercept, self.source, other.target, record, both)

    def inverse(self) -> LinearMap:
        """The inverse map, by the Moore-Penrose pseudo-inverse: ``x = pinv(coef) @ (y - intercept)``.

        An exact inverse only where the map is square and of full rank; else the least-squares inverse of minimum norm. It
        is not the regression from target to source (fit that with source and target exchanged), and for a map that shrinks,
        such as ridge, it amplifies noise. Singular values below the rounding error of float32 coefficients are set to zero.
        """
        rounding = np.finfo(np.float32).eps * min(self.coef.shape) ** 0.5
        pinv = np.linalg.pinv(self.coef.astype(np.float64), rcond=rounding)
        record = FitRecord("inverse", {"pseudo": True}, sources=(self.fingerprint,))
        return LinearMap(pinv, -pinv @ self.intercept, self.target, self.source, record, self.anchor_hashes)

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of coefficients, spaces, method and parameters: 32 hexadecimal digits."""
        digest = hashlib.blake2b(self.coef.tobytes(), digest_size=16)
        digest.update(self.intercept.tobytes())
        facts = [self.source.to_dict(), self.target.to_dict(), self.record.method, self.record.parameters]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()

    def recorded(self, **facts: Any) -> LinearMap:
        """The same map, with some facts of its record changed."""
        return replace(self, record=replace(self.record, **facts))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write safetensors: `coef`, `intercept` (float32), `anchor_hashes`, the confidence, and everything else as metadata.

        Raises
        ------
        OutputExistsError
            The file exists and `overwrite` is False.
        """
        write_tensors(path, *self.to_file(), overwrite=overwrite)

    def to_file(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata of the file of this map."""
        metadata = {
            "format": FORMAT,
            "source": json.dumps(self.source.to_dict()),
            "target": json.dumps(self.target.to_dict()),
            "method": self.record.method,
            "parameters": json.dumps(self.record.parameters),
            "anchors": str(self.record.anchors),
            "record": json.dumps(self.record.to_dict()),
            "fingerprint": self.fingerprint,
        }
        tensors = {"coef": self.coef, "intercept": self.intercept, "anchor_hashes": self.anchor_hashes}
        if self.confidence is not None:
            more, metadata["confidence"] = self.confidence.to_file()
            tensors |= more
        return tensors, metadata

    @classmethod
    def from_file(cls, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> LinearMap:
        """The inverse of `to_file`."""
        source, target = (Space.from_dict(json.loads(metadata[side])) for side in ("source", "target"))
        coef, intercept, hashes = (tensors[name] for name in ("coef", "intercept", "anchor_hashes"))
        if hashes.dtype != np.uint64 or hashes.ndim != 1 or (hashes[1:] <= hashes[:-1]).any():
            raise ValueError("the hashes of its anchors are not sorted")
        record, confidence = FitRecord.from_dict(json.loads(metadata["record"])), None
        if "confidence" in metadata:
            more = {name: tensor for name, tensor in tensors.items() if name.startswith("confidence.")}
            confidence = Confidence.from_file(more, metadata["confidence"], coef, intercept)
        return cls(coef, intercept, source, target, record, hashes, confidence)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearMap:
        """Read a map that `save` wrote.

        Raises
        ------
        MissingFileError
            The file does not exist.
        UnreadableFileError
            Truncated, not an affine map of embridge (`load_map` reads both kinds), or altered.
        """
        with reading_tensors(path, (FORMAT,), "a map") as (metadata, tensors):
            return checked(path, cls.from_file(tensors, metadata), metadata)

    def __repr__(self) -> str:
        return (
            f"LinearMap({self.source.name!r} ({self.source.dim}) -> {self.target.name!r} ({self.target.dim}), "
            f"{self.record.method}, {self.record.anchors:,} anchors)"
        )


def checked(path: str | os.PathLike[str], loaded: Any, metadata: dict[str, str]) -> Any:
    """The map, if its content has the fingerprint stored in its file."""
    if loaded.fingerprint != metadata["fingerprint"]:
        raise UnreadableFileError.altered(os.fspath(path))
    return loaded
