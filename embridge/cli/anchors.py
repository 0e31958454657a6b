"""Commands for the rows that two collections share: anchors."""

from __future__ import annotations

import time
from typing import Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    columns,
    open_beside,
    open_source,
    overwrite_option,
    seed_option,
    source_space_option,
    space_option,
    target_space_option,
    verb,
)


@click.group()
def anchors() -> None:
    """Choose rows to re-encode, and count rows that two collections share.

    \b
    embridge anchors sample old.parquet -n 5000 -o ids.parquet
    embridge anchors match old.parquet new-sample.parquet
    """


@anchors.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.option("-n", "size", type=click.IntRange(1), required=True, help="How many rows.")
@click.option("-o", "--output", required=True, metavar="IDS", help="The Parquet file to write: one column, id.")
@click.option(
    "--strategy",
    type=click.Choice(["uniform", "kmeans"]),
    default="uniform",
    show_default=True,
    help="uniform: at random; kmeans: one row near each of n centers, to cover sparse regions too.",
)
@click.option("--queries", metavar="QS", help="Logged queries by SRC's model: take the rows that most of them reach.")
@space_option
@columns
@seed_option
@overwrite_option
@verb()
def sample(
    session: Session, source: str, size: int, output: str, strategy: Any, queries: str | None, space: str | None, seed: int,
    overwrite: bool, **named: str | None,
) -> None:  # fmt: skip
    """Choose which rows to re-encode with the new model.

    With --queries, rows that logged queries have among their 100 nearest: those that `rollout` needs first.

    \b
    embridge anchors sample old.parquet -n 5000 -o ids.parquet
    embridge anchors sample old.parquet -n 2000 --strategy kmeans -o ids.parquet
    embridge anchors sample old.parquet -n 1000 --queries queries-old.parquet -o ids.parquet
    """
    import embridge as eb
    from embridge.anchors import ids_at
    from embridge.records import Artifact, Run
    from embridge.tables.ids import write_ids

    started = time.perf_counter()
    given = [source, queries]
    check_outputs(output, overwrite=overwrite, inputs=given)
    collection = open_source(source, space, **named)
    logged = open_beside(queries, collection.space, **named) if queries else None
    with session.status("choosing rows"):
        ids = ids_at(collection, eb.sample_rows(collection, size, strategy=strategy, queries=logged, seed=seed))
    collection.check_unchanged()
    write_ids(output, ids, inputs=given, overwrite=overwrite)
    seconds = time.perf_counter() - started
    parameters = {"n": size, "strategy": strategy, "seed": seed}
    inputs, outputs = [Artifact.of_collection("source", collection)], [Artifact.of_file("ids", output)]
    inputs += [Artifact.of_collection("source queries", logged)] if logged else []
    strategy = "queries" if logged else strategy
    session.record(Run.of("anchors sample", inputs=inputs, outputs=outputs, parameters=parameters, seconds=seconds, rows=size))
    result = {"path": output, "ids": size, "rows": len(collection), "strategy": strategy, "seconds": seconds}
    session.emit(result, f"{output}: {size:,} of {len(collection):,} ids ({strategy})")


@anchors.command(name="match", cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@source_space_option
@target_space_option
@columns
@verb()
def match_(
    session: Session, source: str, target: str, source_space: str | None, target_space: str | None, **named: str | None
) -> None:
    """Count the ids that two collections share.

    \b
    embridge anchors match old.parquet new-sample.parquet
    """
    from embridge.records import Artifact, Run
    from embridge.stores.ids import match_rows

    started = time.perf_counter()
    old, new = open_source(source, source_space, **named), open_source(target, target_space, **named)
    with session.status("matching ids"):
        shared = len(match_rows(old, new)[0])
    seconds = time.perf_counter() - started
    inputs = [Artifact.of_collection("source", old), Artifact.of_collection("target", new)]
    session.record(Run.of("anchors match", inputs=inputs, seconds=seconds, rows=shared))
    result = {"shared": shared, "source_rows": len(old), "target_rows": len(new), "seconds": seconds}
    session.emit(result, f"{shared:,} shared ids; {source} has {len(old):,} rows, {target} has {len(new):,}")
