"""A rollout on the bundled sample, by its verbs: figures against an evaluation of the same rows, orders compared."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from tests.benchmarks.rollout import evaluated
from tests.rollout.support import read_ids
from tests.support import run_json

STEP = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    for name in ("minilm", "mpnet", "minilm.queries", "mpnet.queries", "qrels"):
        shutil.copy(eb.sample_path(name), folder / f"{name}.parquet")
    pq.write_table(pq.read_table(folder / "mpnet.parquet").slice(0, 300), folder / "first.parquet")
    words = "rollout start minilm.parquet first.parquet -o rollout --queries minilm.queries.parquet mpnet.queries.parquet"
    run_json(*words.split(), "--qrels", "qrels.parquet", "--json", "--no-catalog", cwd=folder)
    shutil.copytree(folder / "rollout", folder / "random")
    return folder


def verb(folder, *words):
    return run_json("rollout", *words, "--json", "--no-catalog", cwd=folder)


@pytest.mark.slow
def test_figures_are_those_of_an_independent_evaluation_and_the_order_beats_chance(folder):
    new = pq.read_table(folder / "mpnet.parquet")
    chance = np.random.default_rng(0).permutation(np.arange(300, len(new)))
    recalls = {"rollout": [], "random": []}
    for stage in range(2):
        verb(folder, "next", "rollout", "-n", str(STEP), "-o", f"ids-{stage}.parquet")
        listed = set(read_ids(folder / f"ids-{stage}.parquet"))
        chosen = {
            "rollout": new.filter(pa.array([row in listed for row in new["id"].to_pylist()])),
            "random": new.take(np.sort(chance[stage * STEP : (stage + 1) * STEP])),
        }
        for name, rows in chosen.items():
            pq.write_table(rows, folder / "native.parquet")
            assert verb(folder, "add", name, "native.parquet")["rows"] == STEP
            status = verb(folder, "status", name)
            assert status["native"] == 300 + (stage + 1) * STEP
            assert status["now"]["recall"] == pytest.approx(evaluated(folder, status, name), abs=1e-9)
            recalls[name].append(status["now"]["recall"])
    assert all(ours > theirs for ours, theirs in zip(recalls["rollout"], recalls["random"], strict=True)), recalls
