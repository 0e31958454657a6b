"""Collections of stores whose rows have JSON fields, and which have neither columns nor snapshots."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.arrays import as_vectors
from embridge.errors import ChangedSourceError, CollectionError, ParameterError, n_rows
from embridge.stores.batch import Batch
from embridge.stores.declared import DeclaredCollection
from embridge.stores.json_columns import JsonColumns, Row
from embridge.stores.memory import empty_payload
from embridge.stores.parquet.file import vectors_of
from embridge.stores.store import Layout, Note, check_finished
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Hits, Metric, Space

NOTE, SCHEMA = "embridge", "embridge_schema"  # keys in the metadata of a collection
_SAMPLE = 2048  # rows whose vectors and fields a fingerprint includes
_FETCHED = 256  # of them at a time
_QUERIES = 64  # of one request


def recorded(layout: Layout, note: str) -> dict[str, str]:
    """What embridge keeps in the metadata of a collection: the note, and the types of ids and payload."""
    schema = pa.schema([pa.field(layout.id_column, layout.id_type), *layout.payload_schema])
    return {NOTE: note, SCHEMA: JsonColumns(schema).dumps()}


class JsonCollection(DeclaredCollection):
    """Rows with an id, a vector and JSON fields.

    A store sets the attributes, and implements `_read`, `_count`, `_keys`, `_fields`, `_by_key` and `_nearest`.

    Attributes
    ----------
    columns : JsonColumns or None
        Of the fields, as embridge recorded them; None where it did not write the collection: then all rows are read once, without
        vectors, when the payload is first needed.
    ignored : tuple of str
        Fields that are no payload.
    lineage : dict of str to str
        Fingerprints of the inputs that it was made from.
    """

    columns: JsonColumns | None = None
    ignored: tuple[str, ...] = ()
    lineage: dict[str, str] = {}  # noqa: RUF012 (replaced, not changed)
    _further: dict[str, Space] = {}  # noqa: RUF012 (replaced, not changed)
    _location: Location
    _rows: int

    def _recall(self, metadata: Mapping[str, Any], *, is_flat: bool = False) -> tuple[Note | None, pa.DataType | None]:
        """Take over what embridge keeps in the metadata of the collection: its note, and the type of ids, None where it is unknown.

        Raises
        ------
        InterruptedOutputError, CollectionError
            It is unfinished, or holds no rows, or its note is damaged.
        """
        note = Note.loads(metadata.get(NOTE), self.name)
        check_finished(note, self.name)
        self._rows = self._count()
        if not self._rows:
            raise CollectionError.empty(self.name)
        if note is None or SCHEMA not in metadata:
            return note, None
        self.lineage = note.lineage
        whole = JsonColumns.loads(metadata[SCHEMA], self.name, is_flat=is_flat)
        if self._location.options.get("columns") != "inferred":
            self.columns = replace(whole, schema=whole.schema.remove(0))
        return note, whole.schema.field(0).type

    def _settle(
        self, space: Space | DeclaredSpace | str | None, note: Note | None, dim: int, metric: Metric | None, distance: object
    ) -> None:
        """Set the space of the vectors; `distance` is the store's name of its metric.

        Raises
        ------
        CollectionError
            It is none of embridge's.
        """
        if metric is None:
            raise CollectionError(f"{self.name} has the distance {distance!r}, which embridge does not know.")
        stated = note if note and note.columns["vector"] == self.vector_column else None
        self._further = stated.payload_spaces if stated else {}
        known = stated.space if stated else None
        self.index_metric = metric
        self._declare(space, known, dim, metric, normalized=not self.capabilities.keeps_lengths)

    @abstractmethod
    def _count(self) -> int:
        """Rows that the store has now."""

    @abstractmethod
    def _keys(self) -> Iterator[list[Any]]:
        """The store's own ids of all rows, in order."""

    @abstractmethod
    def _fields(self) -> Iterator[list[Row]]:
        """The fields of all rows."""

    @abstractmethod
    def _by_key(self, keys: list[Any]) -> dict[Any, tuple[Sequence[float] | None, Row]]:
        """Vector and fields of some rows by their keys."""

    @abstractmethod
    def _nearest(self, queries: np.ndarray, k: int) -> list[tuple[pa.Array, np.ndarray]]:
        """Ids and scores (see `Hits`) of the rows nearest to some queries."""

    @functools.cached_property
    def _json(self) -> JsonColumns:
        if self.columns is not None:
            return self.columns
        found = ([self._named(row) for row in rows] for rows in self._fields())
        return JsonColumns.infer(found)

    def _named(self, row: Row) -> Row:
        """The fields of a row that are payload; one with the name of the id or vector column is called ``payload_NAME``.

        Raises
        ------
        CollectionError
            There is a field of that name too.
        """
        named = {f"payload_{k}" if k in (self.id_column, self.vector_column) else k: row[k] for k in row if k not in self.ignored}
        if len(named) < sum(k not in self.ignored for k in row):
            raise CollectionError(f"{self.name} has fields {', '.join(map(repr, row))}, of which two would get the same name.")
        return named

    @property
    def payload_schema(self) -> pa.Schema:  # pyright: ignore[reportIncompatibleVariableOverride] (others know it when opened)
        return self._json.schema

    @property
    def payload_spaces(self) -> dict[str, Space]:
        return self._further

    def __len__(self) -> int:
        return self._rows

    def check_unchanged(self) -> None:
        self._check_count(self._count())

    def _check_count(self, rows: int) -> None:
        if rows != self._rows:
            raise ChangedSourceError.of(self.name, f"it had {n_rows(self._rows)}, and has {rows:,}")

    def fingerprint(self) -> str:
        """Of all ids, and of the vectors and fields of up to 2,048 rows, evenly spread; of all rows where there are no more.

        The store keeps no version, and reading all vectors would cost as much as a conversion.
        """
        digest, sample, seen = hashlib.blake2b(digest_size=16), [], 0
        step = -(-max(self._count(), 1) // _SAMPLE)
        for keys in self._keys():
            digest.update(json.dumps(keys).encode())
            sample += keys[-seen % step :: step]
            seen += len(keys)
        for start in range(0, len(sample), _FETCHED):
            keys = sample[start : start + _FETCHED]
            found = self._by_key(keys)
            if missing := next((key for key in keys if key not in found), None):
                raise ChangedSourceError.of(self.name, f"the row {missing!r} was removed")
            for key in keys:
                vector, fields = found[key]
                digest.update(b"" if vector is None else np.asarray(vector, np.float32).tobytes())
                digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The k nearest rows by the store's own index (see `Searchable`).

        Raises
        ------
        ParameterError
            The space was declared with another metric than that of the index.
        """
        if self.index_metric != (metric := self.stated_space.metric):
            raise ParameterError(
                f"The index of {self.name} ranks by {self.index_metric}, and its space was declared with {metric}. Hint: declare "
                f"it as {self.stated_space.name}:{self.index_metric}, or search without the index (embridge search --exact)."
            )
        is_text = pa.types.is_string(self.id_type)
        rows = np.ascontiguousarray(as_vectors(queries, self.stated_space.dim, "queries"), np.float32)
        ids = np.full((len(rows), k), None if is_text else -1, object)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        for start in range(0, len(rows), _QUERIES):
            for i, (found, held) in enumerate(self._nearest(rows[start : start + _QUERIES], k), start):
                ids[i, : len(found)], scores[i, : len(found)] = found.to_pylist(), held
        return Hits(ids if is_text else ids.astype(np.int64), scores)

    def _batch(
        self, start: int, ids: pa.Array, vectors: list[Any] | np.ndarray | None, rows: Sequence[Row] | None, *, validate: bool
    ) -> Batch:
        """Rows as a batch, without vectors or payload where they are None."""
        values = np.empty((len(ids), 0), np.float32) if vectors is None else self._vectors(vectors, start, validate=validate)
        if rows is not None and self.columns is None:
            rows = [self._named(row) for row in rows]
        payload = empty_payload(len(ids)) if rows is None else self._json.decode(rows, self.name, self.ignored)
        return Batch(start, ids, values, payload)

    def _vectors(self, rows: list[Any] | np.ndarray, start: int, *, validate: bool) -> np.ndarray:
        dim = self.stated_space.dim
        try:
            values = np.asarray(rows, np.float32)
        except (ValueError, TypeError):  # missing vectors, or of several widths
            values = np.empty(0)
        if values.shape == (len(rows), dim):
            return values
        return vectors_of(pa.array(list(rows), pa.list_(pa.float32())), dim, self.name, start, validate=validate)
