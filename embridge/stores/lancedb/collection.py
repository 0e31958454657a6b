"""Rows of a table of LanceDB at one version."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from embridge.arrays import as_vectors
from embridge.errors import CollectionError, EmbridgeError, MissingFileError, OutputError, ParameterError, UnreadableFileError
from embridge.files import writing as writing_to
from embridge.stores.arrow import ArrowCollection
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.in_place import MigrationNote, note_to_open
from embridge.stores.store import check_finished
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Hits, Metric, Space

FORM = "lancedb:///path#table"
DISTANCE = "_distance"  # the column of distances in the results of a search
NOTE = "embridge"  # key in the metadata of the vector column
CAPABILITIES = Capabilities(
    keeps_repeated_ids=True,
    has_snapshot=True,
    supports_second_vector=True,
    dtypes=("float32", "float16"),
    in_place_modes=("column",),
    finds_missing=True,
)


class LanceCollection(ArrowCollection):
    """Rows of a table at the version that was the latest when it was opened: ``lancedb:///path?id=id&vector=vector#table``."""

    kind = "lancedb"
    capabilities = CAPABILITIES
    fetches = opens_further = True

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._location = location.uri, location
        location.check_options("id", "vector")
        with reading(self.path):
            table = open_table(location)
            self._version, schema = table.version, table.schema
            written = next(entry for entry in table.list_versions() if entry["version"] == self._version)
            self._mark = f"{os.path.realpath(location.path)} {location.part} {self._version} {written['timestamp']}"
            self._rows = table.count_rows()
        note, name = note_to_open(notes_of(schema, self.path), location, vector_column, "vector")
        check_finished(note, self.name)
        columns = location.column("id", id_column, note.columns["id"] if note else "id"), name
        with reading(location.uri):
            metric = metric_of(table, columns[1]) if columns[1] in schema.names else None
        self._describe(schema, columns, space, note=note, metric=metric)

    def _pinned(self) -> Any:
        """The table at the version that was opened; a handle of its own, which nothing else can move."""
        table = open_table(self._location)
        table.checkout(self._version)
        return table

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        with reading(self._location.uri):
            for batch in self._pinned().search().select(columns).to_batches(batch_rows):
                yield batch.select(columns)

    def _fetch(self, ids: pa.Array) -> Batch:
        values = ", ".join(f"'{i}'" if isinstance(i, str) else str(i) for i in map(_escaped, ids.to_pylist()))
        columns = [self.id_column, self.vector_column]
        with reading(self._location.uri):
            query = self._pinned().search().where(f"`{self.id_column}` IN ({values})").select(columns)
            return self._gathered(batch.select(columns) for batch in query.to_batches(len(ids)))

    def __len__(self) -> int:
        return self._rows

    @property
    def files(self) -> list[str]:
        return [folder_of(self._location)]

    def fingerprint(self) -> str:
        """Of the version of the table, which LanceDB never changes."""
        return hashlib.blake2b(self._mark.encode(), digest_size=16).hexdigest()

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The k nearest rows, through the table's vector index where it has one (see `Searchable`).

        The index chooses the rows. Their scores are exact: those of a quantized index would be off by its loss.

        Raises
        ------
        CollectionError
            The table has a column of the name that LanceDB gives to distances.
        """
        if DISTANCE in self._schema.names:
            raise CollectionError(
                f"{self.name} has a column {DISTANCE!r}, under which LanceDB returns distances. "
                "Hint: rename it, or search without the index (embridge search --exact)."
            )
        metric = self.stated_space.metric
        rows = np.ascontiguousarray(as_vectors(queries, self.stated_space.dim, "queries"), np.float32)
        ids = np.full((len(rows), k), None if pa.types.is_string(self.id_type) else -1, object)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        with reading(self._location.uri):
            table = self._pinned()
            for i, query in enumerate(rows):
                found = table.search(query, vector_column_name=self.vector_column).distance_type(metric.value).limit(k)
                held = found.refine_factor(1).select([self.id_column, DISTANCE]).to_arrow()
                distances = held[DISTANCE].to_numpy()
                ids[i, : len(held)] = held[self.id_column].to_pylist()
                scores[i, : len(held)] = -distances if metric == Metric.L2 else 1 - distances
        return Hits(ids if pa.types.is_string(self.id_type) else ids.astype(np.int64), scores)


def folder_of(location: Location) -> str:
    """The folder of a table."""
    return os.path.join(location.path, f"{location.part}.lance")


def open_table(location: Location) -> Any:
    """The table that a URI names, at its latest version."""
    if location.host or not location.path or not location.part:
        raise ParameterError(f"{location.uri!r} does not name a local table. Hint: write {FORM}.")
    if not os.path.isdir(folder_of(location)):  # connecting would create the folder
        raise MissingFileError.at(folder_of(location))
    return connected(location).open_table(location.part)


def connected(location: Location) -> Any:
    """The database of a table, with 64 MiB for metadata: by default LanceDB fills 1 GiB with that of past versions."""
    return lancedb.connect(location.path, session=lancedb.Session(metadata_cache_size_bytes=64 << 20))


def _escaped(value: str | int) -> str | int:
    return value.replace("'", "''") if isinstance(value, str) else value


def notes_of(schema: pa.Schema, where: str) -> dict[str, str | bytes | None]:
    """What is kept with each column; a migration at the stage that the columns are in, since renaming is a commit of its own."""
    texts: dict[str, str | bytes | None] = {c.name: (c.metadata or {}).get(NOTE.encode()) for c in schema}
    for column, text in list(texts.items()):
        note = MigrationNote.loads(text, where)
        if note is not None and note.stage in ("ready", "live"):
            stage = "ready" if column == note.into else "live" if note.aside in texts else "finished"
            texts[column] = note.at(stage).dumps()
    return texts


def metric_of(table: Any, column: str) -> Metric | None:
    """The metric of the index over a column of vectors; None where it has none."""
    for index in table.list_indices():
        if column in index.columns and (stats := table.index_stats(index.name)) is not None and stats.distance_type:
            return Metric(stats.distance_type)
    return None


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn errors of LanceDB into errors of embridge."""
    try:
        yield
    except EmbridgeError:
        raise
    except Exception as e:  # LanceDB raises RuntimeError, ValueError and OSError alike
        raise UnreadableFileError.at(where, "a LanceDB table", str(e).split(", /")[0]) from e


@contextlib.contextmanager
def writing(where: str) -> Iterator[None]:
    """As `reading`, for commits."""
    try:
        with writing_to(where):
            yield
    except EmbridgeError:
        raise
    except Exception as e:
        raise OutputError(f"{where!r} cannot be written: {str(e).splitlines()[0]}") from e
