"""Data and functions for the tests of conversions."""

import json

import numpy as np
import pyarrow as pa

import embridge as eb
from embridge.types import Space

P, Q, N = 6, 9, 100
OLD, NEW = Space("old", P), Space("new", Q)


def table_of(ids, vectors, space=None, names=("id", "vector"), **payload):
    vectors = np.asarray(vectors, np.float32) if isinstance(vectors, np.ndarray) else vectors
    column = (
        pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        if isinstance(vectors, np.ndarray)
        else pa.array(vectors, pa.list_(pa.float32()))
    )
    table = pa.table({names[0]: ids, names[1]: column, **payload})
    return table.replace_schema_metadata({"embridge.space": json.dumps(space.to_dict())}) if space else table


def map_between(source=OLD, target=NEW, seed=5, scale=1.0):
    rng = np.random.default_rng(seed)
    coef = scale * rng.normal(size=(target.dim, source.dim))
    return eb.LinearMap(coef, scale * rng.normal(size=target.dim), source, target)
