"""Numbered SQL files, forward only: missing ones are applied in one transaction. A migration is never edited."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import duckdb

from embridge.errors import CatalogError

_TABLE = """
CREATE TABLE IF NOT EXISTS migration (
    version INTEGER PRIMARY KEY,
    name VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    applied_at TIMESTAMP NOT NULL
)
"""


@dataclass(frozen=True)
class Migration:
    """One file: its number, its name, its statements."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def utc_now() -> datetime.datetime:
    """The time in UTC, without a zone: DuckDB's zoned timestamps need pytz."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def load_migrations(folder: Path | None = None) -> list[Migration]:
    """The migrations of this version, in order: beside the package in a checkout, inside it in a wheel."""
    if folder is None:
        inside = Path(__file__).parent / "sql"
        folder = inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"
    numbered = ((re.match(r"(\d{4})_", path.name), path) for path in sorted(folder.glob("*.sql")))
    found = [Migration(int(number[1]), path.stem, path.read_text()) for number, path in numbered if number]
    if [m.version for m in found] != list(range(1, len(found) + 1)) or not found:
        raise CatalogError(f"The migrations in {str(folder)!r} are not numbered 0001, 0002, ... without a gap.")
    return found


def applied(path: str, connection: duckdb.DuckDBPyConnection) -> list[tuple[int, str, str]]:
    """(version, name, sha256) of the migrations applied to a catalog; empty for a new file.

    Raises
    ------
    CatalogError
        The file holds tables, but is not a catalog.
    """
    tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "migration" in tables:
        return connection.execute("SELECT version, name, sha256 FROM migration ORDER BY version").fetchall()
    if tables:
        raise CatalogError(f"{path!r} is a DuckDB database, but not an embridge catalog: it holds {', '.join(sorted(tables))}.")
    return []


def check(path: str, connection: duckdb.DuckDBPyConnection, known: list[Migration]) -> int:
    """The number of migrations applied to a catalog, after checking them against the known ones.

    Raises
    ------
    CatalogError
        It is newer than the code, or a migration was edited after it was applied.
    """
    had = applied(path, connection)
    if len(had) > len(known):
        raise CatalogError(
            f"The catalog {path!r} is at migration {len(had)}, but this embridge knows only {len(known)}. Hint: upgrade embridge, "
            "or use another --catalog."
        )
    for (_, name, sha256), migration in zip(had, known, strict=False):
        if sha256 != migration.sha256:
            raise CatalogError(
                f"Migration {name!r} differs from the one that was applied to {path!r}. Hint: install the embridge that made it; "
                "a migration is never edited."
            )
    return len(had)


def migrate(path: str, connection: duckdb.DuckDBPyConnection, known: list[Migration]) -> list[str]:
    """Apply missing migrations in one transaction; returns their names.

    Raises
    ------
    CatalogError
        As `check`, or a migration failed; then none is applied.
    """
    missing = known[check(path, connection, known) :]
    connection.execute("BEGIN")
    connection.execute(_TABLE)
    for migration in missing:
        try:
            connection.execute(migration.sql)
        except (duckdb.ProgrammingError, duckdb.DataError, duckdb.IntegrityError) as e:
            with contextlib.suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            reason = str(e).splitlines()[0]
            raise CatalogError(f"Migration {migration.name!r} failed, and {path!r} is as before: {reason}") from e
        values = [migration.version, migration.name, migration.sha256, utc_now()]
        connection.execute("INSERT INTO migration (version, name, sha256, applied_at) VALUES (?, ?, ?, ?)", values)
    connection.execute("COMMIT")
    return [migration.name for migration in missing]
