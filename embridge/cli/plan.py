"""The verb that compares every strategy and recommends one."""

from __future__ import annotations

import time
from typing import Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    collection_artifact,
    columns,
    device_name,
    device_option,
    file_artifact,
    open_source,
    seed_option,
    source_space_option,
    target_space_option,
    verb,
)


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("--queries", nargs=2, metavar="QS QT", help="Queries by the source's and by the target's model.")
@click.option("--qrels", metavar="R", help="Parquet with query_id, doc_id and, if it has one, score (above 0 is relevant).")
@click.option("--anchors", type=click.IntRange(2), help="Shared rows to fit on. [default: half of them, at most 5,000]")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours compared.")
@click.option("--encode-rate", type=float, help="Rows that the new model encodes in a second.")
@click.option("--price", type=float, help="What encoding one row costs.")
@click.option(
    "--max-queries", type=click.IntRange(1), default=5000, show_default=True, help="Of more queries than these a sample asks."
)
@source_space_option
@target_space_option
@columns
@seed_option
@device_option
@verb()
def plan(
    session: Session, source: str, target: str, queries: tuple[str, str] | None, qrels: str | None, source_space: str | None,
    target_space: str | None, id_column: str | None, vector_column: str | None, **options: Any,
) -> None:  # fmt: skip
    """Compare every strategy on rows that both models have encoded, and recommend one.

    Some shared rows are fitted on, all others are searched. Each strategy stands beside keeping the old model and beside
    re-encoding everything; for each situation (the old encoder is gone, both are there, texts are there) one is recommended.

    \b
    embridge plan old.parquet new-sample.parquet
    embridge plan old.parquet new.parquet --queries q-old.parquet q-new.parquet --qrels qrels.parquet
    embridge plan old.parquet new.parquet --encode-rate 200 --price 0.00002 --json
    """
    import embridge as eb
    from embridge.errors import ParameterError
    from embridge.records import Run
    from embridge.stores.tables import read_graded_qrels

    started = time.perf_counter()
    if qrels and not queries:
        raise ParameterError("--qrels judges queries; give them with --queries QS QT.")
    sides = [(source, source_space), (target, target_space)]
    sides += list(zip(queries, (source_space, target_space), strict=True)) if queries else []
    opened = [open_source(path, space, id_column, vector_column) for path, space in sides]
    judged = read_graded_qrels(qrels) if qrels else None
    with session.status("matching ids"):
        shared = eb.match(opened[0], opened[1])
        asked = eb.match(opened[2], opened[3]) if queries else None
    with session.progress("planning") as progress:
        found = eb.plan(shared, queries=asked, qrels=judged, progress=progress, **options)
    seconds = time.perf_counter() - started
    roles = ("source", "target", "source queries", "target queries")
    inputs = [collection_artifact(role, side) for role, side in zip(roles, opened, strict=False)]
    inputs += [file_artifact("qrels", qrels)] if qrels else []
    session.record(Run("plan", options, seconds, tuple(inputs), (), found.corpus, device_name(options["device"]), (found,)))
    head = (
        f"{found.queries:,} queries over {found.corpus:,} rows; {found.method} from {found.anchors:,} other rows, {seconds:.0f} s"
    )
    session.emit(found.to_dict() | {"total_seconds": seconds}, f"{head}\n{found}")
