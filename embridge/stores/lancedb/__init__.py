"""The store ``lancedb://``: tables of LanceDB in a local folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import InterruptedOutputError, MissingDependencyError
from embridge.files import sync_folder
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.store import Layout, Note, Store, Writer
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space

try:
    import lancedb
except ImportError as error:
    raise MissingDependencyError.of("lancedb", "lancedb://", "lancedb") from error

from embridge.stores.lancedb.collection import (
    CAPABILITIES,
    DISTANCE,
    FORM,
    NOTE,
    LanceCollection,
    connected,
    folder_of,
    notes_of,
    open_table,
    reading,
    writing,
)  # fmt: skip
from embridge.stores.lancedb.in_place import LanceInPlace


class LanceWriter(Writer):
    """Adds rows to a table, and after each addition the note, which is a version of its own."""

    def __init__(self, location: Location, layout: Layout, table: Any) -> None:
        self._where, self._layout, self._table = location.uri, layout, table
        cursor = layout.cursor
        with writing(self._where):
            rows = table.count_rows()
            if cursor is not None and rows > cursor.written and table.version > 1:  # the note of the last addition is missing
                table.checkout(table.version - 1)
                table.restore()
                rows = table.count_rows()
        if cursor is not None and rows != cursor.written:
            fault = f"it has {rows:,} rows, and its note counts {cursor.written:,}"
            raise InterruptedOutputError.altered(self._where, fault)

    def write(self, batch: Batch, note: str) -> None:
        schema = _schema(self._layout)
        vectors = np.ascontiguousarray(batch.vectors, self._layout.dtype).reshape(-1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=schema.field(1).type)
        with writing(self._where):
            self._table.add(pa.record_batch([batch.ids, column, *batch.payload.columns], schema=schema))
            self.finish(note)

    def finish(self, note: str) -> None:
        with writing(self._where):
            self._table.update_field_metadata({"path": self._layout.vector_column, "metadata": {NOTE: note}})


class LanceStore(Store):
    """LanceDB in a local folder."""

    form = FORM

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> LanceCollection:
        return LanceCollection(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return CAPABILITIES

    def refuses(self, field: pa.Field) -> str | None:
        if field.name == DISTANCE:
            return "LanceDB cannot search a table with a column of this name"
        try:
            held = lancedb.connect("memory://").create_table("t", schema=pa.schema([field])).schema.field(0).type
        except Exception as e:  # LanceDB has no class of its own for a type it cannot hold
            return str(e).split(", /")[0].splitlines()[0]
        return None if _bare(held) == _bare(field.type) else f"it would come back as {held}"

    def note(self, location: Location) -> Note | None:
        with reading(location.uri):
            texts = notes_of(open_table(location).schema, location.uri).values()
        return next((note for text in texts if (note := Note.loads(text, location.uri)) is not None), None)

    def places(self, location: Location) -> set[str]:
        return {os.path.realpath(folder_of(location))}

    def create(self, location: Location, layout: Layout) -> Writer:
        with writing(location.uri):
            schema = _schema(layout)  # with the note, so that there is no table without one
            place = schema.get_field_index(layout.vector_column)
            schema = schema.set(place, schema.field(place).with_metadata({NOTE: layout.note(layout.cursor)}))
            table = connected(location).create_table(location.part, schema=schema)
            return LanceWriter(location, layout, table)

    def resume(self, location: Location, layout: Layout) -> Writer:
        with reading(location.uri):
            table = open_table(location)
        return LanceWriter(location, layout, table)

    def in_place(self, location: Location) -> LanceInPlace:
        return LanceInPlace(location)

    def replace(self, location: Location, by: Location) -> None:
        new, place = Path(folder_of(by)), Path(folder_of(location))
        old = place.with_suffix(".replaced")  # no name of a table
        with writing(location.uri):
            shutil.rmtree(old, ignore_errors=True)
            if place.exists():
                os.rename(place, old)
            os.rename(new, place)
            sync_folder(place.absolute().parent)
            shutil.rmtree(old, ignore_errors=True)

    def drop(self, location: Location) -> None:
        with writing(location.uri):
            connected(location).drop_table(location.part)


def _schema(layout: Layout) -> pa.Schema:
    vectors = pa.list_(pa.from_numpy_dtype(np.dtype(layout.dtype)), layout.space.dim)
    ids = pa.field(layout.id_column, layout.id_type, False)
    return pa.schema([ids, pa.field(layout.vector_column, vectors, False), *layout.payload_schema])


def _bare(kind: pa.DataType) -> pa.DataType:
    """A type without the names and the nullability of the items of lists, which LanceDB does not keep."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_bare(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_bare(kind.value_type))
    return pa.struct([(f.name, _bare(f.type)) for f in kind]) if pa.types.is_struct(kind) else kind
