"""The verb catalog: list, show, lineage, sql, migrate."""

from __future__ import annotations

import click

from embridge.cli.session import Session, Verb, catalog_option, table, verb


@click.group()
def catalog() -> None:
    """Query the DuckDB catalog of runs.

    Tables: run, artifact, space, collection, anchor_set, translator, evaluation, evaluation_label, evaluation_size,
    evaluation_difference, plan, recommendation, learning_curve, conversion, index_migration, merge, decoder,
    decoder_evaluation, decoding, migration (of the catalog itself). Views: lineage, benchmark, best_translator, candidate.

    best_translator has a row for each pair of spaces and each benchmark: figures of two benchmarks are not compared.

    \b
    embridge catalog list
    embridge catalog sql "SELECT * FROM best_translator"
    """


@catalog.command(name="list", cls=Verb)
@catalog_option
@verb(catalog=False)
def list_(session: Session, catalog_path: str | None) -> None:
    """List collections, translators and runs.

    \b
    embridge catalog list
    embridge catalog list --catalog embridge-demo/embridge.duckdb
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path).list()
    session.emit(found, "\n\n".join(f"{name}\n{table(rows)}" for name, rows in found.items()))


@catalog.command(cls=Verb)
@click.argument("name")
@catalog_option
@verb(catalog=False)
def show(session: Session, name: str, catalog_path: str | None) -> None:
    """Show all rows about a file or a run.

    NAME is a path, the beginning of a fingerprint, or the number of a run.

    \b
    embridge catalog show map.safetensors
    embridge catalog show 3 --json
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path).show(name)
    session.emit(found, "\n\n".join(f"{kind}\n{table(rows)}" for kind, rows in found.items()))


@catalog.command(cls=Verb)
@click.argument("name")
@catalog_option
@verb(catalog=False)
def lineage(session: Session, name: str, catalog_path: str | None) -> None:
    """Show what a file was made of, and what that was made of.

    \b
    embridge catalog lineage old-in-new.faiss
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path).lineage(name)
    keep = ("depth", "path", "verb", "role", "from_path", "run")
    session.emit(found, table([{k: row[k] for k in keep} for row in found]))


@catalog.command(cls=Verb)
@click.argument("query")
@click.option("--write", is_flag=True, help="Allow every statement: changes of the catalog, other files, extensions.")
@catalog_option
@verb(catalog=False)
def sql(session: Session, query: str, write: bool, catalog_path: str | None) -> None:
    """Run an SQL query.

    Without --write the catalog is opened read-only: one SELECT or EXPLAIN, which cannot touch other files, of at most a million
    rows.

    \b
    embridge catalog sql "SELECT strategy, overlap FROM evaluation ORDER BY overlap DESC"
    embridge catalog sql "SELECT * FROM best_translator" --json
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path).sql(query, write=write)
    session.emit(found, table(found))


@catalog.command(cls=Verb)
@catalog_option
@verb(catalog=False)
def migrate(session: Session, catalog_path: str | None) -> None:
    """Bring the catalog up to date, or make a new one.

    \b
    embridge catalog migrate
    embridge catalog migrate --catalog team.duckdb
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path)
    names = found.migrate()
    session.emit({"path": found.path, "applied": names}, f"{found.path}: {', '.join(names) if names else 'up to date'}")
