"""The map that changes nothing, and its engine: a copy is a conversion by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embridge.arrays import check_rows
from embridge.stores.batch import Batch, IdValues
from embridge.types import Metric, Space


@dataclass(frozen=True)
class Identity:
    """The map from a space to itself that keeps every vector as it is.

    Attributes
    ----------
    source : Space
    """

    source: Space
    fingerprint = ""
    confidence = None

    @property
    def target(self) -> Space:
        """The same space."""
        return self.source

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """The same vectors in float32."""
        return np.asarray(vectors, np.float32)


@dataclass(frozen=True)
class CopyEngine:
    """Writes rows as they are; used where a conversion has an `Engine`.

    Attributes
    ----------
    space : Space
    name : str
        Of the source, in messages.
    """

    space: Space
    name: str

    def run(self, parts: Sequence[Batch], out: np.ndarray) -> None:
        """Copy the vectors of consecutive rows into `out`.

        Raises
        ------
        BadVectorsError
            A row is beyond the range of the type of `out`, or zero in it under cosine.
        """
        start = 0
        with np.errstate(over="ignore"):  # what is infinite in the output's type is reported below
            for part in parts:
                out[start : start + len(part)] = part.vectors
                start += len(part)
        ids = IdValues(pa.concat_arrays([part.ids for part in parts]))
        check_rows(out, ids, f"{self.name} in {out.dtype}", zero_is_bad=self.space.metric == Metric.COSINE)
