"""Data and functions for the tests of unfinished conversions."""

import json

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.conversion import journal
from embridge.types import Space

P, Q, GROUPS, GROUP_ROWS = 6, 9, 50, 16
ROWS = GROUPS * GROUP_ROWS
GROUP_BYTES = GROUP_ROWS * 4 * Q
OLD, NEW = Space("old", P), Space("new", Q)


def table_of(ids, vectors, space=None, **payload):
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors, np.float32).ravel()), P)
    table = pa.table({"id": ids, "vector": column, **payload})
    return table.replace_schema_metadata({"embridge.space": json.dumps((space or OLD).to_dict())})


def map_between(seed=5):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(Q, P)), rng.normal(size=Q), OLD, NEW)


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def stopped_after(rows):
    """A progress that ends the run when so many rows are done."""

    def progress(done, _):
        if done >= rows:
            raise KeyboardInterrupt

    return progress


def interrupt(case, rows=ROWS // 2, **options):
    """Leave an unfinished output; how many rows of the source are in it."""
    with pytest.raises(KeyboardInterrupt):
        case.convert(progress=stopped_after(rows), **options)
    return journal.rows_done(case.out)
