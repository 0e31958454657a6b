"""Bad input to a rollout: a clear error before anything is written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    TooFewAnchorsError,
    UnreadableFileError,
)
from embridge.rollout.stage import NativeRows, write_rows
from embridge.types import Space
from tests.rollout.support import NEW, OLD, content, unit


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return world.start(folder / "rollout")


@pytest.fixture
def rollout(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "rollout")
    return eb.Rollout(tmp_path / "rollout")


def with_value(vectors, row, value):
    changed = vectors.copy()
    changed[row] = value
    return changed


def bad_natives(world):
    rows = np.arange(250, 260)
    ids, y = world.ids[rows], world.y[rows]
    free = Space("new", NEW.dim)
    return {
        "unknown": (eb.MemoryCollection([*ids[:-1], "stranger"], y, NEW), BadIdsError, "1 of 10 ids of .* are not in .*'stranger'"),
        "integers": (eb.MemoryCollection(rows, y, NEW), BadIdsError, "cannot be matched"),
        "old space": (eb.MemoryCollection(ids, world.x[rows], OLD), SpaceMismatchError, "'new', but .* 10-dimensional"),
        "width": (eb.MemoryCollection(ids, y[:, :5], Space("new", 5)), SpaceMismatchError, "14-dimensional"),
        "metric": (eb.MemoryCollection(ids, y, Space("new", NEW.dim, "l2")), SpaceMismatchError, "metric"),
        "NaN": (eb.MemoryCollection(ids, with_value(y, 3, np.nan), NEW), BadVectorsError, "1 row with NaN"),
        "zero": (eb.MemoryCollection(ids, with_value(y, 3, 0), free), BadVectorsError, "zero vector"),
        "length": (eb.MemoryCollection(ids, 2 * y, NEW), BadVectorsError, "unit length"),
        "other vector": (eb.MemoryCollection(world.ids[:5], world.y[5:10], NEW), BadVectorsError, "5 rows with another vector"),
    }


@pytest.mark.parametrize("name", ["unknown", "integers", "old space", "width", "metric", "NaN", "zero", "length", "other vector"])
def test_native_rows_that_do_not_belong_change_nothing(world, rollout, name):
    native, error, message = bad_natives(world)[name]
    before = content(rollout)
    with pytest.raises(error, match=message):
        rollout.add(native)
    assert content(rollout) == before


def test_an_id_that_is_repeated_in_a_file_is_refused(world, rollout, tmp_path, write, table_of):
    path = write(tmp_path / "twice.parquet", table_of([*world.ids[250:255], world.ids[250]], world.y[250:256], space=NEW))
    with pytest.raises(BadIdsError, match="more than once"):
        rollout.add(eb.open(path))


def test_rows_of_other_lengths_are_scaled_where_only_directions_count(world, rollout):
    rows = np.arange(250, 260)
    rollout.add(eb.MemoryCollection(world.ids[rows], 3 * world.y[rows], Space("new", NEW.dim)))
    assert rollout.status().native == 210
    assert rollout.search(world.query_sides[1], 3)[1].ids.shape == (400, 3)


def test_queries_of_other_lengths_are_those_of_unit_length(world, tmp_path):
    """Vectors far from the center: the map of queries has an intercept, which belongs to unit length."""
    far = replace(world, **{name: unit(getattr(world, name) + 0.5) for name in ("x", "y", "qx", "qy")})
    longer = [
        eb.MemoryCollection(side.read()[0], 5 * side.read()[1], Space(side.space.name, side.space.dim)) for side in far.query_sides
    ]
    same, other = far.start(tmp_path / "unit"), far.start(tmp_path / "longer", queries=eb.match(*longer))
    assert other.status() == same.status()
    assert np.abs(other.search(longer[1])[1].scores - same.search(far.query_sides[1])[1].scores).max() < 1e-5
    other.queries(far.queries)  # known already


def test_queries_that_do_not_belong_change_nothing(world, rollout):
    before = content(rollout)
    with pytest.raises(SpaceMismatchError, match="'old'"):
        rollout.queries(world.queries.reversed())
    other = eb.match(
        eb.MemoryCollection(world.query_ids, unit(world.qx + 1), OLD), eb.MemoryCollection(world.query_ids, world.qy, NEW)
    )
    with pytest.raises(BadVectorsError, match="400 rows with another vector"):
        rollout.queries(other)
    more = eb.match(eb.MemoryCollection([1, 2], world.qx[:2], OLD), eb.MemoryCollection([1, 2], world.qy[:2], NEW))
    with pytest.raises(BadIdsError, match="cannot be matched"):
        rollout.queries(more)
    with pytest.raises(ParameterError, match="name no relevant document of any of the 400 logged queries"):
        eb.Rollout.start(world.old, world.new(np.arange(200)), "x", queries=world.queries, qrels={7: ["d0001"]})
    with pytest.raises(ParameterError, match=r"None of the 1 documents .*'nowhere'"):
        eb.Rollout.start(world.old, world.new(np.arange(200)), "x", queries=world.queries, qrels={"q1": ["nowhere"]})
    for judgments, error, message in (
        ({1: [2]}, ParameterError, "of any of the 400 logged queries"),
        ({"q1": [2]}, ParameterError, "None of the 1 documents"),
        ({"q1": {"d0001": 0.0}}, ParameterError, "none has a grade above 0"),
        ({"q1": ["d0001", 2]}, BadIdsError, "strings and integers as ids of documents"),
        ({"q1": ["d0001"], 1: ["d0001"]}, BadIdsError, "strings and integers as ids of queries"),
    ):
        with pytest.raises(error, match=message):
            rollout.queries(world.queries, qrels=judgments)
    assert content(rollout) == before


def test_vectors_of_the_old_model_are_not_native(world, tmp_path):
    """Two encoders of one width: nothing but the vectors tells their files apart."""
    twin, space = eb.match(*world.query_sides), Space("new", OLD.dim, normalized=True)
    queries = replace(twin, y=twin.x, target=space)
    old_as_new = eb.MemoryCollection(world.ids, 2 * world.x, Space("new", OLD.dim))
    with pytest.raises(BadVectorsError, match="600 rows with the vector of the old model"):
        eb.Rollout.start(world.old, old_as_new, tmp_path / "rollout")
    y = unit(world.y[:, : OLD.dim])
    made = eb.Rollout.start(world.old, eb.MemoryCollection(world.ids[:200], y[:200], space), tmp_path / "rollout")
    before = content(made)
    mixed = np.concatenate([y[200:210], world.x[210:212]])
    with pytest.raises(BadVectorsError, match="2 rows with the vector of the old model"):
        made.add(eb.MemoryCollection(world.ids[200:212], mixed, space))
    with pytest.raises(BadVectorsError, match="400 rows with the vector of the old model"):
        made.queries(queries)
    assert content(made) == before


def test_what_cannot_be_started_leaves_nothing(world, tmp_path):
    sample = world.new(np.arange(200))
    euclidean = eb.MemoryCollection(world.ids, world.x, Space("old", OLD.dim, "l2"))
    taken = eb.MemoryCollection(world.ids, world.x, OLD, {"provenance": ["a"] * 600})
    strangers = eb.MemoryCollection([f"s{i}" for i in range(200)], world.y[:200], NEW)
    cases = [
        (euclidean, sample, {}, ParameterError, "L2"),
        (taken, sample, {}, CollectionError, "already has a column 'provenance'"),
        (world.old, strangers, {}, BadIdsError, "200 of 200 ids"),
        (world.old, world.new(np.arange(5)), {}, TooFewAnchorsError, "too few"),
        (world.old, world.old, {}, SpaceMismatchError, "both of space 'old'"),
        (world.old, sample, {"factory": "Nonsense"}, eb.EmbridgeError, "Nonsense"),
        (world.old, sample, {"qrels": world.qrels}, ParameterError, "Judgments need queries"),
        (world.old, sample, {"qrels": {"q1": {"d0001": np.inf}}}, ParameterError, "finite"),
        (world.old, sample, {"seed": -1}, ParameterError, "seed must be at least 0"),
        (world.old, sample, {"queries": world.queries.reversed()}, SpaceMismatchError, "'old'"),
    ]
    for old, native, options, error, message in cases:
        with pytest.raises(error, match=message):
            eb.Rollout.start(old, native, tmp_path / "rollout", **options)
        assert list(tmp_path.iterdir()) == []


def test_searches_that_do_not_belong_are_refused(world, rollout):
    old, new = world.query_sides
    with pytest.raises(SpaceMismatchError, match="The rollout expects 14-dimensional vectors of 'new'"):
        rollout.search(old)
    with pytest.raises(SpaceMismatchError, match="The rollout expects 10-dimensional vectors of 'old'"):
        rollout.search(new, old_queries=new)
    with pytest.raises(BadIdsError, match="unknown ids"):
        rollout.search(new, old_queries=eb.MemoryCollection(["q0"], world.qx[:1], OLD))
    with pytest.raises(ParameterError, match="belong to an index"):
        rollout.search(new, parameters="nprobe=3")
    assert rollout.search(new, 10**6)[1].ids.shape == (400, 600)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_few_queries_choose_nothing(world, tmp_path, count):
    some = world.queries.at(np.arange(count))
    rollout = world.start(tmp_path / "rollout", queries=some, qrels={query: world.qrels[query] for query in some.ids.tolist()})
    status = rollout.status()
    assert (status.queries, status.weight, status.hubness) == (count, 0.5, "none")
    assert status.old_model_needed
    rollout.next(5, tmp_path / "ids.parquet")
    assert rollout.add(world.new(np.arange(200, 210))).rows == 10
    assert rollout.search(world.query_sides[1], 3)[1].ids.shape == (400, 3)


def test_a_translation_without_direction_is_refused(world, tmp_path):
    nothing = eb.LinearMap(np.zeros((NEW.dim, OLD.dim)), np.zeros(NEW.dim), OLD, NEW)
    entering = NativeRows(np.arange(0), world.queries.at(np.arange(0)))
    with pytest.raises(BadVectorsError, match="The translation has 600 rows with a zero vector"):
        write_rows(tmp_path, world.old, nothing, entering, before=None, retranslate=True, lineage={})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_replaced(world, rollout, tmp_path):
    before = content(rollout)
    with pytest.raises(InterruptedOutputError, match="exists already"):
        world.start(rollout.path, 201)
    with pytest.raises(InterruptedOutputError, match="exists already"):
        world.start(rollout.path, qrels=None)
    assert world.start(rollout.path).status() == rollout.status()  # the same start again
    assert content(rollout) == before
    rollout.add(world.new(np.arange(200, 210)))
    with pytest.raises(InterruptedOutputError, match="exists already"):
        world.start(rollout.path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match="is a file"):
        world.start(tmp_path / "file")


def test_outputs_do_not_land_in_the_rollout(rollout, tmp_path):
    for call in (rollout.next, lambda _, path: rollout.finish(path, accept_loss=True)):
        with pytest.raises(OutputExistsError):
            call(5, f"{rollout.path}/out.parquet")
        (tmp_path / "there.parquet").write_text("mine")
        with pytest.raises(OutputExistsError, match="exists already"):
            call(5, tmp_path / "there.parquet")
        assert (tmp_path / "there.parquet").read_text() == "mine"
    for count, message in ((0, "at least 1"), (2.5, "a whole number"), ("5", "a whole number")):
        with pytest.raises(ParameterError, match=message):
            rollout.next(count, tmp_path / "ids.parquet")


def test_a_damaged_rollout_is_reported(world, rollout, tmp_path):
    with pytest.raises(MissingFileError, match="There is no rollout at"):
        eb.Rollout(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableFileError, match="is not a rollout"):
        eb.Rollout(tmp_path / "empty")
    path = tmp_path / "rollout" / "state.json"
    state = path.read_text()
    path.write_text(state.replace('"native": 200', '"native": 599'))
    with pytest.raises(UnreadableFileError, match="altered"):
        rollout.status()
    path.write_text(state[:100])
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        rollout.status()
    path.write_text(state)
    stage = tmp_path / "rollout" / json.loads(state)["folder"]
    counts = (stage / "reach.npy").read_bytes()
    for damaged in (b"\0" * len(counts), counts[:-1] + bytes([counts[-1] ^ 1])):
        (stage / "reach.npy").write_bytes(damaged)
        with pytest.raises(UnreadableFileError, match=r"reach.npy' was altered"):
            rollout.next(5, tmp_path / "ids.parquet")
    (stage / "reach.npy").write_bytes(counts)
    (stage / "collection.parquet").write_bytes((stage / "collection.parquet").read_bytes()[:-10])
    with pytest.raises(UnreadableFileError, match="missing or has another size"):
        rollout.search(world.query_sides[1])
    with pytest.raises(UnreadableFileError, match="missing or has another size"):
        rollout.add(world.new(np.arange(200, 210)))


def test_files_of_others_in_a_stage_are_not_removed(world, rollout, tmp_path):
    stage = tmp_path / "rollout" / json.loads((tmp_path / "rollout" / "state.json").read_text())["folder"]
    (stage / "notes.txt").write_text("mine")
    (tmp_path / "rollout" / "README").write_text("mine too")
    rollout.add(world.new(np.arange(200, 210)))
    assert [path.name for path in stage.iterdir()] == ["notes.txt"]
    rollout.add(world.new(np.arange(210, 220)))
    assert (stage / "notes.txt").read_text() == "mine"
    assert (tmp_path / "rollout" / "README").read_text() == "mine too"
    (tmp_path / "rollout" / ".working").mkdir()
    (tmp_path / "rollout" / ".working" / "more.txt").write_text("mine")
    with pytest.raises(InterruptedOutputError, match="holds files that embridge did not write"):
        rollout.add(world.new(np.arange(220, 230)))
    assert rollout.status().native == 220
