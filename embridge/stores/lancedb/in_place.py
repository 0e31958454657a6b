"""A second vector column in a table of LanceDB: added, merged in by id, indexed, swapped by renaming, removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lancedb.index
import numpy as np
import pyarrow as pa

from embridge.errors import CollectionError, OutputExistsError
from embridge.stores.arrow import ArrowCollection
from embridge.stores.batch import Batch
from embridge.stores.ids import check_unique
from embridge.stores.in_place import InPlace, MigrationNote, Preview, find_migration
from embridge.stores.lancedb.collection import CAPABILITIES, NOTE, LanceCollection, notes_of, open_table, reading, writing
from embridge.stores.uri import Location
from embridge.types import Space


class LanceRows(ArrowCollection):
    """Ids and one vector column of the rows of a version for which a condition holds; the payload is another column, if any."""

    kind = "lancedb"
    capabilities = CAPABILITIES
    seeks = True  # rows that were written do not fulfil the condition any more

    def __init__(self, location: Location, table: Any, columns: list[str], space: Space, where: str, rows: int) -> None:
        self.path, self._location, self._where, self._rows = location.uri, location, where, rows
        self._version = table.version
        self._describe(pa.schema([table.schema.field(name) for name in columns]), (columns[0], columns[1]), space, known=space)

    def __len__(self) -> int:
        return self._rows

    def fingerprint(self) -> str:
        """None: these rows have no one state."""
        return ""

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        with reading(self._location.uri):
            table = open_table(self._location)
            table.checkout(self._version)
            for batch in table.search().where(self._where).select(columns).to_batches(batch_rows):
                yield batch.select(columns)


class LanceInPlace(InPlace):
    """Migrations in place of one table; every step is one commit, which others see whole or not at all."""

    def __init__(self, location: Location) -> None:
        self._location = location
        with reading(location.uri):
            self._table = open_table(location)

    def note(self) -> MigrationNote | None:
        with reading(self._location.uri):
            self._table.checkout_latest()
            texts = notes_of(self._table.schema, self._location.uri)
        return find_migration(texts, self._location.uri, self._location.options.get("vector"))

    def check(self, note: MigrationNote) -> Preview:
        with reading(self._location.uri):
            schema, rows, indexes = self._table.schema, self._table.count_rows(), self._indexes(note.name)
        for column in (note.into, note.aside):
            if column in schema.names:
                raise OutputExistsError(
                    f"{self._location.uri!r} already has a column {column!r}, which the migration needs. Hint: --into NAME."
                )
        check_unique(LanceCollection(self._location, space=note.old, id_column=note.id_column, vector_column=note.name))
        width = note.new.dim * np.dtype(note.dtype).itemsize
        steps = [
            f"Add the column {note.into!r} of {note.new.dim} {note.dtype} values, nullable, and keep the state in its metadata.",
            f"Fill it for {rows:,} rows in batches by id. Filled rows move to the end of the table, and are indexed again.",
            *(f"Build {index.index_type} over {note.into!r}, as over {note.name!r}." for index in indexes),
            f"At the cutover {note.name!r} is renamed {note.aside!r}, and {note.into!r} is renamed {note.name!r}, in one version.",
        ]
        old = note.old.dim * 4
        return Preview(tuple(steps), rows * (width + old))

    def start(self, note: MigrationNote) -> None:
        with writing(self._location.uri):
            if note.into in self._table.schema.names:
                self._keep(note)
            else:
                vectors = pa.list_(pa.from_numpy_dtype(np.dtype(note.dtype)), note.new.dim)
                self._table.add_columns(pa.field(note.into, vectors, metadata={NOTE: note.dumps()}))

    def old_rows(self, note: MigrationNote, *, missing: bool = False) -> LanceRows | None:
        where = f"{_quoted(note.old_name)} IS NOT NULL"
        if missing or note.stage == "filling":  # filled rows moved, so that no order could be continued
            where += f" AND {_quoted(note.new_name)} IS NULL" if note.new_name in self._table.schema.names else ""
        return self._rows(note, [note.id_column, note.old_name], note.old, where)

    def new_rows(self, note: MigrationNote) -> LanceRows | None:
        return self._rows(note, [note.id_column, note.new_name, note.old_name], note.new, f"{_quoted(note.new_name)} IS NOT NULL")

    def without_vector(self, note: MigrationNote) -> int:
        return self._count(f"{_quoted(note.old_name)} IS NULL AND {_quoted(note.new_name)} IS NULL")

    def _rows(self, note: MigrationNote, columns: list[str], space: Space, where: str) -> LanceRows | None:
        count = self._count(where)
        return LanceRows(self._location, self._table, columns, space, where, count) if count else None

    def _count(self, where: str) -> int:
        with reading(self._location.uri):
            self._table.checkout_latest()
            return self._table.count_rows(where)

    def write(self, batch: Batch, note: MigrationNote) -> int:
        schema = self._table.schema
        vectors = np.ascontiguousarray(batch.vectors, note.dtype).reshape(-1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=schema.field(note.into).type)
        ids = batch.ids.cast(schema.field(note.id_column).type)
        rows = pa.table([ids, column], names=[note.id_column, note.into])
        with writing(self._location.uri):
            done = self._table.merge_insert(note.id_column).when_matched_update_all().execute(rows)
            self._keep(note)
        return done.num_updated_rows

    def finish(self, note: MigrationNote) -> list[str]:
        remarks = []
        with writing(self._location.uri):
            self._table.optimize()  # the old index takes in the rows that moved
            there = [index.index_type for index in self._indexes(note.new_name)]
            for index in self._indexes(note.old_name):
                if index.index_type not in there:
                    self._table.create_index(note.new_name, config=_config(index, note))
                    remarks.append(
                        f"Built {index.index_type} over {note.new_name!r}, with the settings of that over {note.old_name!r}; "
                        "the number of its partitions is LanceDB's own."
                    )
            self._keep(note)
        return remarks or [f"{note.old_name!r} has no index that {note.new_name!r} lacks."]

    def swap(self, note: MigrationNote, *, missing: int = 0) -> list[str]:
        now = self.note()
        if now is None or not now.is_open:
            raise CollectionError(f"The migration of {self._location.uri!r} has no old vectors any more.")
        forth = {note.name: note.aside, note.into: note.name}
        names = forth if note.is_live else {note.name: note.into, note.aside: note.name}
        with writing(self._location.uri):
            if now.is_live != note.is_live:
                # Rows that are written from now on have no vector in the column that goes out of use.
                self._table.alter_columns(*({"path": a, "rename": b, "nullable": True} for a, b in names.items()))
            self._keep(note)
        parked = note.aside if note.is_live else note.into
        return [f"Rows that are written from now on have no vector in {parked!r}."]

    def drop(self, note: MigrationNote) -> None:
        with writing(self._location.uri):
            if (gone := note.old_name if note.is_live else note.into) in self._table.schema.names:
                self._table.drop_columns([gone])
            if note.is_live:
                self._keep(note.at("finished"))

    def _indexes(self, column: str) -> list[Any]:
        """The vector indexes over a column."""
        return [i for i in self._table.list_indices() if i.columns == [column] and i.index_type.startswith("Ivf")]

    def _keep(self, note: MigrationNote) -> None:
        self._table.update_field_metadata({"path": note.new_name, "metadata": {NOTE: note.dumps()}})


def _config(index: Any, note: MigrationNote) -> Any:
    """The configuration of an index like another, for vectors of another width."""
    details = index.index_details
    settings: dict[str, Any] = {"distance_type": str(details["metric_type"]).lower()}
    if note.new.metric != note.old.metric:
        settings["distance_type"] = note.new.metric.value
    if "hnsw" in details:
        settings |= {"m": details["hnsw"]["max_connections"], "ef_construction": details["hnsw"]["construction_ef"]}
    compression = details.get("compression", {})
    if compression.get("type") == "pq":
        width = note.old.dim // compression["num_sub_vectors"]
        settings |= {"num_bits": compression["num_bits"]}
        settings |= {"num_sub_vectors": note.new.dim // width} if width and note.new.dim % width == 0 else {}
    return getattr(lancedb.index, index.index_type)(**settings)


def _quoted(column: str) -> str:
    return "`" + column.replace("`", "``") + "`"
