"""Operations on ids, at any size: shared ids, repeated ids, and a stable hash.

Ids stream into DuckDB, which joins and groups out of core; vectors are not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np

from embridge.errors import BadIdsError, CollectionError, EmbridgeError, ParameterError
from embridge.stores.base import Collection

_MEMORY = "256MB"  # beyond this DuckDB spills to the temporary folder


@contextlib.contextmanager
def _database(**collections: Collection) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the ids of each collection as a stream with the argument's name, which can be read once.

    Errors of embridge while DuckDB reads (a damaged page, an id beyond int64) are raised unchanged.
    """
    failures: list[EmbridgeError] = []
    with tempfile.TemporaryDirectory(prefix="embridge-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY,
            "temp_directory": folder,
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(":memory:", config=config) as connection:
            # Streams are registered by name; do not search the caller's variables for tables.
            connection.execute("SET python_enable_replacements = false")
            for name, collection in collections.items():
                connection.register(name, _noting(collection.id_reader(), failures))
            try:
                yield connection
            except duckdb.Error as e:
                if failures:
                    raise failures[0] from None
                names = " and ".join(collection.name for collection in collections.values())
                raise CollectionError(f"The ids of {names} cannot be compared: {str(e).splitlines()[0]}") from e


def _noting(reader: Any, failures: list[EmbridgeError]) -> Any:
    """The same stream of Arrow batches; an error of embridge is kept, since DuckDB returns only its text."""

    def batches() -> Iterator[Any]:
        try:
            yield from reader
        except EmbridgeError as e:
            failures.append(e)
            raise

    return type(reader).from_batches(reader.schema, batches())


def match_rows(source: Collection, target: Collection) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows that share an id, in the order of the source.

    Returns
    -------
    source_rows, target_rows : ndarray of int64, each of shape (n_shared,)

    Raises
    ------
    BadIdsError
        Ids of the two are of different types, or a shared id occurs more than once on a side.
    """
    if source.id_type != target.id_type:
        raise BadIdsError.kinds_differ(source.name, str(source.id_type), target.name, str(target.id_type))
    # The smaller side is stored, the larger one is streamed once.
    small, large = sorted((source, target), key=len)
    with _database(small_stream=small, large_stream=large) as database:
        database.execute("CREATE TABLE small AS SELECT id, row FROM small_stream WHERE id IS NOT NULL")
        database.execute(
            "CREATE TABLE shared AS SELECT l.id AS id, s.row AS small_row, l.row AS large_row "
            "FROM large_stream l JOIN small s ON l.id = s.id"
        )
        for side, row in ((small, "small_row"), (large, "large_row")):
            other = "large_row" if row == "small_row" else "small_row"
            repeated = database.execute(
                f"SELECT id FROM shared GROUP BY id, {other} HAVING count(DISTINCT {row}) > 1 ORDER BY id LIMIT 100"
            ).fetchall()
            if repeated:
                raise BadIdsError.duplicate(side.name, sorted({r[0] for r in repeated}))
        found = database.execute("SELECT small_row, large_row FROM shared").fetchnumpy()
    rows = {id(small): np.asarray(found["small_row"]), id(large): np.asarray(found["large_row"])}
    source_rows, target_rows = rows[id(source)], rows[id(target)]
    order = np.argsort(source_rows)
    return source_rows[order], target_rows[order]


def count_repeated(collection: Collection) -> tuple[int, list[str | int]]:
    """The number of repeated ids, and the first hundred of them."""
    with _database(stream=collection) as database:
        database.execute("CREATE TABLE repeated AS SELECT id FROM stream WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1")
        count = database.execute("SELECT count(*) FROM repeated").fetchone()
        rows = database.execute("SELECT id FROM repeated ORDER BY id LIMIT 100").fetchall()
    return (count[0] if count else 0), [r[0] for r in rows]


def check_unique(collection: Collection) -> None:
    """Refuse a collection in which an id occurs more than once.

    Raises
    ------
    BadIdsError
    """
    count, examples = count_repeated(collection)
    if count:
        raise BadIdsError.duplicate(collection.name, examples)


def hash_ids(ids: np.ndarray, purpose: str = "", seed: int = 0) -> np.ndarray:
    """A 64-bit hash of each id, the same on every machine and in every version: blake2b of its text.

    Parameters
    ----------
    ids : ndarray of int64 or object (str), shape (n,)
    purpose : str
        Hashes of different purposes are independent of each other (at most 16 bytes).
    seed : int
        At most 64 characters long.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Raises
    ------
    ParameterError
        `seed` is longer.
    """
    if len(str(seed)) > hashlib.blake2b.MAX_KEY_SIZE:
        raise ParameterError.must_be(
            "seed", f"an integer of at most {hashlib.blake2b.MAX_KEY_SIZE} digits", f"{len(str(seed))} digits"
        )
    start = hashlib.blake2b(digest_size=8, person=purpose.encode(), key=str(seed).encode())
    out = bytearray()
    for i in ids.tolist():
        digest = start.copy()
        digest.update(str(i).encode())
        out += digest.digest()
    return np.frombuffer(bytes(out), dtype="<u8").astype(np.uint64)
