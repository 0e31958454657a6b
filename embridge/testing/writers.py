"""Conformance tests for stores that are written. Subclass `StoreConformance`, define the fixture `new_uri`, and run pytest.

Examples
--------
>>> from embridge.stores.capabilities import Capabilities
>>> class TestMine(StoreConformance):
...     capabilities = Capabilities(id_types=("string",))
...
...     @pytest.fixture
...     def new_uri(self, tmp_path):
...         return lambda: f"mine://{tmp_path}#{uuid.uuid4().hex}"
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from embridge.arrays import unit
from embridge.conversion import copy
from embridge.errors import (
    ChangedSourceError,
    CollectionError,
    EmbridgeError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
)
from embridge.neighbors import top_k
from embridge.stores import open_collection
from embridge.stores.base import Collection
from embridge.stores.batch import Batch
from embridge.stores.id_types import normalize_ids
from embridge.stores.memory import MemoryCollection
from embridge.stores.registry import store_of
from embridge.stores.store import Cursor, Layout, Searchable, Store
from embridge.stores.uri import Location
from embridge.testing.in_place import InPlaceConformance
from embridge.testing.stored_rows import DIM, Make, N
from embridge.testing.stores import CollectionConformance
from embridge.types import Metric, Space

_PLAN = "a" * 32


class StoreConformance(CollectionConformance, InPlaceConformance):
    """Tests that every store passes which embridge writes; what is expected follows from `capabilities`.

    Attributes
    ----------
    payload : dict of str to list
        Columns that the store keeps with their types, `N` values each.
    unheld : tuple of pyarrow.Field
        Payload columns that it refuses.
    """

    payload: ClassVar[dict[str, Any]] = {
        "word": pa.array([f"word {i}" for i in range(N)]),
        "count": pa.array([None if i % 5 == 0 else i << 40 for i in range(N)], pa.int64()),
        "share": pa.array([i / 7 for i in range(N)], pa.float64()),
        "flag": pa.array([i % 2 == 0 for i in range(N)]),
    }
    unheld: ClassVar[tuple[pa.Field, ...]] = ()

    @pytest.fixture
    def new_uri(self) -> Callable[[], str]:
        """``new_uri()`` gives the URI of a collection that does not exist; subclasses override it."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture `new_uri`.")

    @pytest.fixture
    def make(self, new_uri: Callable[[], str]) -> Make:
        """Collections that the store's own writer writes."""

        def make(ids: list[Any], vectors: np.ndarray, space: Space, payload: Any = None) -> Collection:
            uri = new_uri()
            write(uri, ids, vectors, space, payload)
            return open_collection(uri)

        return make

    def layout(self, space: Space | None = None, payload: Any = None, cursor: Cursor | None = None) -> Layout:
        """A layout with the first kind of ids."""
        kind = pa.string() if self.capabilities.id_types[0] == "string" else pa.int64()
        schema = pa.schema([]) if payload is None else pa.table(payload).schema
        return Layout(space or self.space(), kind, schema, lineage={"source": "f" * 32}, cursor=cursor or Cursor(_PLAN))

    def test_capabilities_are_as_stated(self, make: Make, new_uri: Callable[[], str]) -> None:
        store, collection = _store(new_uri()), make(self.ids(), self.vectors(), self.space())
        assert store.capabilities(Metric.COSINE) == self.capabilities
        assert replace(collection.capabilities, dtypes=()) == replace(self.capabilities, dtypes=())
        assert collection.path is not None
        assert collection.kind in collection.path

    def test_a_store_keeps_space_and_lineage(self, new_uri: Callable[[], str]) -> None:
        uri = new_uri()
        write(uri, self.ids(), self.vectors(), self.space())
        note = _store(uri).note(Location.parse(uri))
        assert note is not None
        assert (note.space, note.lineage, note.cursor) == (self.space(), {"source": "f" * 32}, None)
        with pytest.raises(EmbridgeError, match="declared as"):
            open_collection(uri, space="another")

    def test_nothing_is_there_before(self, new_uri: Callable[[], str]) -> None:
        uri = new_uri()
        with pytest.raises(MissingFileError):
            open_collection(uri, space="any")
        with pytest.raises(MissingFileError):
            _store(uri).note(Location.parse(uri))
        mark = "&" if "?" in uri.partition("#")[0] else "?"
        base, hash_mark, part = uri.partition("#")
        with pytest.raises(ParameterError, match="unknown option 'colour'"):
            open_collection(f"{base}{mark}colour=blue{hash_mark}{part}", space="any")

    def test_payload_is_kept_with_its_types(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space(), self.payload)
        expected = pa.table(self.payload)
        assert collection.payload_schema.equals(expected.schema)
        found = pa.Table.from_batches([b.payload for b in collection.batches(payload=True)])
        order = np.argsort(expected["word"].to_pylist())
        there = np.argsort(found["word"].to_pylist())
        assert found.take(there).to_pylist() == expected.take(order).to_pylist()

    def test_columns_that_cannot_be_held_are_named_first(self, new_uri: Callable[[], str]) -> None:
        for column in self.unheld:
            uri = new_uri()
            layout = replace(self.layout(), payload_schema=pa.schema([column]))
            with pytest.raises(CollectionError, match=f"cannot hold the column '{column.name}'"):
                _store(uri).check(Location.parse(uri), layout)
        for column in ("id", "vector"):
            layout = replace(self.layout(), payload_schema=pa.schema([(column, pa.int64())]))
            with pytest.raises(CollectionError, match=f"already has a column '{column}'"):
                _store(new_uri()).check(Location.parse(new_uri()), layout)

    def test_lengths_are_kept_or_the_store_says_so(self, make: Make) -> None:
        vectors = self.vectors() * 3
        found = make(self.ids(), vectors, self.space())
        order = {i: n for n, i in enumerate(self.ids())}
        expected = vectors if found.capabilities.keeps_lengths else unit(vectors)
        for batch in found.batches():
            self.assert_close(batch.vectors, expected[[order[i] for i in batch.ids.to_pylist()]])

    def test_an_unfinished_collection_is_not_opened_and_can_be_continued(self, new_uri: Callable[[], str]) -> None:
        uri, ids, vectors = new_uri(), self.ids(), self.vectors()
        store, location, layout = _store(uri), Location.parse(uri), self.layout()
        writer = store.create(location, layout)
        cursor = Cursor(_PLAN, ids[39], 40, 0)
        writer.write(batch_of(ids[:40], vectors[:40]), layout.note(cursor))
        writer.close()
        with pytest.raises(InterruptedOutputError, match="unfinished"):
            open_collection(uri)
        note = store.note(location)
        assert note is not None
        assert note.cursor == cursor
        resumed = replace(layout, cursor=cursor)
        writer = store.resume(location, resumed)
        writer.write(batch_of(ids[40:], vectors[40:]), resumed.note(Cursor(_PLAN, ids[-1], N, 0)))
        writer.finish(resumed.note(None))
        writer.close()
        found = open_collection(uri)
        expected_ids, expected = self.expected(found, ids, vectors)
        assert found.read()[0].tolist() == expected_ids
        self.assert_close(found.read()[1], expected)

    def test_rows_whose_note_was_lost_are_there_once(self, new_uri: Callable[[], str]) -> None:
        """A run that is killed between rows and note, or before a transaction ends, writes these rows again."""
        uri, ids, vectors = new_uri(), self.ids(), self.vectors()
        store, location, layout = _store(uri), Location.parse(uri), self.layout()
        writer = store.create(location, layout)
        writer.write(batch_of(ids[:40], vectors[:40]), layout.note(first := Cursor(_PLAN, ids[39], 40, 0)))
        with pytest.MonkeyPatch.context() as patch:
            self.lose_the_next_note(writer, patch)
            with pytest.raises(KeyboardInterrupt):
                writer.write(batch_of(ids[40:70], vectors[40:70]), layout.note(Cursor(_PLAN, ids[69], 70, 0)))
        writer.close()
        note = store.note(location)
        assert note is not None
        assert note.cursor == first
        writer = store.resume(location, replace(layout, cursor=first))
        for start, stop in ((40, 70), (70, N)):
            writer.write(batch_of(ids[start:stop], vectors[start:stop]), layout.note(Cursor(_PLAN, ids[stop - 1], stop, 0)))
        writer.finish(layout.note(None))
        writer.close()
        assert sorted(open_collection(uri).read()[0].tolist()) == sorted(ids)

    def lose_the_next_note(self, writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the next writing of a note raise KeyboardInterrupt; a store says how."""
        raise NotImplementedError(f"{type(self).__name__} must override `lose_the_next_note`.")

    def test_a_collection_can_be_removed(self, new_uri: Callable[[], str]) -> None:
        uri = new_uri()
        write(uri, self.ids(), self.vectors(), self.space())
        _store(uri).drop(Location.parse(uri))
        with pytest.raises(MissingFileError):
            open_collection(uri)
        write(uri, self.ids()[:5], self.vectors()[:5], self.space())
        assert len(open_collection(uri)) == 5

    def test_a_collection_stays_until_its_replacement_is_whole(self, new_uri: Callable[[], str]) -> None:
        """Whether writing is interrupted, or the process ends before the exchange; the same run completes both."""

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        uri, ids, vectors = new_uri(), self.ids(), self.vectors()
        write(uri, ids[:9], vectors[:9], self.space())
        source = MemoryCollection(ids, vectors, self.space())
        with pytest.raises(KeyboardInterrupt):
            copy(source, uri, overwrite=True, progress=stop)
        assert sorted(open_collection(uri).read()[0].tolist()) == sorted(ids[:9])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(_store(uri)), "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                copy(source, uri, overwrite=True, resume=True)
        assert sorted(open_collection(uri).read()[0].tolist()) == sorted(ids[:9])
        with pytest.raises(OutputExistsError):
            copy(source, uri)
        assert copy(source, uri, resume=True).rows == N
        found = open_collection(uri)
        expected_ids, expected = self.expected(found, ids, vectors)
        assert found.read()[0].tolist() == expected_ids
        self.assert_close(found.read()[1], expected)
        for rows in (5, 6):
            copy(MemoryCollection(ids[:rows], vectors[:rows], self.space()), uri, overwrite=True)
            assert sorted(open_collection(uri).read()[0].tolist()) == sorted(ids[:rows])

    def test_a_collection_does_not_replace_itself(self, new_uri: Callable[[], str]) -> None:
        """Not under another form of its URI either: the old rows would be removed before they are read."""
        uri = new_uri()
        write(uri, self.ids(), self.vectors(), self.space())
        base, hash_mark, part = uri.partition("#")
        other = f"{base}{'&' if '?' in base else '?'}id=id{hash_mark}{part}"
        with pytest.raises(OutputExistsError, match="both input and output"):
            copy(open_collection(uri), other, overwrite=True)
        assert len(open_collection(uri)) == N

    def test_rows_added_while_reading_are_not_read_or_noticed(self, new_uri: Callable[[], str]) -> None:
        uri, ids, vectors = new_uri(), self.ids(), self.vectors()
        write(uri, ids[:60], vectors[:60], self.space())
        collection = open_collection(uri)
        before = collection.read()
        self.add(uri, ids[60:], vectors[60:])
        if self.capabilities.has_snapshot:
            np.testing.assert_array_equal(collection.read()[1], before[1])
            assert collection.fingerprint() == collection.fingerprint()
            assert len(open_collection(uri)) == N
            assert open_collection(uri).fingerprint() != collection.fingerprint()
        else:
            with pytest.raises(ChangedSourceError):
                collection.check_unchanged()

    @pytest.mark.parametrize("metric", list(Metric))
    def test_search_agrees_with_brute_force(self, make: Make, metric: Metric) -> None:
        space = self.space(metric)
        collection = make(self.ids(), self.vectors(), space)
        if not isinstance(collection, Searchable):
            pytest.skip("the store has no search")
        rng = np.random.default_rng(1)
        queries = rng.normal(size=(9, DIM)).astype(np.float32)
        found = collection.search(queries, 5)
        ids, vectors = collection.read()
        expected = top_k(queries, vectors, 5, metric)
        assert found.ids.tolist() == ids[expected.ids].tolist()
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
        many = collection.search(queries[:1], N + 3)
        assert len(many.row(0)[0]) == N

    def test_a_timestamp_is_a_timestamp_or_refused(self, make: Make, new_uri: Callable[[], str]) -> None:
        moment = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
        payload = {"at": pa.array([moment] * N, pa.timestamp("us", "UTC"))}
        if _store(new_uri()).refuses(pa.table(payload).schema.field(0)):
            return
        found = next(make(self.ids(), self.vectors(), self.space(), payload).batches(3, payload=True))
        assert found.payload.column(0).to_pylist() == [moment] * 3


def _store(uri: str) -> Store:
    store = store_of(uri)
    assert store is not None
    return store


def batch_of(ids: list[Any], vectors: np.ndarray, payload: pa.RecordBatch | None = None) -> Batch:
    """Rows as a batch."""
    if payload is None:
        payload = pa.RecordBatch.from_struct_array(pa.array([{}] * len(ids), pa.struct([])))
    return Batch(0, normalize_ids(pa.array(ids), "the rows"), vectors, payload)


def write(uri: str, ids: list[Any], vectors: np.ndarray, space: Space, payload: Any = None) -> None:
    """Write a collection by the writer of its store, in batches of 33 rows."""
    table = pa.table(payload or {}).combine_chunks()
    kind = pa.string() if isinstance(ids[0], str) else pa.int64()
    layout = Layout(space, kind, table.schema, lineage={"source": "f" * 32}, cursor=Cursor(_PLAN))
    store, location = _store(uri), Location.parse(uri)
    store.check(location, layout)
    with contextlib.closing(store.create(location, layout)) as writer:
        for start in range(0, len(ids), 33):
            part = slice(start, start + 33)
            others = table.slice(start, 33).to_batches()[0] if payload else None
            batch = batch_of(ids[part], vectors[part], others)
            writer.write(batch, layout.note(Cursor(_PLAN, ids[part][-1], start + len(batch), 0)))
        writer.finish(layout.note(None))
