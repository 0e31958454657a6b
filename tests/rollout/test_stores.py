"""A rollout whose rows are in a store: figures, hits and steps are those of the same rollout on Parquet."""

import json
from pathlib import Path

import numpy as np
import pytest

import embridge as eb
from tests.rollout.support import ROWS, read_ids
from tests.stores.support import memory_folder

FIGURES = ("keep_old", "now", "new_queries", "new_space", "new_model", "forecast", "weight", "hubness", "history")


@pytest.fixture
def place(request):
    """``place(kind)``: the URI of a collection that does not exist."""
    with memory_folder() as folder:
        yield lambda kind: request.getfixturevalue("new_table")() if kind == "postgresql" else f"lancedb://{folder}#a"


def link(rollout):
    state = json.loads((Path(rollout.path) / "state.json").read_text())
    return json.loads((Path(rollout.path) / state["folder"] / "collection.json").read_text())["uri"]


@pytest.mark.parametrize("kind", ["postgresql", "lancedb"])
def test_three_stages_have_the_figures_of_a_rollout_on_parquet(world, place, tmp_path, kind):
    pytest.importorskip({"postgresql": "psycopg"}.get(kind, kind))
    order = np.argsort(world.ids.tolist())
    old = eb.MemoryCollection(world.ids[order], world.x[order], world.old.space, {"text": [f"row {i}" for i in world.ids[order]]})
    eb.copy(old, tmp_path / "old.parquet")
    eb.copy(old, uri := place(kind))
    sample = world.new(np.arange(200))
    rollouts = [
        eb.Rollout.start(eb.open(source), sample, tmp_path / name, queries=world.queries, qrels=world.qrels)
        for source, name in ((uri, "in-store"), (tmp_path / "old.parquet", "in-file"))
    ]
    places = [link(rollouts[0])]
    for stage in range(3):
        found = [rollout.status().to_dict() for rollout in rollouts]
        assert found[0] == found[1]
        sides = [(rollout.collection.read(), rollout.collection.old_side.read()) for rollout in rollouts]
        for (ids, _), (others, kept) in sides:
            assert ids.tolist() == others.tolist() == old.read()[0].tolist()
            np.testing.assert_array_equal(kept, old.read()[1])
        np.testing.assert_array_equal(sides[0][0][1], sides[1][0][1])
        asked = [eb.MemoryCollection(side.read()[0][:30], side.read()[1][:30], side.space) for side in world.query_sides]
        for options in ({"old_queries": asked[0]}, {}):
            hits, truth = (rollout.search(asked[1], 5, **options)[1] for rollout in rollouts)
            assert (hits.ids == truth.ids).mean() > 0.99
        if stage == 2:
            break
        for rollout in rollouts:
            rollout.next(150, tmp_path / "ids.parquet", overwrite=True)
            rollout.add(world.new(world.places(read_ids(tmp_path / "ids.parquet"))))
        places.append(link(rollouts[0]))
    assert len(set(places)) == 3
    for gone in places[:2]:
        with pytest.raises(eb.EmbridgeError):
            eb.open(gone)
    done = rollouts[0].finish(out := place(kind).replace("#a", "#b"), accept_loss=True)
    made = eb.open(out)
    assert (done.rows, len(made), made.payload_schema.names) == (ROWS, ROWS, ["text", "provenance"])
    np.testing.assert_array_equal(made.read()[1], rollouts[1].collection.read()[1])
    rollouts[0].finish(tmp_path / "out.parquet", accept_loss=True)
    np.testing.assert_array_equal(eb.open(tmp_path / "out.parquet").read()[1], made.read()[1])
