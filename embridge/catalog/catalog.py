"""The catalog: stores records and runs SQL. Connections are short, so that several processes can use the file."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import duckdb

from embridge import __version__
from embridge.catalog import file, migrations
from embridge.catalog.query import run as run_query
from embridge.errors import CatalogError
from embridge.records import Run
from embridge.records.artifacts import absolute

DEFAULT_PATH = "embridge.duckdb"
_BY_RUN = (
    ("run", "id"),
    ("artifact", "run"),
    ("anchor_set", "run"),
    ("translator", "run"),
    ("evaluation", "run"),
    ("evaluation_label", "run"),
    ("evaluation_size", "run"),
    ("evaluation_difference", "run"),
    ("plan", "run"),
    ("recommendation", "run"),
    ("learning_curve", "run"),
    ("conversion", "run"),
    ("decoder", "run"),
    ("decoder_evaluation", "run"),
    ("decoding", "run"),
    ("index_migration", "run"),
    ("merge", "run"),
)
_BY_FINGERPRINT = (
    ("collection", "fingerprint"),
    ("translator", "fingerprint"),
    ("evaluation", "translator"),
    ("evaluation_label", "translator"),
    ("evaluation_size", "translator"),
    ("evaluation_difference", "translator"),
    ("conversion", "output"),
    ("decoder", "fingerprint"),
    ("decoder_evaluation", "decoder"),
    ("decoding", "output"),
    ("index_migration", "output"),
    ("merge", "output"),
    ("artifact", "fingerprint"),
)


class Catalog:
    """A DuckDB file of runs: their inputs, outputs and results.

    Parameters
    ----------
    path : str or path-like, optional
        Default: the environment variable EMBRIDGE_CATALOG, else ``embridge.duckdb`` in the working directory.
    patience : float, default 5.0
        Seconds to wait while another process holds the file.

    Examples
    --------
    >>> import tempfile
    >>> import embridge as eb
    >>> catalog = eb.Catalog(tempfile.mkdtemp() + "/embridge.duckdb")
    >>> catalog.record(eb.Run.of("note", parameters={"text": "the first"}))
    1
    >>> catalog.sql("SELECT verb, parameters ->> 'text' AS text FROM run")
    [{'verb': 'note', 'text': 'the first'}]
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, patience: float = 5.0) -> None:
        self.path = os.fspath(path or os.environ.get("EMBRIDGE_CATALOG") or DEFAULT_PATH)
        self.patience = patience
        self._known = migrations.load_migrations()
        if "\0" in self.path or _as_text(self.path) != self.path:
            raise CatalogError(f"The path of a catalog must be valid UTF-8 text. Got {self.path!r} instead.")

    def check(self) -> None:
        """Check that this catalog can be written, without changing it. A missing file is created by `record`.

        Raises
        ------
        CatalogError
            Held by another process, newer or older than the code, not a catalog, or not writable.
        MissingFileError
            Its folder does not exist.
        """
        if not file.is_absent(self.path):
            with self._connect(read_only=True) as connection:
                if migrations.applied(self.path, connection):  # else it is an empty database, which `record` turns into a catalog
                    self._check_current(connection)
        folder = os.path.dirname(os.path.realpath(self.path))
        for place in (folder, self.path):
            if os.path.exists(place) and not os.access(place, os.W_OK):
                raise CatalogError(f"The catalog {self.path!r} cannot be written: no permission to write {place!r}.")

    def migrate(self) -> list[str]:
        """Bring the catalog up to date and create a missing file; returns the names of the migrations applied.

        Raises
        ------
        CatalogError
            As `check`, or a migration failed; then the catalog is unchanged.
        DiskFullError
        """
        if file.is_absent(self.path) and self._create():
            return [migration.name for migration in self._known]
        with self._connect(read_only=False) as connection:
            return migrations.migrate(self.path, connection, self._known)

    def _create(self) -> bool:
        return file.create(self.path, lambda connection: migrations.migrate(self.path, connection, self._known), self.patience)

    def record(self, run: Run) -> int:
        """Store a run with its inputs, outputs and results in one transaction; returns its number.

        Raises
        ------
        CatalogError
            As `check`, or DuckDB cannot store it.
        DiskFullError
        """
        rows = list(run.to_rows())
        if file.is_absent(self.path):
            self._create()
        with self._connect(read_only=False) as connection:
            if not migrations.applied(self.path, connection):
                migrations.migrate(self.path, connection, self._known)
            self._check_current(connection)
            connection.execute("BEGIN")
            facts = {"verb": run.verb, "parameters": run.parameters, "finished_at": migrations.utc_now(), "seconds": run.seconds}
            facts |= {"rows": run.rows, "device": run.device, "version": __version__}
            (number,) = _insert(connection, "run", facts, "RETURNING id") or (0,)
            for table, values in rows:
                if table == "space":
                    _insert(connection, table, values, "ON CONFLICT DO NOTHING")
                elif table in ("collection", "translator"):
                    _insert(connection, table, values | {"run": number}, "ON CONFLICT DO NOTHING")
                else:
                    _insert(connection, table, values | {"run": number})
            connection.execute("COMMIT")
            return int(number)

    def sql(self, query: str, *, write: bool = False) -> list[dict[str, Any]]:
        """Rows of a query, as dictionaries.

        Parameters
        ----------
        query : str
        write : bool, default False
            If False the catalog is opened read-only, and one SELECT or EXPLAIN may run, which cannot access any other file.

        Raises
        ------
        CatalogError
            The query failed, may not run, or gives more than a million rows; or as `check`.
        """
        self._check_exists()
        with self._connect(read_only=not write) as connection:
            self._check_current(connection)
            return run_query(connection, self.path, query, write=write)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Attach the catalog to another DuckDB connection, read-only: its tables are ``catalog.run`` and so on.

        Other processes can read the catalog meanwhile, but not record runs.

        Raises
        ------
        CatalogError
            There is no catalog, it is held by another process, or not a DuckDB file.
        """
        self._check_exists()
        file.attach(self.path, connection, patience=self.patience)

    def decoders(self) -> list[dict[str, Any]]:
        """Registered decoders, newest first, with their last score behind a map."""
        return self.sql(
            "SELECT d.name, d.path, d.format, d.kind, d.space, d.dim, e.metric, e.value, d.fingerprint FROM decoder d "
            "LEFT JOIN (SELECT decoder, metric, value FROM decoder_evaluation "
            "WHERE strategy = 'translated' AND metric IN ('accuracy', 'r2', 'mse') "
            "QUALIFY row_number() OVER (PARTITION BY decoder ORDER BY run DESC, metric) = 1) e "
            "ON e.decoder = d.fingerprint "
            "QUALIFY row_number() OVER (PARTITION BY d.path ORDER BY d.run DESC) = 1 ORDER BY d.run DESC, d.path"
        )

    def list(self) -> dict[str, list[dict[str, Any]]]:
        """Collections, translators and runs, newest first.

        The overlap of a translator is the last one measured; two overlaps can be compared where ``benchmark`` is equal.
        """
        return {
            "collections": self.sql('SELECT path, kind, "rows", space, dim, fingerprint FROM collection ORDER BY run DESC, path'),
            "translators": self.sql(
                "SELECT t.path, t.method, t.source_space, t.target_space, t.anchors, e.overlap, e.benchmark, t.fingerprint "
                "FROM translator t LEFT JOIN (SELECT translator, overlap, benchmark FROM evaluation JOIN benchmark "
                "USING (run, translator) WHERE strategy = 'translate-documents' "
                "QUALIFY row_number() OVER (PARTITION BY translator ORDER BY run DESC) = 1) e ON e.translator = t.fingerprint "
                "ORDER BY t.run DESC, t.path"
            ),
            "runs": self.sql('SELECT id, verb, "rows", seconds, device, finished_at FROM run ORDER BY id DESC'),
        }

    def show(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """All facts about a file (by path or beginning of its fingerprint) or about a run (by number).

        Raises
        ------
        CatalogError
            The catalog has no such name.
        """
        if name.isdecimal() and len(name) < 10:
            facts = {table: self._rows(table, f"{key} = {int(name)}") for table, key in _BY_RUN}
            if facts["run"]:  # else the number may be the beginning of a fingerprint
                return {table: rows for table, rows in facts.items() if rows}
        prints = ", ".join(_quote(fingerprint) for fingerprint in self._fingerprints(name))
        facts = {table: self._rows(table, f"{key} IN ({prints})") for table, key in _BY_FINGERPRINT}
        return {table: rows for table, rows in facts.items() if rows}

    def lineage(self, name: str) -> list[dict[str, Any]]:
        """The inputs of a file, and their inputs in turn: one row per edge, nearest first.

        Raises
        ------
        CatalogError
            The catalog has no such name.
        """
        prints = ", ".join(_quote(fingerprint) for fingerprint in self._fingerprints(name))
        return self.sql(
            f"WITH RECURSIVE up AS (SELECT 1 AS depth, * FROM lineage WHERE fingerprint IN ({prints}) "
            "UNION SELECT up.depth + 1, l.* FROM lineage l JOIN up ON l.fingerprint = up.from_fingerprint WHERE up.depth < 100) "
            "SELECT min(depth) AS depth, path, kind, verb, role, from_path, from_kind, fingerprint, from_fingerprint, run "
            "FROM up GROUP BY ALL ORDER BY depth, run, role"
        )

    def _fingerprints(self, name: str) -> list[str]:
        """Fingerprints of the files with this path or beginning of a fingerprint."""
        is_print = f"starts_with(fingerprint, {_quote(name)})" if len(name) >= 4 else "false"
        query = f"SELECT DISTINCT fingerprint FROM artifact WHERE path = {_quote(absolute(name))} OR {is_print}"
        found = [row["fingerprint"] for row in self.sql(query)]
        if not found:
            raise CatalogError(
                f"The catalog {self.path!r} has no path or fingerprint that starts with {name!r}. Hint: `embridge catalog list`."
            )
        return found

    def _rows(self, table: str, condition: str) -> list[dict[str, Any]]:
        return self.sql(f"SELECT * FROM {table} WHERE {condition} ORDER BY ALL")

    def _check_exists(self) -> None:
        if file.is_absent(self.path):
            raise CatalogError(f"There is no catalog at {self.path!r}. Hint: any verb makes one, or `embridge catalog migrate`.")

    def _check_current(self, connection: duckdb.DuckDBPyConnection) -> None:
        had = migrations.check(self.path, connection, self._known)
        if had < len(self._known):
            raise CatalogError(
                f"The catalog {self.path!r} is at migration {had}, but this embridge needs {len(self._known)}. "
                "Hint: run `embridge catalog migrate` (keep a copy of the file first)."
            )

    def _connect(self, *, read_only: bool) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        return file.connect(self.path, read_only=read_only, patience=self.patience)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, row: dict[str, Any], suffix: str = "") -> tuple[Any, ...] | None:
    """Insert a row by the names of its columns; lists and dictionaries become JSON."""
    columns = ", ".join(f'"{name}"' for name in row)
    values = [json.dumps(v) if isinstance(v, dict | list) else v for v in map(_as_text, row.values())]
    marks = ", ".join("?" * len(values))
    return connection.execute(f'INSERT INTO "{table}" ({columns}) VALUES ({marks}) {suffix}', values).fetchone()


def _as_text(value: Any) -> Any:
    """The value with texts that are not UTF-8 (paths) written as escapes: DuckDB accepts only UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_text(key): _as_text(v) for key, v in value.items()}
    return [_as_text(v) for v in value] if isinstance(value, list | tuple) else value


def _quote(text: str) -> str:
    return "'" + _as_text(text).replace("'", "''") + "'"
