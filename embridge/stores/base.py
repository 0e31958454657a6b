"""The contract of a collection: (id, vector, payload) rows in one space, read in batches of bounded size."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embridge.arrays import bad_rows, check_rows, not_unit
from embridge.errors import BadIdsError, ChangedSourceError, CollectionError, EmbridgeError, ParameterError
from embridge.stores.batch import Batch, IdValues
from embridge.stores.capabilities import Capabilities
from embridge.stores.fetching import selected
from embridge.types import Metric, Provenance, Space

BATCH_BYTES = 32 << 20  # of float32 vectors in a batch, by default


RowFilter = Callable[[int, int], bool]


class Collection(ABC):
    """Vectors with ids, in one space.

    A store implements `_read`, `__len__` and `fingerprint`, and sets the attributes.

    Attributes
    ----------
    kind : str
        ``parquet``, ``faiss``, ``memory``, or the scheme of a store.
    is_exact : bool
        Vectors come back as they were stored. Then they are checked to have unit length where the file or the caller says so.
    capabilities : Capabilities
        What its store does with its rows.
    seeks : bool
        It can be read from an id on without reading what is before it.
    fetches : bool
        Rows can be looked up by their ids.
    opens_further : bool
        A collection of its store may have two vectors a row, each opened as a collection (`old_side`).
    index_metric : Metric or None
        The one metric by which the index of its store ranks; None where there is no such index, or it ranks by any.
    path : str or None
        Its path, or its URI without a password.
    id_type : pyarrow.DataType
        string or int64.
    payload_schema : pyarrow.Schema
        The columns that are neither id nor vector.
    provenance : Provenance or None
        Provenance of native and translated rows (`embridge.merge`).
    """

    kind: ClassVar[str]
    is_exact: ClassVar[bool] = False
    capabilities: Capabilities = Capabilities(keeps_repeated_ids=True)
    seeks: bool = False
    fetches: bool = False
    opens_further: ClassVar[bool] = False
    index_metric: Metric | None = None
    path: str | None
    id_type: pa.DataType
    payload_schema: pa.Schema
    id_column: str = "id"
    vector_column: str = "vector"
    provenance: Provenance | None = None

    @functools.cached_property
    def space(self) -> Space:
        """The space of its vectors. A store sets it, or computes it here.

        Where neither the file nor the caller states whether all vectors have unit length, they are all read once.
        """
        raise NotImplementedError

    @property
    def stated_space(self) -> Space:
        """The space by name, width and metric, without reading rows; `normalized` is False where it is not stated."""
        return self.space

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata of the Parquet file, without that of embridge and Arrow."""
        return {}

    @property
    def payload_spaces(self) -> dict[str, Space]:
        """The spaces of vector columns in the payload, by column: a two-vector collection has one."""
        return {}

    @property
    def old_side(self) -> Collection | None:
        """The old vectors of a two-vector collection, as a collection of their own space; None for any other collection."""
        return None

    @property
    def vector_type(self) -> str:
        """The type in which vectors are read, without loss: ``float16``, ``float32`` or ``float64``."""
        return "float32"

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    @abstractmethod
    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        """Batches in order, unchecked.

        `row_filter(start, stop)` is true where any row of a span is wanted, so that other spans can be skipped. Without
        `validate`, rows without a usable vector are NaN instead of an error. Without `vectors` they have no columns.
        """

    def _read_after(self, after: str | int, batch_rows: int, *, row_filter: RowFilter | None, **options: bool) -> Iterator[Batch]:
        """`_read` for the rows after the one with the id `after`. A store that can seek by id overrides it."""
        start = self._position(after) + 1

        def wanted(low: int, high: int) -> bool:
            return high > start and (row_filter is None or row_filter(max(low - start, 0), high - start))

        for batch in self._read(batch_rows, row_filter=wanted, **options):
            rows = np.arange(max(start - batch.start, 0), len(batch))
            if len(rows):
                yield dataclasses.replace(part := batch.at(rows), start=part.start - start)

    def _position(self, after: str | int) -> int:
        """The position of the last row with an id."""
        found = -1
        for batch in self.id_reader():
            places = np.flatnonzero(pc.equal(batch.column(0), pa.scalar(after, self.id_type)).fill_null(False).to_numpy(False))
            found = int(batch.column(1)[int(places[-1])].as_py()) if len(places) else found
        if found < 0:
            raise ChangedSourceError.of(self.name, f"it has no row with the id {after!r} any more")
        return found

    def _fetch(self, ids: pa.Array) -> Batch:
        """The rows with one of a few thousand `ids`, in any order, unchecked and without payload; for a store that `fetches`."""
        raise NotImplementedError

    @abstractmethod
    def fingerprint(self) -> str:
        """32 hexadecimal digits that differ wherever the content may differ: a content hash, or one of the version of a store."""

    def check_unchanged(self) -> None:  # noqa: B027 (most stores have nothing to check)
        """Check, after reading all rows, that the opened files are unchanged. In memory nothing can change.

        Raises
        ------
        ChangedSourceError
            A file was overwritten, replaced, added or removed since the collection was opened.
        """

    @property
    def compared_fingerprint(self) -> str | None:
        """The fingerprint with which `check_unchanged` compares the content; None where it compares none."""
        return None

    @property
    def files(self) -> list[str]:
        """Local files and folders that it is read from."""
        return [] if self.path is None or "://" in self.path else [self.path]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return repr(self.path) if self.path is not None else "the collection in memory"

    def batches(
        self,
        batch_rows: int | None = None,
        *,
        payload: bool = False,
        row_filter: RowFilter | None = None,
        validate: bool = True,
        after: str | int | None = None,
    ) -> Iterator[Batch]:
        """Read all rows, or those after a row, in order, in batches of at most `batch_rows`.

        Parameters
        ----------
        batch_rows : int, optional
            Default: as many as hold 32 MiB of float32 vectors.
        payload : bool, default False
            Read the other columns too.
        row_filter : callable, optional
            ``row_filter(start, stop)`` is true for wanted spans of rows; a store may skip other spans.
        validate : bool, default True
            False reads rows unchecked: no check of values and ids; missing and ragged vectors are NaN.
        after : str or int, optional
            Id of a row: only the rows after it are read, and positions count from the first of them.

        Raises
        ------
        ChangedSourceError
            No row has the id `after`, in a store that keeps an order of its own.
        BadVectorsError
            NaN or infinite values, zero vectors under cosine, missing or ragged vectors, rows without the unit length that the
            space states, with their ids.
        BadIdsError
            Null ids.
        UnreadableFileError
            The file is damaged.
        """
        rows = self.default_batch_rows() if batch_rows is None else batch_rows
        if rows < 1:
            raise ParameterError.must_be("batch_rows", "at least 1", rows)
        options = {"payload": payload, "vectors": True, "row_filter": row_filter, "validate": validate}
        for batch in self._read(rows, **options) if after is None else self._read_after(after, rows, **options):
            if validate:
                if batch.ids.null_count:
                    raise BadIdsError.null(self.name, batch.ids.null_count)
                self._check(batch.vectors, batch.ids)
            yield batch

    def _check(self, vectors: np.ndarray, ids: pa.Array, otherwise: str = "") -> None:
        stated = self.stated_space
        zero_is_bad, unit_length = stated.metric == Metric.COSINE, self.is_exact and stated.normalized
        check_rows(vectors, IdValues(ids), self.name, zero_is_bad=zero_is_bad, unit_length=unit_length, otherwise=otherwise)

    def unusable(self, batch: Batch) -> dict[int, str]:
        """Reasons why rows of a batch that was read without `validate` are unusable, by position in the batch, in order."""
        stated = self.stated_space
        zero_is_bad = stated.metric == Metric.COSINE
        not_finite, zero = bad_rows(batch.vectors, zero_is_bad=zero_is_bad)
        reasons = dict.fromkeys(zero.tolist(), "zero vector")
        if self.is_exact and stated.normalized:
            lengths = not_unit(batch.vectors, zero_is_bad=zero_is_bad)
            reasons |= dict.fromkeys(lengths.tolist(), "not of unit length, as its space states")
        reasons |= dict.fromkeys(not_finite.tolist(), "no vector, or NaN or infinite values")
        if batch.ids.null_count:
            reasons |= dict.fromkeys(np.flatnonzero(batch.ids.is_null().to_numpy(zero_copy_only=False)).tolist(), "no id")
        return dict(sorted(reasons.items()))

    def default_batch_rows(self) -> int:
        """Rows that hold 32 MiB of float32 vectors, at least 1,024."""
        return max(1024, BATCH_BYTES // (4 * self.stated_space.dim))

    def select(self, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Vectors of the rows at `rows` (sorted positions), as pieces: the positions within `rows`, and the vectors.

        Only these rows are checked, not others in the same batch. Where they are few, and the store can look rows up, only their
        vectors leave it.

        Raises
        ------
        ParameterError
            Positions that are not sorted, or out of range.
        ChangedSourceError
            A row that is looked up is not there any more.
        BadVectorsError
            As for `batches`.
        """
        return selected(self, rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the rows at `rows` (sorted positions) in float32, shape (len(rows), dim)."""
        out = self._room(len(rows))
        for place, vectors in self.select(rows):
            out[place] = vectors
        return out

    def _room(self, rows: int) -> np.ndarray:
        try:
            return np.empty((rows, self.stated_space.dim), np.float32)
        except (MemoryError, ValueError) as e:
            raise CollectionError(f"{self.name}: {rows:,} rows do not fit into memory.") from e

    def id_reader(self) -> pa.RecordBatchReader:
        """All ids with their positions, as a stream of columns ``id`` and ``row``."""
        schema = pa.schema([("id", self.id_type), ("row", pa.int64())])

        def stream() -> Iterator[pa.RecordBatch]:
            for batch in self._read(1 << 16, payload=False, vectors=False, row_filter=None, validate=False):
                rows = pa.array(np.arange(batch.start, batch.start + len(batch)))
                yield pa.record_batch([batch.ids, rows], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, stream())

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All ids (int64, or object for strings) and all vectors (float32): for collections that fit into memory."""
        ids, vectors = [], self._room(len(self))
        for batch in self.batches():
            ids.append(batch.ids)
            vectors[batch.start : batch.start + len(batch)] = batch.vectors
        return pa.chunked_array(ids, self.id_type).to_numpy(), vectors

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {len(self):,} rows of {self.stated_space})"


class _Source(Protocol):
    @property
    def name(self) -> str: ...
    def check_unchanged(self) -> None: ...
    def fingerprint(self) -> str: ...


def check_content(source: _Source, content: str) -> None:
    """Check, after reading all rows, that a source still has the fingerprint `content` that it had at the beginning.

    Raises
    ------
    ChangedSourceError
    """
    source.check_unchanged()
    if getattr(source, "compared_fingerprint", None) == content:
        return  # hashing large files twice would take as long as copying them
    try:
        found = source.fingerprint()
    except (EmbridgeError, OSError) as e:
        raise ChangedSourceError.of(source.name, f"it cannot be read any more ({e})") from e
    if found != content:
        raise ChangedSourceError.of(source.name, "its content differs")
