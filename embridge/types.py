"""The basic values: spaces, provenance and search results."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from embridge.errors import ParameterError, SpaceMismatchError


class Metric(StrEnum):
    """The metric of a space."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


@dataclass(frozen=True)
class Space:
    """The space of an encoder's vectors.

    Parameters
    ----------
    name : str
        Name of the encoder. Two spaces with equal name and width are the same space.
    dim : int
        Width of its vectors.
    metric : Metric, default "cosine"
        ``cosine``, ``dot`` or ``l2``.
    normalized : bool, default False
        True where every vector has unit length.

    Examples
    --------
    >>> Space("mpnet", 768, Metric.COSINE, normalized=True).same_as(Space("mpnet", 768))
    True
    """

    name: str
    dim: int
    metric: Metric = Metric.COSINE
    normalized: bool = False

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str) or not _is_text(self.name):
            raise ParameterError.must_be("Space.name", "a non-empty string", self.name)
        try:
            object.__setattr__(self, "dim", operator.index(self.dim))  # JSON has no NumPy integers
        except TypeError:
            raise ParameterError.must_be("Space.dim", "an integer", self.dim) from None
        if self.dim < 1:
            raise ParameterError.must_be("Space.dim", "at least 1", self.dim)
        object.__setattr__(self, "normalized", bool(self.normalized))
        try:
            object.__setattr__(self, "metric", Metric(self.metric))
        except ValueError:
            raise ParameterError.must_be("Space.metric", "one of cosine, dot, l2", self.metric) from None

    def same_as(self, other: Space) -> bool:
        """True where vectors of both can be mixed: the same encoder and width."""
        return self.name == other.name and self.dim == other.dim

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into files."""
        return asdict(self) | {"metric": str(self.metric)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Space:
        """The inverse of `to_dict`. Raises TypeError for values of other types: embridge does not write such files."""
        for key, kind in (("name", str), ("dim", int), ("metric", str), ("normalized", bool)):
            if type(values[key]) is not kind:
                raise TypeError(f"{key} must be of type {kind.__name__}")
        return cls(values["name"], values["dim"], Metric(values["metric"]), values["normalized"])


def _is_text(value: str) -> bool:
    """False where it contains half a surrogate pair, which can be neither printed nor written."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def space_mismatch(what: str, expected: Space, where: str, found: Space) -> SpaceMismatchError:
    """The error for vectors of one space where another is expected."""
    if expected.name == found.name:
        hint = "Hint: check that it is the right file, in the right place."
    elif what.startswith("The map"):
        hint = f"Hint: fit a map from {found.name!r}."
    else:
        hint = f"Hint: translate them first with a map from {found.name!r} to {expected.name!r}."
    return SpaceMismatchError(
        f"{what} expects {expected.dim}-dimensional vectors of {expected.name!r}, but {where} holds "
        f"{found.dim}-dimensional vectors of {found.name!r}. {hint}"
    )


def decoder_mismatch(what: str, expected: Space, where: str, found: Space) -> SpaceMismatchError:
    """The error for vectors of another space than that of a decoder."""
    return SpaceMismatchError(
        f"{what} takes {expected.dim}-dimensional vectors of {expected.name!r}, but {where} holds {found.dim}-dimensional "
        f"vectors of {found.name!r}. Hint: decode through a map from {found.name!r} to {expected.name!r} (--via, via=)."
    )


def mixed_spaces(where: str, one: str, space: Space, other: str, found: Space) -> SpaceMismatchError:
    """The error for collections of different spaces that are read as one."""
    return SpaceMismatchError(
        f"{where} mixes spaces: {one} holds {space.dim}-dimensional vectors of {space.name!r} ({space.metric}), "
        f"{other} {found.dim}-dimensional vectors of {found.name!r} ({found.metric}). Hint: open them one by one."
    )


@dataclass(frozen=True)
class DeclaredSpace:
    """A caller's declaration for a file without metadata: a name and optionally a metric. Width and norms are detected."""

    name: str
    metric: Metric | None = None

    @classmethod
    def parse(cls, text: str) -> DeclaredSpace:
        """Read ``NAME`` or ``NAME:METRIC`` (``mpnet``, ``mpnet:dot``); any other colon belongs to the name."""
        name, _, metric = text.rpartition(":")
        return cls(name, Metric(metric)) if name and metric in set(Metric) else cls(text)


def resolve_space(where: str, declared: Space | DeclaredSpace | str | None, found: Space, *, is_known: bool) -> Space | None:
    """Check a declared space against that of a file (`is_known`) or of its data.

    Returns None where the space is unknown. `found` has width, metric and norms as read or detected.

    Raises
    ------
    SpaceMismatchError
        The declaration contradicts the file.
    """
    if declared is None:
        return found if is_known else None
    if isinstance(declared, str):
        declared = DeclaredSpace.parse(declared)
    if isinstance(declared, Space) and declared.dim != found.dim:
        raise SpaceMismatchError.contradiction(where, "dim", declared.dim, found.dim)
    if is_known:
        if declared.name != found.name:
            raise SpaceMismatchError.contradiction(where, "space", declared.name, found.name)
        if declared.metric is not None and declared.metric != found.metric:
            raise SpaceMismatchError.contradiction(where, "metric", str(declared.metric), str(found.metric))
        return found
    if isinstance(declared, Space):
        return declared
    return replace(found, name=declared.name, metric=declared.metric or found.metric)


@dataclass(frozen=True)
class Provenance:
    """The calibration of a collection of native and translated rows.

    Attributes
    ----------
    offset : float
        Added to the score of a translated row for a query of unit length (L2: for any query), so that translated rows are found
        as often as native ones; 0 where it was not calibrated.
    k : int
        Number of neighbors that it was calibrated for.
    column : str
        Column with the provenance of each row: ``native`` or ``translated``.
    """

    offset: float
    k: int
    column: str = "provenance"

    def __post_init__(self) -> None:
        if not math.isfinite(self.offset):
            raise ParameterError.must_be("Provenance.offset", "finite", self.offset)
        if self.k < 1:
            raise ParameterError.must_be("Provenance.k", "at least 1", self.k)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """The inverse of `dataclasses.asdict`; values of another kind are a TypeError."""
        offset, k, column = values["offset"], values["k"], values["column"]
        if type(offset) not in (int, float) or type(k) is not int or type(column) is not str:
            raise TypeError("offset must be a number, k an integer, column a string")
        return cls(float(offset), k, column)


@dataclass(frozen=True, eq=False)
class Hits:
    """Neighbors of some queries, best first.

    Attributes
    ----------
    ids : ndarray of shape (n_queries, k)
        int64, or object where ids are strings. Where fewer than k were found the rest is -1 (None for strings).
    scores : ndarray of shape (n_queries, k), float32
        Higher is closer: cosine, inner product, or the negated squared distance under L2. ``-inf`` marks an empty place, whatever
        its id; no row has this score.
    """

    ids: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape:
            raise ParameterError.must_be("Hits.scores", f"of shape {self.ids.shape}", self.scores.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, i: int) -> tuple[list[Any], list[float]]:
        """Ids and scores of query `i`, without empty places."""
        found = self.scores[i] > -np.inf
        return self.ids[i][found].tolist(), [float(s) for s in self.scores[i][found]]
