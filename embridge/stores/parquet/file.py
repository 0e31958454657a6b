"""Reading Parquet files: footers, row groups, and list columns as arrays."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from embridge.errors import (
    BadVectorsError,
    ChangedSourceError,
    CollectionError,
    EmbridgeError,
    MissingFileError,
    UnreadableFileError,
    n_rows,
)
from embridge.stores.base import RowFilter
from embridge.stores.filesystems import check_no_secret, shown
from embridge.stores.locations import file_identity, find_files, fingerprint_files, is_remote, left_out_message
from embridge.stores.parquet import thrift

_LOG = logging.getLogger("embridge")
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_FOOTER = 16 << 20  # largest footer in bytes that is parsed in Python
_ROWS_A_BYTE = 100_000  # limit of rows per byte of a file; a file that claims more is damaged, and must not be allocated for


class ParquetFile:
    """One Parquet file: its footer is read when it is opened, its rows each time they are read."""

    def __init__(self, filesystem: fs.FileSystem, path: str, name: str, base: str | None) -> None:
        self._fs, self.path, self.name = filesystem, path, name
        self._identity = self._look()
        with self._reading() as file:
            self.schema: pa.Schema = file.schema_arrow
            names = self.schema.names
            # Metadata of single columns is not read: pyarrow crashes where it is encrypted.
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            rows = file.metadata.num_rows
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise CollectionError(f"{name} has several columns named {repeated[0]!r}. Hint: rename all but one.")
        if min(groups, default=0) < 0 or sum(groups) != rows or rows > _ROWS_A_BYTE * self._identity[0]:
            raise UnreadableFileError.at(self._shown, "Parquet", f"it states {rows:,} rows, which it cannot hold")
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self.rows = int(self._starts[-1])
        folders = path[len(base) :].split("/")[:-1] if base else []
        pairs = (f.split("=", 1) for f in folders if "=" in f.lstrip("="))
        self.partition = {unquote(key): None if value == _NULL_FOLDER else unquote(value) for key, value in pairs}

    @property
    def _shown(self) -> str:
        return self.name.strip("'")

    def _look(self) -> tuple[int, *tuple[object, ...]]:
        try:
            return file_identity(self._fs, self.path)
        except FileNotFoundError as e:
            raise MissingFileError.at(self._shown) from e
        except (pa.ArrowException, OSError, ValueError) as e:
            raise UnreadableFileError.at(self._shown, "Parquet", e) from e

    @property
    def group_starts(self) -> list[int]:
        """The position of the first row of each row group."""
        return self._starts[:-1].tolist()

    @property
    def stamp(self) -> tuple[object, object]:
        """Its size and the time of its last change when it was opened: what all machines that share it see alike."""
        return self._identity[0], self._identity[3 if len(self._identity) > 3 else 2]

    def check_unchanged(self) -> None:
        """Check that the file at the path is the one that was opened, by size, times and inode."""
        try:
            found = self._look()
        except MissingFileError as e:
            raise ChangedSourceError.of(self.name, "it is no longer there") from e
        if found != self._identity:
            raise ChangedSourceError.of(self.name, "its size, its time or the file itself differs")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[pq.ParquetFile]:
        try:
            # Buffered reading without pre-buffering: a row group of any size is read in pieces (DESIGN, section 6).
            with (
                self._fs.open_input_file(self.path) as source,
                pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as file,
            ):
                yield file
        except EmbridgeError:
            raise
        except FileNotFoundError as e:
            raise MissingFileError.at(self._shown) from e
        except MemoryError as e:
            raise UnreadableFileError.at(self._shown, "Parquet", "it needs more memory than there is") from e
        except Exception as e:  # pyarrow raises many types of errors on damaged files
            self.check_unchanged()  # a file that is being overwritten looks damaged
            raise UnreadableFileError.at(self._shown, "Parquet", e) from e

    def spans(
        self, columns: list[str], batch_rows: int, row_filter: RowFilter | None, offset: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches with the position of their first row, `offset` added; row groups without a wanted row are skipped.

        Raises
        ------
        UnreadableFileError, CollectionError
            The file is damaged, or holds invalid values (text that is not UTF-8).
        ChangedSourceError
            It is not the file that was opened.
        """
        self.check_unchanged()
        with self._reading() as file:
            for group in range(len(self._starts) - 1):
                start, stop = int(self._starts[group]) + offset, int(self._starts[group + 1]) + offset
                if row_filter is not None and not row_filter(start, stop):
                    continue
                for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
                    chosen = batch.select(columns)  # a name with dots can also select a leaf of another column
                    self._check_values(chosen, start - offset)
                    yield start, chosen
                    start += len(batch)
                if start != stop:
                    raise UnreadableFileError.at(self._shown, "Parquet", "it holds fewer or more rows than it states")
        self.check_unchanged()

    def _check_values(self, batch: pa.RecordBatch, start: int) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as e:
                rows = f"between rows {start:,} and {start + len(batch):,}"
                raise CollectionError(f"Column {name!r} of {self.name} holds invalid values {rows}: {e}") from e

    def values(self, column: str) -> int | None:
        """The number of values that the footer states for a list column (an empty row counts as one); None if it has none."""
        try:
            with self._fs.open_input_file(self.path) as source:
                end = source.size() - 8
                source.seek(end)
                length = int.from_bytes(source.read(4), "little")
                if length > _FOOTER:
                    return None
                source.seek(end - length)
                groups = thrift.loads(source.read(length))[4][1][1]
            chunks = [chunk[3][1] for group in groups for chunk in group[1][1][1]]
            return sum(chunk[5][1] for chunk in chunks if chunk[3][1][1][0] == column.encode())
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError):
            return None

    def batches(self, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        for _, batch in self.spans(columns, batch_rows, None, 0):
            yield batch


class ParquetFiles:
    """The Parquet files behind a path (`embridge.stores.locations.find_files`), opened.

    Attributes
    ----------
    path : str
        The path as given.
    base : str or None
        The folder that they were found under; None for one file.
    files : list of ParquetFile
        In the order of their names.
    """

    def __init__(self, path: str) -> None:
        found = find_files(path)
        if found.left_out:
            _LOG.warning(left_out_message(path, found))
        self.path, self._fs, self.base = path, found.filesystem, found.base
        self._given = path
        names = found.paths if found.base is not None else [shown(path)]
        self.files = [ParquetFile(self._fs, p, repr(n), self.base) for p, n in zip(found.paths, names, strict=True)]
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def values(self, column: str) -> int | None:
        """The sum of `ParquetFile.values` over all files."""
        found = [file.values(column) for file in self.files]
        return None if None in found else sum(filter(None, found))

    def one(self, file: ParquetFile) -> ParquetFiles:
        """The same with one of its files."""
        part = object.__new__(ParquetFiles)
        vars(part).update(vars(self) | {"path": file.path, "base": None, "files": [file], "_fingerprint": None})
        return part

    def __getstate__(self) -> tuple[str, list[tuple[object, object]]]:
        """What another process needs to open the same files: no open file, no row and no secret."""
        return self.location, [file.stamp for file in self.files]

    def __setstate__(self, state: tuple[str, list[tuple[object, object]]]) -> None:
        location, stamps = state
        self.__init__(location)
        if [file.stamp for file in self.files] != stamps:
            raise ChangedSourceError.of(repr(shown(location)), "other files are there, or their size or time differs")

    @property
    def location(self) -> str:
        """The path as another process can open it: absolute, or a URI.

        Raises
        ------
        ParameterError
            The URI holds credentials, which must not leave the process.
        """
        if not is_remote(self._given):
            return self.path if "://" in self.path else os.path.abspath(self.path)
        check_no_secret(self._given)
        scheme, _, query = self._given.partition("://")[0], *self._given.partition("?")[1:]
        return self.path if self.path == self._given else f"{scheme}://{quote(self.path)}{'?' if query else ''}{query}"

    def fingerprint(self) -> str:
        """Content hash."""
        try:
            found = fingerprint_files(self._fs, [file.path for file in self.files])
        except FileNotFoundError as e:
            raise ChangedSourceError.of(repr(shown(self.path)), "a file is no longer there") from e
        except (pa.ArrowException, OSError) as e:
            raise UnreadableFileError.at(shown(self.path), "Parquet", e) from e
        self._fingerprint = self._fingerprint or found
        return found

    @property
    def compared(self) -> str | None:
        """The fingerprint that `check_unchanged` compares with."""
        return self._fingerprint

    def check_unchanged(self) -> None:
        """Check that the files are those that were opened, with the same content.

        Size, times and inode of each are compared with those at its opening, the fingerprint with the first that was taken.

        Raises
        ------
        ChangedSourceError
        """
        for file in self.files:
            file.check_unchanged()
        if self.base is not None:
            there = find_files(self.path).paths
            known = [file.path for file in self.files]
            if other := sorted(set(there) ^ set(known)):
                how = "a file was added" if other[0] in there else "a file was removed"
                raise ChangedSourceError.of(repr(shown(self.path)), f"{how}, {other[0]!r}")
        if (first := self._fingerprint) is not None and self.fingerprint() != first:
            raise ChangedSourceError.of(repr(shown(self.path)), "its content differs, although its size and times are the same")


def row_lengths(column: pa.Array) -> np.ndarray:
    """The number of values in each row of a list column, shape (n,); -1 where it is null."""
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size)
    else:
        lengths = np.diff(column.offsets.to_numpy())
    if column.null_count:
        lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), -1, lengths)
    return lengths


def vectors_of(column: pa.Array, dim: int, name: str, start: int, *, validate: bool) -> np.ndarray:
    """Rows of a list column as an array of shape (n, dim), without a copy where every row has `dim` values."""
    lengths = row_lengths(column)
    wrong = np.flatnonzero(lengths != dim)
    if wrong.size and validate:
        row = int(wrong[0])
        if lengths[row] < 0:
            raise BadVectorsError(
                f"{name} has {n_rows(int((lengths < 0).sum()))} without a vector (null), the first at row "
                f"{start + row:,}. Hint: re-encode them."
            )
        raise BadVectorsError(
            f"{name} is ragged: vectors are {dim}-dimensional, but row {start + row:,} has {int(lengths[row])} values."
        )
    values = column.flatten()  # respects slices and leaves null rows out, unlike .values
    if values.null_count:
        if validate:
            raise BadVectorsError(f"{name} has null values within vectors, between rows {start:,} and {start + len(column):,}.")
        values = values.fill_null(float("nan"))
    flat = values.to_numpy(zero_copy_only=False)
    if not wrong.size:
        return flat.reshape(-1, dim)
    kept = np.repeat(lengths == dim, np.maximum(lengths, 0))
    out = np.full((len(column), dim), np.nan, flat.dtype)
    out[lengths == dim] = flat[kept].reshape(-1, dim)
    return out
