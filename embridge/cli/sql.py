"""The verb sql."""

from __future__ import annotations

import click

from embridge.cli.session import Session, Verb, catalog_option, table, verb


@click.command(cls=Verb)
@click.argument("maps", nargs=-1, required=True, metavar="MAP...")
@click.argument("query", metavar="QUERY")
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    help="Name of a map's function; once for each map. [default: translate for one map, the names of the files for several]",
)
@catalog_option
@verb(catalog=False)
def sql(session: Session, maps: tuple[str, ...], query: str, names: tuple[str, ...], catalog_path: str | None) -> None:
    """Run SQL with maps as functions.

    QUERY runs on an in-memory DuckDB and may read and write files. Several statements may be separated by semicolons; the rows of
    the last one are printed, at most a million. If there is a catalog, its tables are catalog.run and so on, read-only.

    translate takes FLOAT[n] of the width of the map's source: vector::FLOAT[384].

    \b
    embridge sql map.safetensors "SELECT id, translate(vector::FLOAT[384]) AS vector FROM 'old.parquet'"
    embridge sql map.safetensors "COPY (SELECT id, translate(vector) AS vector FROM 'old.parquet') TO 'new.parquet'"
    embridge sql a.safetensors b.safetensors "SELECT a(vector), b(vector) FROM 'old.parquet' LIMIT 3" --json
    embridge sql map.safetensors "SELECT * FROM 'hits.parquet', catalog.run LIMIT 3"
    """
    from embridge.catalog import Catalog
    from embridge.integrations import duckdb

    functions = dict(zip(duckdb.function_names(maps, names), maps, strict=True))
    found = duckdb.sql(query, functions, catalog=Catalog(catalog_path))
    session.emit(found, table(found))
