"""The catalog: records in, SQL out. Connections are short, so that processes can take turns on the file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from embridge import __version__
from embridge.catalog import migrations
from embridge.catalog.decoders import facts_of
from embridge.catalog.quality import facts_of_evaluation, facts_of_plan
from embridge.errors import CatalogError, MissingFileError
from embridge.records import (
    AnchorRecord,
    Artifact,
    Conversion,
    DecoderEvaluation,
    DecoderRecord,
    Decoding,
    Evaluation,
    FitRecord,
    Plan,
    Run,
)

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
    ("artifact", "fingerprint"),
)


class Catalog:
    """A DuckDB file of runs, spaces, collections, translators, decoders, evaluations, plans, conversions and decodings.

    Parameters
    ----------
    path : str or path-like, optional
        Default: the environment's EMBRIDGE_CATALOG, else ``embridge.duckdb`` in the working directory.
    patience : float, default 5.0
        Seconds to wait while another process holds the file.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, patience: float = 5.0) -> None:
        self.path = os.fspath(path or os.environ.get("EMBRIDGE_CATALOG") or DEFAULT_PATH)
        self.patience = patience
        self._known = migrations.load_migrations()

    def check(self) -> None:
        """Make sure that this catalog can be written, changing nothing: a file that is not there yet is made by `record`.

        Raises
        ------
        CatalogError
            Held by another process, newer or older than the code, or no catalog.
        MissingFileError
            Its folder does not exist.
        """
        if Path(self.path).exists():
            with self._connect(read_only=True) as connection:
                self._check_usable(connection)
        elif not Path(self.path).absolute().parent.is_dir():
            raise MissingFileError.at(str(Path(self.path).parent))

    def migrate(self) -> list[str]:
        """Bring the catalog up to date, making the file where there is none; names of the migrations applied."""
        if not Path(self.path).absolute().parent.is_dir():
            raise MissingFileError.at(str(Path(self.path).parent))
        with self._connect(read_only=False) as connection:
            return migrations.migrate(self.path, connection, self._known)

    def record(self, run: Run) -> int:
        """Store a run with everything that it read, wrote and found, in one transaction; its number.

        Raises
        ------
        CatalogError
            As `check`, or DuckDB cannot store it.
        """
        with self._connect(read_only=False) as connection:
            if not self._check_usable(connection):
                migrations.migrate(self.path, connection, self._known)
            try:
                return self._store(connection, run)
            except duckdb.Error as e:
                raise CatalogError(f"The catalog {self.path!r} cannot store the run: {str(e).splitlines()[0]}") from e

    def _store(self, connection: duckdb.DuckDBPyConnection, run: Run) -> int:
        connection.execute("BEGIN")
        row = connection.execute(
            'INSERT INTO run (verb, parameters, finished_at, seconds, "rows", device, version) '
            "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
            [run.verb, json.dumps(run.parameters), migrations.utc_now(), run.seconds, run.rows, run.device, __version__],
        ).fetchone()
        number = int(row[0]) if row else 0
        for direction, artifacts in (("in", run.inputs), ("out", run.outputs)):
            for artifact in artifacts:
                self._store_artifact(connection, number, direction, artifact)
        self._store_translators(connection, number, run)
        for detail in run.details:
            if isinstance(detail, FitRecord):
                continue
            if isinstance(detail, AnchorRecord):
                _insert(connection, "anchor_set", [number, *vars(detail).values()])
            elif isinstance(detail, Evaluation | Plan):
                facts = facts_of_evaluation if isinstance(detail, Evaluation) else facts_of_plan
                for table, values in facts(detail, number):
                    _insert(connection, table, values)
            elif isinstance(detail, DecoderRecord | DecoderEvaluation | Decoding):
                for table, values in facts_of(detail, number, run.outputs):
                    _insert(connection, table, values)
            else:
                self._store_conversion(connection, number, detail)
        connection.execute("COMMIT")
        return number

    @staticmethod
    def _store_artifact(connection: duckdb.DuckDBPyConnection, run: int, direction: str, artifact: Artifact) -> None:
        path = _absolute(artifact.path)
        _insert(connection, "artifact", [run, direction, artifact.role, artifact.kind, path, artifact.fingerprint])
        space = artifact.space
        if space is None:
            return
        values = [space.name, space.dim, str(space.metric), space.normalized]
        _insert(connection, "space", values, "ON CONFLICT DO NOTHING")
        if artifact.rows is not None:
            facts = [artifact.fingerprint, path, artifact.kind, artifact.rows, space.name, space.dim, run]
            _insert(connection, "collection", facts, "ON CONFLICT DO NOTHING")

    def _store_translators(self, connection: duckdb.DuckDBPyConnection, number: int, run: Run) -> None:
        """Maps that were fitted, each with its own record: both are in the same order."""
        fits = [detail for detail in run.details if isinstance(detail, FitRecord)]
        if not fits:
            return
        maps = [a for a in run.outputs if a.kind == "map"]
        if len(maps) != len(fits):
            raise CatalogError(f"A fit names {len(maps)} maps and has {len(fits)} records of them; each needs one.")
        for artifact, fit in zip(maps, fits, strict=True):
            self._store_translator(connection, number, artifact, fit)

    @staticmethod
    def _store_translator(connection: duckdb.DuckDBPyConnection, run: int, artifact: Artifact, fit: FitRecord) -> None:
        if artifact.space is None or artifact.source_space is None:
            raise CatalogError(f"The artifact {artifact.path!r} of a fit does not name its spaces.")
        source, target = artifact.source_space, artifact.space
        candidates = json.dumps([vars(c) for c in fit.candidates])
        values = [artifact.fingerprint, _absolute(artifact.path), fit.method, json.dumps(fit.parameters)]
        values += [source.name, source.dim, target.name, target.dim, fit.anchors, fit.held_out, fit.seconds, fit.device]
        _insert(connection, "translator", [*values, candidates, run], "ON CONFLICT DO NOTHING")

    @staticmethod
    def _store_conversion(connection: duckdb.DuckDBPyConnection, run: int, c: Conversion) -> None:
        values = [run, c.source, c.map, c.fingerprint, _absolute(c.path), c.rows, c.seconds, c.device]
        _insert(connection, "conversion", values)

    def sql(self, query: str, *, write: bool = False) -> list[dict[str, Any]]:
        """Rows of a query, as dictionaries.

        Parameters
        ----------
        query : str
        write : bool, default False
            Unless True the catalog is opened read-only, and the query can neither read nor write any other file.

        Raises
        ------
        CatalogError
            The query failed, or as `check`.
        """
        if not Path(self.path).exists():
            raise CatalogError.missing(self.path)
        with self._connect(read_only=not write) as connection:
            self._check_current(connection)
            try:
                if not write:
                    connection.execute("SET enable_external_access = false")
                found = connection.execute(query)
                if found.description is None:
                    return []
                names = [column[0] for column in found.description]
                return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            except duckdb.Error as e:
                raise CatalogError.sql(e) from e

    def decoders(self) -> list[dict[str, Any]]:
        """Registered decoders, newest first, with what they were last measured at behind a map."""
        return self.sql(
            "SELECT d.name, d.path, d.format, d.kind, d.space, d.dim, e.metric, e.value, d.fingerprint FROM decoder d "
            "LEFT JOIN (SELECT decoder, metric, value FROM decoder_evaluation "
            "WHERE strategy = 'translated' AND metric IN ('accuracy', 'r2', 'mse') "
            "QUALIFY row_number() OVER (PARTITION BY decoder ORDER BY run DESC, metric) = 1) e "
            "ON e.decoder = d.fingerprint "
            "QUALIFY row_number() OVER (PARTITION BY d.path ORDER BY d.run DESC) = 1 ORDER BY d.run DESC, d.path"
        )

    def list(self) -> dict[str, list[dict[str, Any]]]:
        """What is known: collections, translators (with their last measured overlap) and runs, newest first."""
        return {
            "collections": self.sql('SELECT path, kind, "rows", space, dim, fingerprint FROM collection ORDER BY run DESC, path'),
            "translators": self.sql(
                "SELECT t.path, t.method, t.source_space, t.target_space, t.anchors, e.overlap, t.fingerprint FROM translator t "
                "LEFT JOIN (SELECT translator, arg_max(overlap, run) AS overlap FROM evaluation "
                "WHERE strategy = 'translate-documents' GROUP BY translator) e ON e.translator = t.fingerprint "
                "ORDER BY t.run DESC, t.path"
            ),
            "runs": self.sql('SELECT id, verb, "rows", seconds, device, finished_at FROM run ORDER BY id DESC'),
        }

    def show(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """Every fact about a file, by its path or the beginning of its fingerprint, or about a run, by its number.

        Raises
        ------
        CatalogError
            Nothing of that name is known.
        """
        if name.isdecimal() and len(name) < 10:
            facts = {table: self._rows(table, f"{key} = {int(name)}") for table, key in _BY_RUN}
            if facts["run"]:  # else the number may be how a fingerprint begins
                return {table: rows for table, rows in facts.items() if rows}
        prints = ", ".join(_quote(fingerprint) for fingerprint in self._fingerprints(name))
        facts = {table: self._rows(table, f"{key} IN ({prints})") for table, key in _BY_FINGERPRINT}
        return {table: rows for table, rows in facts.items() if rows}

    def lineage(self, name: str) -> list[dict[str, Any]]:
        """What a file was made of, and what that was made of: one row an edge, nearest first.

        Raises
        ------
        CatalogError
            Nothing of that name is known.
        """
        prints = ", ".join(_quote(fingerprint) for fingerprint in self._fingerprints(name))
        return self.sql(
            f"WITH RECURSIVE up AS (SELECT 1 AS depth, * FROM lineage WHERE fingerprint IN ({prints}) "
            "UNION SELECT up.depth + 1, l.* FROM lineage l JOIN up ON l.fingerprint = up.from_fingerprint WHERE up.depth < 100) "
            "SELECT min(depth) AS depth, path, kind, verb, role, from_path, from_kind, fingerprint, from_fingerprint, run "
            "FROM up GROUP BY ALL ORDER BY depth, run, role"
        )

    def _fingerprints(self, name: str) -> list[str]:
        """Fingerprints of the files that a path or the beginning of a fingerprint names."""
        is_print = f"starts_with(fingerprint, {_quote(name)})" if len(name) >= 4 else "false"
        query = f"SELECT DISTINCT fingerprint FROM artifact WHERE path = {_quote(_absolute(name))} OR {is_print}"
        found = [row["fingerprint"] for row in self.sql(query)]
        if not found:
            raise CatalogError.nothing_called(name)
        return found

    def _rows(self, table: str, condition: str) -> list[dict[str, Any]]:
        return self.sql(f"SELECT * FROM {table} WHERE {condition} ORDER BY ALL")

    def _check_usable(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """True for a current catalog, False for an empty file: a new one, or one whose maker was killed before it was a catalog."""
        if not migrations.applied(self.path, connection):
            return False
        self._check_current(connection)
        return True

    def _check_current(self, connection: duckdb.DuckDBPyConnection) -> None:
        had = migrations.check(self.path, connection, self._known)
        if had < len(self._known):
            raise CatalogError.behind(self.path, had, len(self._known))

    @contextlib.contextmanager
    def _connect(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        deadline = time.monotonic() + self.patience
        pause = 0.02
        while True:
            try:
                connection = duckdb.connect(self.path, read_only=read_only, config={"python_enable_replacements": "false"})
                break
            except duckdb.Error as e:
                if not (holder := _holder(e)):
                    raise CatalogError.foreign(self.path, e) from e
                if time.monotonic() > deadline:
                    raise CatalogError.locked(self.path, holder, self.patience) from e
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
        try:
            yield connection
        finally:
            connection.close()


def _insert(connection: duckdb.DuckDBPyConnection, table: str, values: list[Any], suffix: str = "") -> None:
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))}) {suffix}", values)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _holder(error: duckdb.Error) -> str:
    """Who holds the file, where that is why it could not be opened; else nothing."""
    message = str(error)
    if isinstance(error, duckdb.ConnectionException) and "same database file" in message:
        return f"an open connection of this very process, PID {os.getpid()}"
    if not (isinstance(error, duckdb.IOException) and "Could not set lock on file" in message):
        return ""
    found = re.search(r"held in (.+? \(PID \d+\))", message) or re.search(r"(PID \d+)", message)
    return found[1] if found else "its name is not known"
