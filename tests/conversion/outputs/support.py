"""Data and functions for the tests of outputs of conversions."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import embridge as eb
from embridge.types import Space

P, Q, ROWS, GROUP_ROWS = 6, 9, 120, 16
OLD, NEW = Space("old", P), Space("new", Q)


def table_of(ids, vectors, space=OLD, **payload):
    vectors = np.asarray(vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"id": ids, "vector": column, **payload})
    return table.replace_schema_metadata({"embridge.space": json.dumps(space.to_dict())})


def map_between(source=OLD, target=NEW, seed=5):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(target.dim, source.dim)), rng.normal(size=target.dim), source, target)


def listing(place):
    return sorted(str(p.relative_to(place)) for p in place.rglob("*") if not p.is_dir())


def puncture(path, rows, value=np.nan):
    """Make rows of a file bad."""
    table = pq.read_table(path)
    x = np.array(table["vector"].combine_chunks().flatten()).reshape(-1, P)
    x[rows] = value
    metadata = table.schema.metadata
    table = table.set_column(1, "vector", pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), P))
    pq.write_table(table.replace_schema_metadata(metadata), path)
