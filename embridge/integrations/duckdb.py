"""A map as a function of SQL: `register` on any DuckDB connection, and `sql` on a new one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from embridge.arrays import bad_rows
from embridge.catalog import Catalog, query
from embridge.errors import BadVectorsError, ParameterError, SpaceMismatchError, n_rows
from embridge.integrations.spaces import as_map
from embridge.maps.loading import Map
from embridge.maps.queries import project_queries
from embridge.types import Metric, Space


def register(
    connection: duckdb.DuckDBPyConnection,
    map: Map | str | os.PathLike[str],  # noqa: A002
    name: str = "translate",
    *,
    into: Space | None = None,
) -> None:
    """Register a map as a scalar function on a DuckDB connection: ``translate(FLOAT[384]) -> FLOAT[768]``.

    Its result equals `map.apply`. NULL gives NULL. A ``FLOAT[n]`` of another width is an error when the query is bound; a list
    (``FLOAT[]``) is cast, and one of another length is an error when its row is read. Cast ``DOUBLE[]`` yourself:
    ``translate(vector::FLOAT[384])``. The function is deterministic, so DuckDB computes it once for a constant. It runs on the CPU,
    in the threads of the query, on chunks of up to 2,048 rows.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
    map : LinearMap, KernelMap, str or path-like
        A map, or the path of one.
    name : str, default "translate"
        A letter or underscore, then letters, digits and underscores. DuckDB's own ``translate(text, from, to)`` keeps working.
    into : Space, optional
        The space in which vectors arrive; default: the target of the map. With its source, queries of the target are projected
        by the adjoint of an affine map (`LinearMap.project_queries`): ``project(FLOAT[768]) -> FLOAT[384]``.

    Raises
    ------
    ParameterError
        Not a name or a connection, or the connection has a function of this name.
    SpaceMismatchError
        `into` is neither end of the map.
    MapError
        The map has no adjoint.

    In queries DuckDB raises ``duckdb.InvalidInputException``, with the message of a `BadVectorsError`, for rows with NULL, NaN or
    infinite values, and for rows of length zero under cosine, before or after the translation. It names the row by its position in
    its chunk and shows its first values, since DuckDB passes chunks without row numbers. ``TRY(translate(...))`` gives NULL
    instead.

    Examples
    --------
    >>> import duckdb, embridge as eb
    >>> rotation = eb.LinearMap([[0, -1], [1, 0]], [0, 0], eb.Space("old", 2), eb.Space("new", 2))
    >>> with duckdb.connect() as connection:
    ...     eb.register(connection, rotation)
    ...     connection.sql("SELECT translate([3, 4]) AS a, translate(NULL) AS b").fetchall()
    [((-4.0, 3.0), None)]
    """
    translation = as_map(map)
    if not isinstance(name, str) or not name.isidentifier():
        raise ParameterError.must_be("name", "a letter or underscore, then letters, digits and underscores", name)
    if not callable(getattr(connection, "create_function", None)):
        raise ParameterError.must_be("connection", "a DuckDB connection", connection)
    into = translation.target if into is None else into
    if not isinstance(into, Space):
        raise ParameterError.must_be("into", "a Space", into)
    if not (into.same_as(translation.source) or into.same_as(translation.target)):
        raise SpaceMismatchError(
            f"The map translates {translation.source.name!r} ({translation.source.dim}) -> {translation.target.name!r} "
            f"({translation.target.dim}), so vectors cannot arrive in {into.name!r} ({into.dim})."
        )
    source = translation.target if into.same_as(translation.source) else translation.source
    project_queries(np.empty((0, source.dim), np.float32), translation, into)  # fails where there is no way to project
    function = _KEPT.setdefault((name, translation.fingerprint, into), _Function(name, translation, source, into))
    try:
        connection.create_function(  # pyright: ignore[reportCallIssue]
            name, function, [f"FLOAT[{source.dim}]"], f"FLOAT[{into.dim}]", type="arrow", null_handling="special"
        )
    except duckdb.Error as e:
        raise ParameterError(
            f"{name!r} cannot be registered as a function: {str(e).strip()}. Hint: give another name, or remove the function of "
            "this name first (connection.remove_function)."
        ) from e


class _Function:
    """What DuckDB calls: chunk in, chunk out."""

    def __init__(self, name: str, translation: Map, source: Space, into: Space) -> None:
        self._name, self._translation, self._source, self._into = name, translation, source, into

    def __call__(self, column: pa.ChunkedArray) -> pa.Array:
        rows = column.combine_chunks()
        null = rows.is_null().to_numpy(zero_copy_only=False)
        places, values = np.flatnonzero(~null), rows.flatten()  # leaves null rows out
        if values.null_count:
            missing = values.is_null().to_numpy(zero_copy_only=False).reshape(-1, self._source.dim)
            self._refuse(np.flatnonzero(missing.any(axis=1)), "NULL inside a vector", rows, places)
        vectors = values.to_numpy().reshape(-1, self._source.dim)
        self._check(vectors, self._source, "", rows, places)
        with np.errstate(over="ignore", invalid="ignore"):  # such rows are refused below
            found = project_queries(vectors, self._translation, self._into)
        self._check(found, self._into, " after the translation", rows, places)
        if null.any():
            whole = np.zeros((len(rows), self._into.dim), np.float32)
            whole[places] = found
            found = whole
        mask = pa.array(null) if null.any() else None
        return pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), self._into.dim, mask=mask)

    def _check(self, vectors: np.ndarray, space: Space, when: str, rows: pa.Array, places: np.ndarray) -> None:
        not_finite, zero = bad_rows(vectors, zero_is_bad=space.metric == Metric.COSINE)
        self._refuse(not_finite, f"NaN or infinite values{when}", rows, places)
        self._refuse(zero, f"length zero{when}, which has no direction under cosine", rows, places)

    def _refuse(self, bad: np.ndarray, reason: str, rows: pa.Array, places: np.ndarray) -> None:
        """Raise for rows of the chunk; `bad` are positions among those that are not null, at `places` in the chunk."""
        if not bad.size:
            return
        first = int(places[bad[0]])
        shown = ", ".join("NULL" if v is None else f"{v:g}" for v in rows[first].as_py()[:4])
        raise BadVectorsError(
            f"{self._name}() got {n_rows(len(bad))} with {reason}: the first is row {first:,} (counted from 0) of a chunk of "
            f"{n_rows(len(rows))}, [{shown}, ...]. Hint: TRY({self._name}(...)) gives NULL for such rows."
        )


# DuckDB frees a function with the cursor that registered it, while others of the same database can still call it, and crashes.
_KEPT: dict[tuple[str, str, Space], _Function] = {}


def sql(text: str, maps: Mapping[str, Map | str | os.PathLike[str]], *, catalog: Catalog | None = None) -> list[dict[str, Any]]:
    """Run SQL on a new in-memory DuckDB, with a function for each map.

    Parameters
    ----------
    text : str
        One statement or several, which may read and write files; the rows of the last one are returned.
    maps : mapping of str to LinearMap, KernelMap or path
        By the name of their function.
    catalog : Catalog, optional
        Attached read-only as ``catalog`` if the file exists and the text contains the word, so that ``catalog.run`` is a table.
        Until the query is done other processes can read the catalog, but not record runs.

    Raises
    ------
    CatalogError
        The query failed, or gives more than a million rows; or the catalog is held by another process.
    ParameterError
        As `register`.
    """
    with duckdb.connect(config={"python_enable_replacements": "false"}) as connection:
        for name, translation in maps.items():
            register(connection, translation, name)
        if catalog is not None and os.path.exists(catalog.path) and re.search(r"\bcatalog\b", text, re.IGNORECASE):
            catalog.attach(connection)
        return query.run(connection, None, text, write=True)


def function_names(paths: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """The names of the functions of maps: those given, else ``translate`` for one map and the names of the files for several.

    Raises
    ------
    ParameterError
        Not one name for each map, or two of the same name.
    """
    if names and len(names) != len(paths):
        raise ParameterError(f"Got {len(names)} names for {len(paths)} maps. Hint: give one --name for each map, in their order.")
    if not names:
        names = ["translate"] if len(paths) == 1 else [re.sub(r"\W", "_", Path(path).stem) for path in paths]
    if len({name.casefold() for name in names}) < len(names):
        raise ParameterError(f"Two functions have the same name: {', '.join(names)}. Hint: give one --name for each map.")
    return list(names)
