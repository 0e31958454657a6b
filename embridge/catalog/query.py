"""Queries of users: which statements may run, and rows as plain values."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, TypeVar

import duckdb

from embridge.errors import CatalogError

MOST_ROWS = 1_000_000
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
# Functions can also change settings, read files and load extensions.
_SAFE = "SET enable_external_access = false; SET lock_configuration = true"
# How DuckDB's message begins where a function in Python raised an error of ours.
_OF_FUNCTION = "Invalid Input Error: Python exception occurred while executing the UDF: BadVectorsError: "
Result = TypeVar("Result")


def run(connection: duckdb.DuckDBPyConnection, path: str | None, query: str, *, write: bool) -> list[dict[str, Any]]:
    """Rows of a query on the catalog at `path`, or on no file; without `write` it may only read, and only the catalog.

    Raises
    ------
    CatalogError
        The query failed, may not run, or gives more than a million rows.
    """
    failed = "The query failed" if path is None else f"The query on {path!r} failed"
    try:
        statements = _statements(query, write=write)
        if not write:
            connection.execute(_SAFE)
        return _interruptible(connection, lambda: _rows(connection, statements))
    except duckdb.Error as e:
        raise CatalogError(f"{failed}: {str(e).strip().removeprefix(_OF_FUNCTION)}") from e
    except (OverflowError, RuntimeError, ValueError) as e:
        if isinstance(e, CatalogError):
            raise
        # a value without a Python type, such as an interval of a million years
        raise CatalogError(f"{failed}: {e}. Hint: cast the values to VARCHAR.") from e


def _statements(query: str, *, write: bool) -> list[duckdb.Statement]:
    try:
        query.encode()
    except UnicodeEncodeError as e:
        raise CatalogError("The query is not valid UTF-8 text.") from e
    found = duckdb.extract_statements(query)
    if not found:
        raise CatalogError('The query is empty. Hint: "SELECT ... FROM ...".')
    if not write and len(found) > 1:
        raise CatalogError(f"Got {len(found)} statements; only one can run at a time. Hint: run them one by one.")
    if not write and not all(_is_reading(statement) for statement in found):
        raise CatalogError("Only SELECT and EXPLAIN may run, as the catalog is opened read-only. Hint: --write (write=True).")
    return found


def _is_reading(statement: duckdb.Statement) -> bool:
    try:
        return statement.type in _READING
    except ValueError:  # a kind that DuckDB's own Python package has no name for
        return False


def _rows(connection: duckdb.DuckDBPyConnection, statements: list[duckdb.Statement]) -> list[dict[str, Any]]:
    for statement in statements:
        connection.execute(statement)
    if connection.description is None:
        return []
    names = _distinct([column[0] for column in connection.description])
    rows: list[dict[str, Any]] = []
    while chunk := connection.fetchmany(10_000):
        rows += (dict(zip(names, row, strict=True)) for row in chunk)
        if len(rows) > MOST_ROWS:
            raise CatalogError(f"The query gives more than {MOST_ROWS:,} rows. Hint: LIMIT, or COPY ... TO a file.")
    return rows


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number appended to repeated ones: keys of a dictionary are unique."""
    found: list[str] = []
    for name in names:
        number, given = 0, name
        while name in found:
            number += 1
            name = f"{given}_{number}"
        found.append(name)
    return found


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], Result]) -> Result:
    """Do the work in a thread: DuckDB checks for Ctrl-C in the main thread too rarely, and stops at once when interrupted."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise
