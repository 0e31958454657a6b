"""Conformance tests for migrations in place, which `StoreConformance` includes; they run where `capabilities` has a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embridge.arrays import unit
from embridge.conversion import verify
from embridge.conversion.in_place import cutover, drop_vector, migrate_in_place, preview_in_place, rollback
from embridge.conversion.in_place import migrate as engine
from embridge.errors import (
    CollectionError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    VerificationError,
)
from embridge.maps import LinearMap
from embridge.stores import open_collection
from embridge.stores.base import Collection
from embridge.stores.in_place import MigrationNote
from embridge.stores.registry import store_of
from embridge.stores.uri import Location
from embridge.testing.stored_rows import DIM, Make, N, StoredRows
from embridge.types import Space

NEW = 5  # dimensions of the new space
_BATCH = 33  # rows of a write


def a_map(source: Space, seed: int = 0, name: str = "renewed") -> LinearMap:
    """A map out of a space."""
    rng = np.random.default_rng(seed)
    return LinearMap(rng.normal(size=(NEW, source.dim)), np.zeros(NEW), source, Space(name, NEW, source.metric, source.normalized))


class InPlaceConformance(StoredRows):
    """The life of a migration in place: filled, interrupted, resumed, put into use, taken back, removed, abandoned."""

    def add(self, uri: str, ids: list[Any], vectors: np.ndarray) -> None:
        """Add rows to a finished collection, as another program would."""
        raise NotImplementedError(f"{type(self).__name__} must override `add`.")

    @pytest.fixture
    def collection(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> Collection:
        """The first 80 rows in a new collection, which is migrated in several writes."""
        if not self.capabilities.in_place_modes:
            pytest.skip("the store has no migrations in place")
        monkeypatch.setattr(engine, "rows_of_group", lambda *_: _BATCH)
        return make(self.ids()[:80], self.vectors()[:80], self.space())

    def check_old(self, uri: str, ids: list[Any], vectors: np.ndarray) -> None:
        """The old vectors are in use, and all there."""
        found = open_collection(uri)
        assert found.space == self.space()
        self._check(found, ids, vectors)

    def check_new(self, uri: str, ids: list[Any], vectors: np.ndarray, translation: LinearMap) -> None:
        """The new vectors are in use, and right."""
        found = open_collection(uri)
        assert (found.space.name, found.space.dim) == (translation.target.name, NEW)
        expected = translation.apply(vectors)
        self._check(found, ids, expected if self.capabilities.keeps_lengths else unit(expected), 1e-5)

    def _check(self, found: Collection, ids: list[Any], vectors: np.ndarray, tolerance: float = 0.0) -> None:
        read, values = found.read()
        place = {i: at for at, i in enumerate(ids)}
        assert sorted(read.tolist()) == sorted(ids)
        np.testing.assert_allclose(
            values, vectors[[place[i] for i in read.tolist()]], rtol=1e-5, atol=max(tolerance, self.tolerance)
        )

    def test_vectors_are_changed_in_place_and_back(self, collection: Collection) -> None:
        uri, ids, vectors = str(collection.path), self.ids()[:80], self.vectors()[:80]
        translation = a_map(collection.space)
        done = migrate_in_place(uri, translation)
        assert (done.rows, done.skipped, done.without_vector, done.stage) == (80, 0, 0, "ready")
        assert done.mode == self.capabilities.in_place_modes[0]
        assert (done.source_space, done.space.name, done.space.metric) == (self.space(), "renewed", self.space().metric)
        self.check_old(uri, ids, vectors)
        assert (verify(uri, translation=translation).compared, verify(uri, translation=translation, sample=7).compared) == (80, 7)
        with pytest.raises(VerificationError, match="not by"):
            verify(uri, translation=a_map(collection.space, seed=1))
        assert cutover(uri).stage == cutover(uri).stage == "live"
        self.check_new(uri, ids, vectors, translation)
        assert verify(uri, translation=translation).compared == 80
        with pytest.raises(OutputExistsError, match="was cut over"):
            migrate_in_place(uri, a_map(open_collection(uri).space), resume=True)
        with pytest.raises(CollectionError, match=r"new vectors .* are in use"):
            drop_vector(uri, "new")
        assert rollback(uri).stage == rollback(uri).stage == "ready"
        self.check_old(uri, ids, vectors)
        with pytest.raises(CollectionError, match=r"old vectors .* are in use"):
            drop_vector(uri, "old")
        cutover(uri)
        assert drop_vector(uri, "old").stage == "finished"
        self.check_new(uri, ids, vectors, translation)
        for verb in (cutover, rollback):
            with pytest.raises(CollectionError, match="is finished"):
                verb(uri)

    def test_a_finished_collection_is_migrated_again(self, collection: Collection) -> None:
        uri, first = str(collection.path), a_map(collection.space)
        migrate_in_place(uri, first)
        cutover(uri)
        drop_vector(uri, "old")
        second = a_map(open_collection(uri).space, seed=2, name="third")
        assert migrate_in_place(uri, second).rows == 80
        cutover(uri)
        found = open_collection(uri)
        assert found.space.name == "third"
        assert verify(uri, translation=second).compared == 80

    def test_an_abandoned_migration_leaves_nothing(self, collection: Collection) -> None:
        uri, columns = str(collection.path), collection.payload_schema
        with pytest.raises(CollectionError, match="has no migration in place"):
            cutover(uri)
        preview = preview_in_place(uri, a_map(collection.space))
        assert preview.rows == 80
        assert preview.steps
        assert migration_note(uri) is None
        migrate_in_place(uri, a_map(collection.space))
        assert drop_vector(uri, "new").stage == "none"
        assert migration_note(uri) is None
        self.check_old(uri, self.ids()[:80], self.vectors()[:80])
        assert open_collection(uri).payload_schema == columns

    def test_an_interrupted_migration_is_continued(self, collection: Collection) -> None:
        uri, ids, vectors = str(collection.path), self.ids()[:80], self.vectors()[:80]
        translation = a_map(collection.space)
        with interrupted_after(uri, 2), pytest.raises(KeyboardInterrupt):
            migrate_in_place(uri, translation)
        note = migration_note(uri)
        assert note is not None
        assert (note.stage, note.map, note.cursor.written) == ("filling", translation.fingerprint, 2 * _BATCH)
        self.check_old(uri, ids, vectors)
        with pytest.raises(InterruptedOutputError, match="--resume continues it"):
            migrate_in_place(uri, translation)
        with pytest.raises(InterruptedOutputError, match="with the map"):
            migrate_in_place(uri, a_map(collection.space, seed=1), resume=True)
        with pytest.raises(CollectionError, match="is unfinished"):
            cutover(uri)
        with pytest.raises(VerificationError, match="have no new vector"):
            verify(uri, translation=translation)
        assert migrate_in_place(uri, translation, resume=True).rows == 80
        cutover(uri)
        self.check_new(uri, ids, vectors, translation)

    def test_rows_added_meanwhile_are_translated(self, collection: Collection) -> None:
        if not self.capabilities.finds_missing:
            pytest.skip("the store does not find rows without a new vector")
        uri, ids, vectors = str(collection.path), self.ids(), self.vectors()
        translation = a_map(collection.space)
        added = []

        def add(done: int, total: int) -> None:
            if not added:
                added.append(True)
                self.add(uri, ids[80:90], vectors[80:90])

        assert migrate_in_place(uri, translation, progress=add).rows == 90
        self.add(uri, ids[90:], vectors[90:])
        with pytest.raises(CollectionError, match="10 rows without a new vector"):
            cutover(uri)
        assert migrate_in_place(uri, translation, resume=True).rows == N
        cutover(uri)
        self.check_new(uri, ids, vectors, translation)

    def test_what_cannot_be_migrated_is_refused(self, collection: Collection) -> None:
        uri, translation = str(collection.path), a_map(collection.space)
        for mode in {"column", "shadow"} - set(self.capabilities.in_place_modes):
            with pytest.raises(ParameterError, match=f"cannot be migrated with --mode {mode}"):
                migrate_in_place(uri, translation, mode=mode)
        if not self.capabilities.marks_changed:
            with pytest.raises(ParameterError, match="cannot mark rows"):
                migrate_in_place(uri, translation, mark_changed=True)
        with pytest.raises(SpaceMismatchError):
            migrate_in_place(uri, a_map(Space("other", DIM)))
        if not self.capabilities.keeps_lengths:
            lengths_count = replace(a_map(Space("conformance", DIM)), intercept=np.ones(NEW))
            with pytest.raises(SpaceMismatchError, match="scaled to unit length"):
                migrate_in_place(uri, lengths_count)
        assert migration_note(uri) is None
        self.check_old(uri, self.ids()[:80], self.vectors()[:80])

    def test_a_collection_that_is_not_there_is_named(self, new_uri: Callable[[], str]) -> None:
        with pytest.raises((MissingFileError, ParameterError)):
            cutover(new_uri())


def migration_note(uri: str) -> MigrationNote | None:
    """What a store keeps about the migration of a collection."""
    store = store_of(uri)
    assert store is not None
    with closing(store.in_place(Location.parse(uri))) as change:
        return change.note()


@contextmanager
def interrupted_after(uri: str, writes: int) -> Iterator[None]:
    """A KeyboardInterrupt in the write after so many."""
    store = store_of(uri)
    assert store is not None
    with closing(store.in_place(Location.parse(uri))) as change:
        kind: Any = type(change)
    plain, done = kind.write, []

    def write(*arguments: Any) -> int:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(True)
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "write", write)
        yield
