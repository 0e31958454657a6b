"""Writes an ``.npy`` file with its ids and payload in a Parquet file beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import InterruptedOutputError
from embridge.files import sync_folder, whole_or_absent, writing
from embridge.stores.batch import Batch
from embridge.stores.parquet.metadata import COLUMNS_KEY, LINEAGE_KEY, PLAN_KEY, SPACE_KEY, further_space_key
from embridge.stores.store import Layout, Writer

_NOTE, _ROWS = "note.json", "rows"


def partial_folder(vectors: str) -> Path:
    """Where an unfinished array is written."""
    return Path(f"{vectors}.partial")


class NpyWriter(Writer):
    """Appends rows to ``VECTORS.partial``; `finish` gives the vectors and the ids their names.

    Parameters
    ----------
    vectors, ids : str
        Paths of the two files.
    layout : Layout
        With the cursor of an unfinished array, which continues after its rows.
    """

    def __init__(self, vectors: str, ids: str, layout: Layout) -> None:
        self._target, self._ids, self._layout = Path(vectors), Path(ids), layout
        self._folder = partial_folder(vectors)
        self._dtype = np.dtype(layout.dtype)
        self._schema = pa.schema([pa.field(layout.id_column, layout.id_type, False), *layout.payload_schema])
        self._written = 0 if layout.cursor is None else layout.cursor.written
        with writing(vectors):
            if not self._written:
                self._folder.mkdir(exist_ok=True)
                self._put_note(layout.note(layout.cursor))
            self._rows = self._folder / _ROWS
            self._file = open(self._rows, "r+b" if self._written else "w+b", buffering=0)  # noqa: SIM115 (closed by `close`)
            self._put_header()
            size = self._file.tell() + self._written * layout.space.dim * self._dtype.itemsize
            if os.fstat(self._file.fileno()).st_size < size:
                raise InterruptedOutputError.altered(str(self._rows), f"it holds fewer than {self._written:,} rows")
            self._file.truncate(size)  # rows that no note counts
            self._file.seek(size)

    def write(self, batch: Batch, note: str) -> None:
        with writing(self._target), np.errstate(over="ignore"):
            columns = [batch.ids, *batch.payload.columns]
            pq.write_table(pa.table(columns, schema=self._schema), self._part(self._written))
            view = memoryview(np.ascontiguousarray(batch.vectors, self._dtype)).cast("B")
            while view:
                view = view[self._file.write(view) :]
            os.fdatasync(self._file.fileno())
            self._put_note(note)
            self._written += len(batch)

    def finish(self, note: str) -> None:
        values = json.loads(note)
        keys = ((SPACE_KEY, "space"), (COLUMNS_KEY, "columns"), (LINEAGE_KEY, "lineage"))
        metadata = {key: json.dumps(values[name]) for key, name in keys}
        metadata |= {PLAN_KEY: json.dumps({"plan": values.get("plan", "")})}
        metadata |= {further_space_key(column): json.dumps(space) for column, space in values["payload_spaces"].items()}
        schema = self._schema.with_metadata(metadata)
        parts = sorted(self._folder.glob("*.parquet"))
        with whole_or_absent(self._ids) as temporary, pq.ParquetWriter(temporary, schema) as file:
            for part in parts:
                if int(part.stem) < self._written:
                    file.write_table(pq.read_table(part, partitioning=None).cast(schema))
        with writing(self._target):
            self._put_header()
            os.fsync(self._file.fileno())
            os.replace(self._rows, self._target)
            shutil.rmtree(self._folder)
            sync_folder(self._target.absolute().parent)

    def close(self) -> None:
        self._file.close()

    def _put_header(self) -> None:
        """Write the header, whose size does not depend on the number of rows."""
        self._file.seek(0)
        shape = (self._written, self._layout.space.dim)
        np.lib.format.write_array_header_1_0(self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": shape})

    def _part(self, first: int) -> Path:
        """The file of ids and payload of the rows from `first` on."""
        return self._folder / f"{first:015}.parquet"

    def _put_note(self, note: str) -> None:
        with whole_or_absent(self._folder / _NOTE) as temporary:
            temporary.write_text(note)


def read_note(vectors: str, ids: str) -> str | None:
    """The note of an unfinished array; None where there is none, or a writer was killed when only its folder was left to remove."""
    folder = partial_folder(vectors)
    if os.path.isfile(vectors) and os.path.isfile(ids) and not (folder / _ROWS).exists():
        return None
    path = folder / _NOTE
    return path.read_text() if path.is_file() else None
