"""Conformance tests for stores. Subclass `CollectionConformance`, define the fixture `make`, and run pytest.

Examples
--------
>>> from embridge.stores.capabilities import Capabilities
>>> class TestMine(CollectionConformance):
...     capabilities = Capabilities(id_types=("string",))
...
...     @pytest.fixture
...     def make(self, tmp_path):
...         return lambda ids, vectors, space, payload=None: MyStore(tmp_path, ids, vectors, space, payload)
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from embridge.errors import BadIdsError, BadVectorsError, ParameterError
from embridge.stores.ids import check_unique, count_repeated
from embridge.testing.stored_rows import DIM, Make, N, StoredRows
from embridge.types import Metric


class CollectionConformance(StoredRows):
    """Tests that every collection passes; `StoredRows` has the attributes that a subclass sets."""

    def test_length_space_and_id_type(self, make: Make, id_kind: str) -> None:
        collection = make(self.ids(id_kind), self.vectors(), self.space())
        assert len(collection) == N
        assert collection.space == self.space()
        assert str(collection.id_type) == id_kind
        assert f"{N} rows of Space(name='conformance', dim={DIM}" in repr(collection)

    @pytest.mark.parametrize("batch_rows", [1, 7, N - 1, N, 10 * N, None])
    def test_rows_survive_any_batch_size(self, make: Make, id_kind: str, batch_rows: int | None) -> None:
        ids, vectors = self.ids(id_kind), self.vectors()
        collection = make(ids, vectors, self.space())
        batches = list(collection.batches(batch_rows))
        expected_ids, expected = self.expected(collection, ids, vectors)
        assert [i for b in batches for i in b.ids.to_pylist()] == expected_ids
        self.assert_close(np.concatenate([b.vectors for b in batches]), expected)
        assert {str(b.ids.type) for b in batches} == {id_kind}
        sizes = [len(b) for b in batches]
        assert max(sizes) <= (batch_rows or collection.default_batch_rows())
        assert min(sizes) > 0
        assert [b.start for b in batches] == [0, *itertools.accumulate(sizes)][:-1]
        assert all(b.vectors.shape == (len(b), DIM) and b.vectors.dtype.kind == "f" for b in batches)
        assert all(b.payload.num_rows == len(b) and b.payload.num_columns == 0 for b in batches)

    def test_can_be_read_more_than_once(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        first, second = collection.read(), collection.read()
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])

    def test_two_readers_do_not_disturb_each_other(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        whole = collection.read()[1]
        for one, other in zip(collection.batches(9), collection.batches(9), strict=True):
            np.testing.assert_array_equal(one.vectors, other.vectors)
            self.assert_close(one.vectors, whole[one.start : one.start + len(one)])

    def test_a_batch_outlives_the_next_one(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        held = [(b.vectors, b.vectors.copy()) for b in collection.batches(10)]
        assert all(np.array_equal(kept, copied) for kept, copied in held)

    @pytest.mark.parametrize("batch_rows", [0, -1])
    def test_refuses_a_batch_without_rows(self, make: Make, batch_rows: int) -> None:
        with pytest.raises(ParameterError, match="batch_rows must be at least 1"):
            next(make(self.ids(), self.vectors(), self.space()).batches(batch_rows))

    def test_id_reader_gives_ids_with_positions(self, make: Make, id_kind: str) -> None:
        ids, vectors = self.ids(id_kind), self.vectors()
        collection = make(ids, vectors, self.space())
        table = collection.id_reader().read_all()
        assert table.column_names == ["id", "row"]
        assert str(table.schema.field("id").type) == id_kind
        assert table["id"].to_pylist() == collection.read()[0].tolist()
        assert table["row"].to_pylist() == list(range(N))

    def test_read_gives_arrays(self, make: Make, id_kind: str) -> None:
        ids, vectors = self.ids(id_kind), self.vectors()
        collection = make(ids, vectors, self.space())
        found_ids, found = collection.read()
        expected_ids, expected = self.expected(collection, ids, vectors)
        assert found_ids.tolist() == expected_ids
        assert found_ids.dtype == (np.int64 if id_kind == "int64" else object)
        assert found.dtype == np.float32
        self.assert_close(found, expected)

    @pytest.mark.parametrize(
        "rows",
        [[], [0], [N - 1], [3, 4, 5, 50, 98], [2, 2, 7], list(range(N))],
        ids=["none", "first", "last", "some", "twice", "all"],
    )
    def test_take_gives_the_requested_rows(self, make: Make, rows: list[int]) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        taken = collection.take(np.array(rows, np.int64))
        assert taken.dtype == np.float32
        np.testing.assert_array_equal(taken, collection.read()[1][rows])

    def test_select_gives_the_places_of_its_pieces(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        rows = np.array([1, 20, 21, 77])
        pieces = list(collection.select(rows))
        assert [i for place, _ in pieces for i in range(place.start, place.stop)] == [0, 1, 2, 3]
        np.testing.assert_array_equal(np.concatenate([v for _, v in pieces]), collection.read()[1][rows])

    @pytest.mark.parametrize("rows", [[-1, 3], [3, N], [5, 4]], ids=["negative", "beyond", "unsorted"])
    def test_take_refuses_rows_that_are_not_there(self, make: Make, rows: list[int]) -> None:
        with pytest.raises(ParameterError, match="rows must be sorted positions between 0 and 99"):
            make(self.ids(), self.vectors(), self.space()).take(np.array(rows))

    def test_reading_goes_on_after_an_id(self, make: Make, id_kind: str) -> None:
        collection = make(self.ids(id_kind), self.vectors(), self.space())
        ids, vectors = collection.read()
        for place in (0, 41, N - 1):
            for batch_rows in (7, None):
                batches = list(collection.batches(batch_rows, after=ids.tolist()[place]))
                assert [i for b in batches for i in b.ids.to_pylist()] == ids[place + 1 :].tolist()
                for b in batches:
                    self.assert_close(b.vectors, vectors[place + 1 :][b.start : b.start + len(b)])

    def test_unwanted_spans_may_be_skipped(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        whole = collection.read()[1]
        assert list(collection.batches(10, row_filter=lambda start, stop: False)) == []
        seen: list[tuple[int, int]] = []

        def row_filter(start: int, stop: int) -> bool:
            seen.append((start, stop))
            return start <= 42 < stop

        found = list(collection.batches(10, row_filter=row_filter))
        assert any(b.start <= 42 < b.start + len(b) for b in found)
        for batch in found:
            self.assert_close(batch.vectors, whole[batch.start : batch.start + len(batch)])
        # Every row is in exactly one span.
        assert [i for start, stop in seen for i in range(start, stop)] == list(range(N))

    def test_payload_is_kept_beside_its_row(self, make: Make) -> None:
        if not self.has_payload:
            collection = make(self.ids(), self.vectors(), self.space())
            assert collection.payload_schema.names == []
            assert all(b.payload.num_columns == 0 for b in collection.batches(payload=True))
            return
        ids = self.ids()
        payload = {
            "word": [f"word of {i}" for i in ids],
            "label": [None if n % 5 == 0 else n for n in range(N)],
            "tags": [[str(i)] * (n % 3) for n, i in enumerate(ids)],
        }
        collection = make(ids, self.vectors(), self.space(), payload)
        assert collection.payload_schema.names == ["word", "label", "tags"]
        for batch_rows in (7, None):
            batches = list(collection.batches(batch_rows, payload=True))
            assert all(b.payload.schema.equals(collection.payload_schema) for b in batches)
            found = [row for b in batches for row in b.payload.to_pylist()]
            at = {i: n for n, i in enumerate(ids)}
            order = [at[i] for b in batches for i in b.ids.to_pylist()]
            assert found == [{name: values[n] for name, values in payload.items()} for n in order]
        assert all(b.payload.num_columns == 0 for b in collection.batches())

    def test_fingerprint_depends_on_content(self, make: Make) -> None:
        ids, vectors = self.ids(), self.vectors()
        collection = make(ids, vectors, self.space())
        fingerprint = collection.fingerprint()
        assert re.fullmatch("[0-9a-f]{32}", fingerprint)
        list(collection.batches())
        assert collection.fingerprint() == fingerprint
        if self.is_reproducible:
            assert make(ids, vectors, self.space()).fingerprint() == fingerprint
        changed = vectors.copy()
        changed[57, 3] += 1
        exchanged = [ids[1], ids[0], *ids[2:]]
        others = [make(ids, changed, self.space()), make(exchanged, vectors, self.space())]
        others.append(make(ids[:-1], vectors[:-1], self.space()))
        if self.has_payload:
            others += [make(ids, vectors, self.space(), {"label": [value] * N}) for value in (0, 1)]
        assert len({fingerprint, *(other.fingerprint() for other in others)}) == len(others) + 1

    def test_states_its_space_and_stays_unchanged(self, make: Make) -> None:
        collection = make(self.ids(), self.vectors(), self.space())
        assert collection.stated_space == collection.space == self.space()
        assert str(len(collection)) in repr(collection)
        collection.fingerprint()
        list(collection.batches())
        collection.check_unchanged()
        assert all(isinstance(part, bytes) for pair in collection.metadata.items() for part in pair)

    def test_rows_that_cannot_be_used_are_named(self, make: Make) -> None:
        if not self.keeps_bad_values:
            pytest.skip("the store cannot hold such values")
        ids, vectors = self.ids(), self.vectors()
        vectors[40], vectors[41] = np.nan, 0
        collection = make(ids, vectors, self.space())
        found = {b.start + row: why for b in collection.batches(30, validate=False) for row, why in collection.unusable(b).items()}
        assert found == {40: "no vector, or NaN or infinite values", 41: "zero vector"}

    def test_ids_are_unique_here(self, make: Make, id_kind: str) -> None:
        collection = make(self.ids(id_kind), self.vectors(), self.space())
        assert count_repeated(collection) == (0, [])
        check_unique(collection)

    def test_repeated_ids_are_refused(self, make: Make, id_kind: str) -> None:
        ids = self.ids(id_kind)
        ids[5], ids[6] = ids[90], ids[91]
        if not self.capabilities.keeps_repeated_ids:
            assert len(make(ids, self.vectors(), self.space())) == N - 2
            return
        with pytest.raises(BadIdsError, match="more than once") as e:  # as they are written, or as they are checked
            check_unique(make(ids, self.vectors(), self.space()))
        assert str(ids[5]) in str(e.value) or str(ids[6]) in str(e.value)

    @pytest.mark.parametrize(
        ("value", "metric", "reason"),
        [
            (np.nan, Metric.COSINE, "NaN or infinite"),
            (np.inf, Metric.DOT, "NaN or infinite"),
            (-np.inf, Metric.L2, "NaN or infinite"),
            (0.0, Metric.COSINE, "a zero vector"),
        ],
    )
    def test_bad_values_are_refused_with_their_ids(self, make: Make, value: float, metric: Metric, reason: str) -> None:
        if not self.keeps_bad_values:
            pytest.skip("the store cannot hold such values")
        ids, vectors = self.ids(), self.vectors()
        vectors[[40, 41]] = value
        collection = make(ids, vectors, self.space(metric))
        with pytest.raises(BadVectorsError, match=f"has 2 rows with {reason}") as e:
            list(collection.batches())
        assert collection.name in str(e.value)
        assert f"{ids[40]!r}, {ids[41]!r}" in str(e.value)

    @pytest.mark.parametrize("metric", [Metric.DOT, Metric.L2])
    def test_zero_vectors_are_fine_without_cosine(self, make: Make, metric: Metric) -> None:
        if not self.keeps_bad_values:
            pytest.skip("the store cannot hold such values")
        vectors = self.vectors()
        vectors[40] = 0
        found = make(self.ids(), vectors, self.space(metric)).read()[1]
        assert np.flatnonzero(~found.any(axis=1)).tolist() == [40]

    def test_reading_without_validation_takes_rows_as_they_are(self, make: Make) -> None:
        if not self.keeps_bad_values:
            pytest.skip("the store cannot hold such values")
        vectors = self.vectors()
        vectors[40], vectors[60, 2], vectors[70] = np.nan, np.inf, 0
        batches = list(make(self.ids(), vectors, self.space()).batches(validate=False))
        np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches]), vectors)

    def test_bad_rows_do_not_hinder_taking_others(self, make: Make) -> None:
        if not self.keeps_bad_values:
            pytest.skip("the store cannot hold such values")
        ids, vectors = self.ids(), self.vectors()
        vectors[40] = np.nan
        collection = make(ids, vectors, self.space())
        np.testing.assert_array_equal(collection.take(np.array([39, 41])), vectors[[39, 41]])
        with pytest.raises(BadVectorsError, match=f"has 1 row with NaN or infinite values.*: ids {ids[40]!r}"):
            collection.take(np.array([39, 40]))
