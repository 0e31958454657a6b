"""The verb catalog: list, show, lineage, sql, migrate."""

from __future__ import annotations

import click

from embridge.cli.session import Session, Verb, catalog_option, table, verb


@click.group()
def catalog() -> None:
    """Ask the DuckDB catalog what happened.

    Tables: run, artifact, space, collection, anchor_set, translator, evaluation, evaluation_label, evaluation_size,
    evaluation_difference, plan, recommendation, learning_curve, conversion, decoder, decoder_evaluation, decoding.
    Views: lineage, best_translator, candidate.

    \b
    embridge catalog list
    embridge catalog sql "SELECT * FROM best_translator"
    """


@catalog.command(name="list", cls=Verb)
@catalog_option
@verb(catalog=False)
def list_(session: Session, catalog_path: str | None) -> None:
    """Collections, translators and runs that are known.

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
    """Every fact about a file (NAME: its path or the beginning of its fingerprint) or a run (its number).

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
    """What a file was made of, and what that was made of.

    \b
    embridge catalog lineage old-in-new.faiss
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path).lineage(name)
    keep = ("depth", "path", "verb", "role", "from_path", "run")
    session.emit(found, table([{k: row[k] for k in keep} for row in found]))


@catalog.command(cls=Verb)
@click.argument("query")
@click.option("--write", is_flag=True, help="Let the query change the catalog and touch other files.")
@catalog_option
@verb(catalog=False)
def sql(session: Session, query: str, write: bool, catalog_path: str | None) -> None:
    """Run a query; read-only unless --write is given.

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
