"""The store ``npy://``: arrays on disk (``.npy``, ``.npz``) and dataset folders of Hugging Face."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlencode

import pyarrow.parquet as pq

from embridge.errors import EmbridgeError, MissingFileError, ParameterError, UnreadableFileError
from embridge.files import sync_folder, whole_or_absent, writing
from embridge.stores.base import Collection
from embridge.stores.capabilities import Capabilities
from embridge.stores.npy.collection import NpyCollection, ids_path
from embridge.stores.npy.dataset import DatasetCollection, is_dataset
from embridge.stores.npy.writer import NpyWriter, partial_folder, read_note
from embridge.stores.parquet.metadata import LINEAGE_KEY, PLAN_KEY, main_column, read_space, read_texts
from embridge.stores.store import Layout, Note, Store, Writer, check_finished
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space


class NpyStore(Store):
    """Arrays on disk."""

    form = "npy:///path/vectors.npy?ids=ids.parquet"

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> Collection:
        _check_path(location)
        if not os.path.exists(location.path):
            check_finished(Note.loads(read_note(location.path, ""), location.uri), repr(location.uri))
        kind = DatasetCollection if is_dataset(location.path) else NpyCollection
        return kind(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return Capabilities(keeps_repeated_ids=True, dtypes=("float32", "float16"))

    def note(self, location: Location) -> Note | None:
        vectors, ids = _outputs(location)
        if (text := read_note(vectors, ids)) is not None:
            return Note.loads(text, location.uri)
        if not os.path.lexists(vectors) and not os.path.lexists(ids):
            raise MissingFileError.at(vectors)
        if not os.path.isfile(ids) or (os.path.lexists(vectors) and not os.path.isfile(vectors)):
            return None
        try:
            schema = pq.read_schema(ids)
            column = main_column(schema, ids)
            space, lineage = read_space(schema, ids, column), read_texts(schema, LINEAGE_KEY, ids)
            plan = read_texts(schema, PLAN_KEY, ids).get("plan", "")
        except (EmbridgeError, OSError, ValueError):
            return None
        return None if space is None or not lineage or column in schema.names else Note(space, {}, lineage, plan=plan)

    def places(self, location: Location) -> set[str]:
        ids = ids_path(location) or f"{location.path}.ids.parquet"
        return {os.path.realpath(path) for path in (location.path, ids)}

    def create(self, location: Location, layout: Layout) -> Writer:
        return NpyWriter(*_outputs(location), layout)

    resume = create

    def beside(self, location: Location) -> Location:
        options = {name: _replacement(value) if name == "ids" else value for name, value in location.options.items()}
        query = f"?{urlencode(options, quote_via=quote)}" if options else ""
        return Location.parse(f"npy://{quote(_replacement(location.path))}{query}")

    def replace(self, location: Location, by: Location) -> None:
        (vectors, ids), (new_vectors, new_ids) = _outputs(location), _outputs(by)
        with whole_or_absent(Path(ids)) as temporary:
            shutil.copyfile(new_ids, temporary)
            if os.path.lexists(vectors):
                os.unlink(vectors)  # which would be read with ids of others
        with writing(vectors):
            os.replace(new_vectors, vectors)
            sync_folder(Path(vectors).absolute().parent)
            os.unlink(new_ids)
        shutil.rmtree(partial_folder(vectors), ignore_errors=True)  # of a run that was killed at its very end

    def in_place(self, location: Location) -> NoReturn:
        raise ParameterError(
            f"{location.uri!r} is not migrated in place: an array in a file has no room for second vectors, and those who read it "
            "would find half of it changed. Hint: embridge convert writes a new one, in another file or folder."
        )

    def drop(self, location: Location) -> None:
        for path in _outputs(location):  # vectors first: without their ids, they would be read with positions as ids
            if os.path.lexists(path):
                os.unlink(path)
        shutil.rmtree(partial_folder(location.path), ignore_errors=True)


def _replacement(path: str) -> str:
    folder, name = os.path.split(path)
    stem, dot, extension = name.partition(".")
    return os.path.join(folder, f"{stem}_replacement{dot}{extension}")


def _check_path(location: Location) -> None:
    if location.host or not location.path:
        raise ParameterError(f"{location.uri!r} names no local path. Hint: write three slashes: {NpyStore.form}.")


def _outputs(location: Location) -> tuple[str, str]:
    """The two files that are written.

    Raises
    ------
    ParameterError, UnreadableFileError
    """
    _check_path(location)
    location.check_options("ids", "id")
    ids = ids_path(location) or f"{location.path}.ids.parquet"
    if not location.path.endswith(".npy") or ids.endswith(".npy"):
        raise ParameterError(f"{location.uri!r} cannot be written. Hint: name files as in {NpyStore.form}.")
    folder = os.path.dirname(location.path) or "."
    if not os.path.isdir(folder):
        raise MissingFileError.at(folder)
    if os.path.isdir(location.path):
        raise UnreadableFileError.at(location.path, "an array", "it is a folder")
    return location.path, ids
