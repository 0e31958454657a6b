"""The contract of a store: open a collection, create one, write rows, search; what it can hold, as data."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from embridge.errors import BadIdsError, CollectionError, InterruptedOutputError, ParameterError, n_rows
from embridge.stores.base import Collection
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.uri import Location, beside
from embridge.types import DeclaredSpace, Hits, Metric, Space

if TYPE_CHECKING:
    from embridge.stores.in_place import InPlace


@dataclass(frozen=True)
class Cursor:
    """How far an unfinished collection was written.

    Attributes
    ----------
    plan : str
        Fingerprint of everything that determines its rows; only a run with the same plan may continue.
    after : str, int or None
        Id of the last row of the source that is done; None before the first.
    written, skipped : int
        Rows written, and bad rows left out.
    """

    plan: str
    after: str | int | None = None
    written: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Layout:
    """What a collection holds: what `Store.create` is given, and what the store keeps with it as text.

    Attributes
    ----------
    space : Space
    id_type : pyarrow.DataType
        string or int64.
    payload_schema : pyarrow.Schema
        The other columns.
    id_column, vector_column : str
    dtype : {"float32", "float16"}
    payload_spaces : dict of str to Space
        Of vector columns in the payload.
    lineage : dict of str to str
        Fingerprints of its inputs.
    cursor : Cursor, optional
        None once all rows are written.
    plan : str
        See `Cursor`; it is kept with a finished collection too.
    """

    space: Space
    id_type: pa.DataType
    payload_schema: pa.Schema
    id_column: str = "id"
    vector_column: str = "vector"
    dtype: str = "float32"
    payload_spaces: dict[str, Space] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    cursor: Cursor | None = None
    plan: str = ""

    def named(self, location: Location) -> Layout:
        """The same with the columns that the options ``id`` and ``vector`` of a URI name."""
        id_column = location.options.get("id", self.id_column)
        return replace(self, id_column=id_column, vector_column=location.options.get("vector", self.vector_column))

    def note(self, cursor: Cursor | None) -> str:
        """The text that a store keeps with the collection, with this cursor."""
        columns = {"id": self.id_column, "vector": self.vector_column}
        others = {column: space.to_dict() for column, space in self.payload_spaces.items()}
        known = {"space": self.space.to_dict(), "columns": columns, "payload_spaces": others, "lineage": self.lineage}
        state = {"cursor": asdict(cursor)} if cursor is not None else {"plan": self.plan} if self.plan else {}
        return json.dumps({"embridge": 1, **known, **state})


def parse_note(text: str | bytes | None) -> dict[str, Any] | None:
    """The values of a text that embridge keeps in a store; None for any other text."""
    try:
        values = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and "embridge" in values else None


@dataclass(frozen=True)
class Note:
    """The text that embridge keeps with a collection in a store (`Layout.note`), read again.

    Attributes
    ----------
    space : Space
    columns : dict of str to str
        Names of the ``id`` and the ``vector`` column.
    lineage : dict of str to str
    cursor : Cursor, optional
        Of an unfinished collection.
    payload_spaces : dict of str to Space
        Of vector columns in the payload.
    plan : str
        Of the run that finished it; empty where it is not known.
    """

    space: Space
    columns: dict[str, str]
    lineage: dict[str, str]
    cursor: Cursor | None = None
    payload_spaces: dict[str, Space] = field(default_factory=dict)
    plan: str = ""

    @classmethod
    def loads(cls, text: str | bytes | None, where: str) -> Note | None:
        """Parse it; None where there is none, or a text that embridge did not write.

        Raises
        ------
        CollectionError
            It is damaged.
        """
        values = parse_note(text)
        if values is None or "migration" in values:
            return None
        try:
            cursor = None if (found := values.get("cursor")) is None else Cursor(**found)
            columns = {key: str(values["columns"][key]) for key in ("id", "vector")}
            lineage = {str(key): str(value) for key, value in values["lineage"].items()}
            spaces = {str(name): Space.from_dict(space) for name, space in values.get("payload_spaces", {}).items()}
            return cls(Space.from_dict(values["space"]), columns, lineage, cursor, spaces, str(values.get("plan", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CollectionError(f"The note of embridge in {where} is damaged: {e}. Note: {str(text)[:200]}") from e


def check_finished(note: Note | None, name: str) -> None:
    """Refuse to read a collection that is not written to its end.

    Raises
    ------
    InterruptedOutputError
    """
    if note is not None and note.cursor is not None:
        raise InterruptedOutputError(
            f"{name} is unfinished: {n_rows(note.cursor.written)} are written. Hint: repeat the run that writes it with --resume."
        )


class Writer(ABC):
    """Rows on their way into a collection of a store."""

    @abstractmethod
    def write(self, batch: Batch, note: str) -> None:
        """Write rows, and the note with the cursor that counts them: both are safe when this returns.

        The note is written in the transaction of the rows, or after the store acknowledged them. Idempotent by id: a resumed run
        writes rows again whose note was lost, and the result has each once.
        """

    @abstractmethod
    def finish(self, note: str) -> None:
        """Replace the note by one without a cursor, once all rows are written; a reader may open the collection from then on."""

    def close(self) -> None:  # noqa: B027 (most writers hold nothing)
        """Release connections and files; the collection stays as it is."""


@runtime_checkable
class Searchable(Protocol):
    """A collection whose store has an index of its own."""

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The k nearest rows by the store's own engine.

        Parameters
        ----------
        queries : ndarray of shape (n_queries, dim), float32
            In the space of the collection.
        k : int, default 10

        Returns
        -------
        Hits
        """
        ...


class Store(ABC):
    """One kind of store, registered as an entry point of the group ``embridge.stores`` under the scheme of its URIs.

    Attributes
    ----------
    form : str
        An example of its URIs, for messages.
    """

    form: str

    @abstractmethod
    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> Collection:
        """Open a collection for reading, as `embridge.open`."""

    @abstractmethod
    def capabilities(self, metric: Metric) -> Capabilities:
        """What a new collection of this metric can do."""

    def refuses(self, field: pa.Field) -> str | None:
        """Why a payload column cannot be held; None where it can."""
        return None

    def note(self, location: Location) -> Note | None:
        """The note of an existing collection, finished or not.

        Raises
        ------
        MissingFileError
            There is no collection.
        ParameterError
            The store is only read.
        """
        raise ParameterError(f"{location.uri!r} can only be read; embridge does not write {location.scheme}://.")

    def places(self, location: Location) -> set[str]:
        """What an existing collection is kept in, named alike however its URI is written: files, or a collection of a server."""
        return {location.uri}

    def create(self, location: Location, layout: Layout) -> Writer:
        """Create an empty collection with the note of `layout` and its cursor."""
        raise NotImplementedError

    def resume(self, location: Location, layout: Layout) -> Writer:
        """Continue the unfinished collection whose note has `layout.cursor`."""
        raise NotImplementedError

    def drop(self, location: Location) -> None:
        """Remove a collection that embridge wrote."""
        raise NotImplementedError

    def beside(self, location: Location) -> Location:
        """Where a collection is written that will replace an existing one, until it is finished."""
        return Location.parse(beside(location.uri, "{}_replacement".format, without=()))

    def replace(self, location: Location, by: Location) -> None:
        """Give the finished collection at `by` (see `beside`) the place of another one, which is removed.

        In one step where the store can. Else the new collection is whole at one of the two places all the time, and a second call
        completes what a killed one began, also where there is no other one any more.
        """
        raise NotImplementedError

    def index_like(self, location: Location, other: Collection) -> None:  # noqa: B027 (most stores index by themselves, or not at all)
        """Build the indexes that another collection of the store has over its vectors over those of this one too.

        The main vectors of `other`, and its old ones where it has them, name the indexes of the main and of the old vectors.
        """

    def in_place(self, location: Location) -> InPlace:
        """The steps of a migration in place of an existing collection; see `Capabilities.in_place_modes`."""
        raise ParameterError(
            f"{location.uri!r} cannot be migrated in place. Hint: convert it into a new collection: embridge convert SRC MAP OUT."
        )

    def check(self, location: Location, layout: Layout) -> None:
        """Refuse, before anything is written, what the store cannot hold.

        Raises
        ------
        CollectionError, BadIdsError, ParameterError
        """
        held = self.capabilities(layout.space.metric)
        if str(layout.id_type) not in held.id_types:
            raise BadIdsError(
                f"{location.uri!r} holds ids of type {' or '.join(held.id_types)}, and the source has {layout.id_type}. "
                "Hint: cast the id column."
            )
        if layout.space.metric not in held.metrics:
            raise ParameterError(f"{location.uri!r} has no metric {layout.space.metric}. Metrics: {', '.join(held.metrics)}.")
        if layout.dtype not in held.dtypes:
            raise ParameterError(f"{location.uri!r} holds vectors of {' or '.join(held.dtypes)}, not of {layout.dtype}.")
        for column in layout.payload_schema:
            if column.name in (layout.id_column, layout.vector_column):
                raise CollectionError.reserved_column(f"{location.uri!r}", column.name)
            if reason := self.refuses(column):
                raise CollectionError(
                    f"{location.uri!r} cannot hold the column {column.name!r} ({column.type}): {reason}. Hint: drop or cast it."
                )
