"""KernelMap: an affine map plus a kernel expansion."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch

from embridge.arrays import as_vectors, check_rows
from embridge.device import Product, unit_rows
from embridge.errors import MapError, SpaceMismatchError
from embridge.maps.linear import LinearMap, checked
from embridge.records import FitRecord
from embridge.tensors import reading_tensors, write_tensors
from embridge.types import Space

Vectors = TypeVar("Vectors", np.ndarray, torch.Tensor)


FORMAT = "embridge.feature-map.1"


_BLOCK = 1024  # rows of one product with the landmarks: 20 MiB of float32 at 5,000 of them


@dataclass(frozen=True, eq=False)
class KernelMap:
    """A map ``y = coef @ x + intercept + weights.T @ k(x)`` with features ``k_j(x) = exp(-gamma |x/|x| - z_j|^2)``.

    It translates rows: collections, queries of its source, and inputs of decoders. It is not affine, so it has no adjoint,
    cannot migrate an index and cannot be combined with a linear head. `Kernel` fits it.

    Parameters
    ----------
    affine : LinearMap
        `coef`, `intercept`, both spaces, the record and the hashes of the anchors. It is not a map by itself: the kernel term is
        missing.
    landmarks : ndarray of shape (m, dim_source)
        z, of unit length. Kept as float32.
    weights : ndarray of shape (m, dim_target)
    gamma : float
        Above 0.

    Raises
    ------
    SpaceMismatchError
        The shapes are not those of the spaces.
    BadVectorsError
        NaN or infinite values.
    MapError
        gamma is not above 0, or `affine` has a confidence, which would not hold with the kernel.
    """

    confidence: ClassVar[None] = None  # errors are predicted for affine maps only

    affine: LinearMap
    landmarks: np.ndarray
    weights: np.ndarray
    gamma: float

    def __post_init__(self) -> None:
        landmarks, weights = (np.array(a, dtype=np.float32, order="C") for a in (self.landmarks, self.weights))
        if landmarks.ndim != 2 or weights.shape != (len(landmarks), self.target.dim) or landmarks.shape[1] != self.source.dim:
            raise SpaceMismatchError(
                f"A kernel map from {self.source.name!r} to {self.target.name!r} must have landmarks of shape "
                f"(m, {self.source.dim}) and weights of shape (m, {self.target.dim}). "
                f"Got {landmarks.shape} and {weights.shape} instead."
            )
        if not 0 < self.gamma < np.inf or self.affine.confidence is not None:
            raise MapError(
                f"Kernel features need a finite gamma above 0 (got {self.gamma!r}), and an affine part without a confidence."
            )
        for name, array in (("landmarks", landmarks), ("weights", weights)):
            check_rows(array, range(len(array)), name, zero_is_bad=False)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def source(self) -> Space:
        """Space of its input."""
        return self.affine.source

    @property
    def target(self) -> Space:
        """Space of its output."""
        return self.affine.target

    @property
    def scales_rows(self) -> bool:
        """As `LinearMap.scales_rows`."""
        return self.affine.scales_rows

    @property
    def record(self) -> FitRecord:
        """How it was fitted."""
        return self.affine.record

    @property
    def anchor_hashes(self) -> np.ndarray:
        """Sorted hashes of the ids it was fitted on."""
        return self.affine.anchor_hashes

    def apply(self, vectors: Vectors) -> Vectors:
        """Translate vectors of the source space.

        Parameters
        ----------
        vectors : ndarray or Tensor of shape (n, dim_source) or (dim_source,)
            float16, float32 or float64; a tensor is translated on the device it is on.

        Returns
        -------
        ndarray or Tensor of shape (n, dim_target) or (dim_target,), float32
            Scaled to unit length if, and only if, the target space is normalized. Where the map `scales_rows`, x is scaled to unit
            length first.

        Raises
        ------
        SpaceMismatchError
            Vectors of another width.
        """
        if not isinstance(vectors, torch.Tensor):
            if not isinstance(vectors, np.ndarray) or vectors.ndim not in (1, 2) or vectors.dtype.kind != "f":
                vectors = as_vectors(vectors, what="vectors")
            return cast(Vectors, self.apply(torch.tensor(np.ascontiguousarray(vectors, np.float32))).numpy())
        return cast(Vectors, self.affine.apply_tensor(vectors, self.add_features))

    def project_queries(self, queries: np.ndarray) -> np.ndarray:
        """There is no adjoint: always raises MapError."""
        raise MapError.not_affine("queries cannot be projected by its adjoint")

    def product(self, device: torch.device | str = "cpu") -> Product:
        """``rows @ coef.T + intercept`` of the affine part on `device`, prepared once."""
        return self.affine.product(device)

    def add_features(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add ``k(x) @ weights`` to y in place, 1,024 rows at a time.

        Always in float32: weights of both signs cancel, and rounding features to TF32 or bfloat16 would dominate the result.

        Parameters
        ----------
        x : Tensor of shape (n, dim_source)
        y : Tensor of shape (n, dim_target), float32
        """
        cache: dict[str, list[Product]] = self.__dict__.setdefault("_products", {})
        if str(x.device) not in cache:
            cache[str(x.device)] = [Product(array, device=x.device) for array in (self.landmarks, self.weights.T)]
        similarities, features = cache[str(x.device)]
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            for start in range(0, len(x), _BLOCK):
                rows = unit_rows(x[start : start + _BLOCK].to(torch.float32))
                y[start : start + _BLOCK] += features(gaussian(similarities(rows), self.gamma))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of everything that determines its output: 32 hexadecimal digits."""
        digest = hashlib.blake2b(f"{self.affine.fingerprint} {self.gamma!r}".encode(), digest_size=16)
        digest.update(self.landmarks.tobytes())
        digest.update(self.weights.tobytes())
        return digest.hexdigest()

    def recorded(self, **facts: Any) -> KernelMap:
        """The same map, with some facts of its record changed."""
        return replace(self, affine=self.affine.recorded(**facts))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write safetensors: those of the affine part, `landmarks` and `weights`, and everything else as metadata.

        Raises
        ------
        OutputExistsError
            The file exists and `overwrite` is False.
        """
        write_tensors(path, *self.to_file(), overwrite=overwrite)

    def to_file(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata of the file of this map."""
        tensors, metadata = self.affine.to_file()
        tensors |= {"landmarks": self.landmarks, "weights": self.weights}
        metadata |= {
            "format": FORMAT,
            "gamma": repr(self.gamma),
            "fingerprint": self.fingerprint,
        }
        return tensors, metadata

    @classmethod
    def from_file(cls, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> KernelMap:
        """The inverse of `to_file`."""
        affine = LinearMap.from_file(tensors, metadata)
        return cls(affine, tensors["landmarks"], tensors["weights"], float(metadata["gamma"]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KernelMap:
        """Read a map that `save` wrote.

        Raises
        ------
        MissingFileError
            The file does not exist.
        UnreadableFileError
            Truncated, not a kernel map of embridge, or altered.
        """
        with reading_tensors(path, (FORMAT,), "a kernel map") as (metadata, tensors):
            return checked(path, cls.from_file(tensors, metadata), metadata)

    def __repr__(self) -> str:
        return (
            f"KernelMap({self.source.name!r} ({self.source.dim}) -> {self.target.name!r} ({self.target.dim}), "
            f"{self.record.method}, {len(self.landmarks):,} landmarks, {self.record.anchors:,} anchors)"
        )


def gaussian(products: torch.Tensor, gamma: float) -> torch.Tensor:
    """``exp(-gamma |u - z|^2)`` out of the inner products <u, z> of unit vectors, in place."""
    return products.sub_(1).mul_(2 * gamma).exp_()
