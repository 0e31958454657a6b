"""Queries of a rollout: those that it has logged, and a log of further ones, Parquet files by the old and by the new model."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from embridge.anchors import Anchors
from embridge.files import writing
from embridge.rollout.stage import Stage
from embridge.rollout.steps import reading
from embridge.stores.base import Batch
from embridge.stores.memory import empty_payload
from embridge.stores.parquet.writer import write_collection
from embridge.types import Space


def logged_queries(rollout: str) -> Anchors | None:
    """The queries of a rollout by both models; None where it has none.

    Parameters
    ----------
    rollout : str
        Its folder.

    Raises
    ------
    UnreadableFileError
    """
    return reading(Path(rollout), lambda _, folder: Stage(folder).queries)


class QueryLog:
    """Queries by both models, for ``embridge rollout queries ROLLOUT FOLDER/old FOLDER/new``.

    A call writes one file into each folder, under one name. A file is complete or absent; a query of which only one side was
    written, by a process that was killed, is left out when the folders are matched.

    Parameters
    ----------
    folder : str
    spaces : pair of Space
        The old and the new one.

    Raises
    ------
    OutputError
        The folder cannot be made.
    """

    def __init__(self, folder: str, spaces: tuple[Space, Space]) -> None:
        self._sides = tuple(zip((Path(folder) / "old", Path(folder) / "new"), spaces, strict=True))
        for path, _ in self._sides:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)

    def add(self, old: np.ndarray, new: np.ndarray) -> list[str]:
        """Write queries; returns their ids.

        Parameters
        ----------
        old, new : ndarray of shape (n, dim of the space)

        Raises
        ------
        OutputError, DiskFullError
        """
        mark = f"{time.time_ns():x}-{secrets.token_hex(6)}"
        ids = [f"{mark}-{i}" for i in range(len(new))]
        for (folder, space), vectors in zip(self._sides, (old, new), strict=True):
            with write_collection(folder / f"{mark}.parquet", space, pa.string(), pa.schema([])) as writer:
                rows = np.ascontiguousarray(vectors, np.float32)
                writer.write(Batch(0, pa.array(ids, pa.string()), rows, empty_payload(len(ids))))
        return ids
