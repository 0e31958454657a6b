"""Dataset folders as `datasets.Dataset.save_to_disk` of Hugging Face writes them: Arrow stream files, listed in ``state.json``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import fs

from embridge.errors import ChangedSourceError, CollectionError, EmbridgeError, MissingFileError, UnreadableFileError
from embridge.files import fingerprint
from embridge.stores.arrow import ArrowCollection
from embridge.stores.locations import file_identity
from embridge.stores.parquet.metadata import read_space
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Space

STATE = "state.json"


def is_dataset(path: str) -> bool:
    """True for the folder of a dataset, or of a dictionary of datasets."""
    return any(os.path.isfile(os.path.join(path, name)) for name in (STATE, "dataset_dict.json"))


class DatasetCollection(ArrowCollection):
    """Rows of a dataset folder: ``npy:///path/folder?id=doc_id&vector=embedding``."""

    kind = "npy"

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._folder = location.uri, location.path.rstrip("/")
        location.check_options("id", "vector")
        self._paths = self._listed()
        self._identities = self._look()
        schemas = [self._open(path)[0] for path in self._paths]
        if other := next((i for i, schema in enumerate(schemas) if not schema.equals(schemas[0])), 0):
            raise CollectionError(f"{self.name} has files of different columns: {self._paths[0]!r} and {self._paths[other]!r}.")
        self._rows = sum(self._open(path)[1] for path in self._paths)
        columns = location.column("id", id_column, "id"), location.column("vector", vector_column, "vector")
        self._describe(schemas[0], columns, space, known=read_space(schemas[0], self.name, columns[1]))

    def _listed(self) -> list[str]:
        """The data files that the folder's state names."""
        path = os.path.join(self._folder, STATE)
        if not os.path.isfile(path):
            splits = ", ".join(entry.name for entry in os.scandir(self._folder) if entry.is_dir())
            raise CollectionError(f"{self.name} holds several datasets: {splits}. Hint: name the folder of one.")
        try:
            with open(path, "rb") as file:
                state = json.load(file)
            names, chosen = [entry["filename"] for entry in state["_data_files"]], state.get("_indices_data_files")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
            raise UnreadableFileError.at(path, "the state of a dataset", e) from e
        if chosen:
            raise CollectionError(
                f"{self.name} keeps a selection or another order of its rows apart from them, which embridge does not read. "
                "Hint: dataset.flatten_indices().save_to_disk(FOLDER)."
            )
        if any(not isinstance(name, str) or os.path.basename(name) != name for name in names) or not names:
            raise UnreadableFileError.at(path, "the state of a dataset", "it names no files, or files outside its folder")
        return [os.path.join(self._folder, name) for name in names]

    def _open(self, path: str) -> tuple[pa.Schema, int]:
        """Schema and rows of a file; mapped, so that values are not read."""
        with _reading(path), pa.memory_map(path) as source, pa.ipc.open_stream(source) as stream:
            return stream.schema, sum(batch.num_rows for batch in stream)

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        self.check_unchanged()
        for path in self._paths:
            with _reading(path), pa.memory_map(path) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield batch.select(columns)

    def __len__(self) -> int:
        return self._rows

    @property
    def files(self) -> list[str]:
        return [self._folder, *self._paths]

    def fingerprint(self) -> str:
        try:
            return fingerprint(*self._paths)
        except FileNotFoundError as e:
            raise ChangedSourceError.of(self.name, "a file is no longer there") from e

    def check_unchanged(self) -> None:
        if self._look() != self._identities:
            raise ChangedSourceError.of(self.name, "size or time of a file differs, or it is another file")

    def _look(self) -> list[tuple[object, ...]]:
        try:
            return [file_identity(fs.LocalFileSystem(), path) for path in self._paths]
        except OSError:
            return []


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except EmbridgeError:
        raise
    except FileNotFoundError as e:
        raise MissingFileError.at(path) from e
    except (pa.ArrowException, OSError, ValueError) as e:
        raise UnreadableFileError.at(path, "Arrow", e) from e
