"""The verb that compares all strategies and recommends one: plan."""

from __future__ import annotations

import time
from typing import Any

import click

from embridge.cli.evaluation import open_pairs, pair_artifacts
from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    columns,
    device_name,
    device_option,
    overwrite_option,
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
@click.option("--labels", metavar="FILE", help="Parquet with an id and a label, of queries or of documents: scores for each label.")
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Column of labels, strings or integers.")
@click.option("--anchors", type=click.IntRange(2), help="Shared rows to fit on. [default: half of them, at most 5,000]")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbors compared.")
@click.option("--encode-rate", type=float, help="Rows per second that the new model encodes.")
@click.option("--price", type=float, help="Cost of encoding one row.")
@click.option("--budget", type=click.IntRange(1), metavar="ROWS", help="Rows that may be encoded: the best strategy within it.")
@click.option("--budget-money", type=float, metavar="AMOUNT", help="The same as an amount of money. Needs --price.")
@click.option("--max-queries", type=click.IntRange(1), default=5000, show_default=True, help="Larger sets of queries are sampled.")
@click.option("--report", metavar="HTML", help="Write a page with plots: one file that needs no network. Needs 'embridge[report]'.")
@click.option(
    "--rows-to-re-encode",
    "rows",
    metavar="IDS",
    help="Write which rows of SRC that are not in TGT to re-encode first (Parquet: id, order, queries), for `encode --ids`.",
)
@click.option("--all-strategies", is_flag=True, help="Show all strategies in text and heat map, not only the most relevant ones.")
@source_space_option
@target_space_option
@columns
@seed_option
@device_option
@overwrite_option
@verb()
def plan(
    session: Session, source: str, target: str, queries: tuple[str, str] | None, qrels: str | None, labels: str | None,
    label_column: str, report: str | None, rows: str | None, all_strategies: bool, overwrite: bool, source_space: str | None,
    target_space: str | None, id_column: str | None, vector_column: str | None, **options: Any,
) -> None:  # fmt: skip
    """Compare every strategy on rows that both models have encoded, and recommend one.

    Maps are fitted on some of the shared rows; the others are searched. Each strategy is compared with keeping the old model and
    with re-encoding everything. One is recommended for each situation: the old encoder is gone, both encoders are available,
    texts are available, and (with --budget or --budget-money) only some rows may be encoded. Encoded rows are counted among those
    searched here, in a budget too. The text shows the most relevant strategies; --all-strategies and --json show all of them.

    With --rows-to-re-encode a map is fitted on all shared rows, and the rows of SRC without a vector by the new model are ordered
    by the number of queries that find their translation among the 100 nearest. Queries are those of --queries, else shared rows.

    \b
    embridge plan old.parquet new-sample.parquet
    embridge plan old.parquet new.parquet --queries q-old.parquet q-new.parquet --qrels qrels.parquet
    embridge plan old.parquet new-sample.parquet --rows-to-re-encode next.parquet
    embridge plan old.parquet new.parquet --encode-rate 200 --price 0.00002 --json
    embridge plan old.parquet new.parquet --queries q-old.parquet q-new.parquet --qrels qrels.parquet --budget 2000
    embridge plan old.parquet new.parquet --labels docs.parquet --report plan.html
    """
    import embridge as eb
    from embridge.errors import ParameterError
    from embridge.outputs import Output, replacing
    from embridge.records import Artifact, Run
    from embridge.reporting import check_installed, report_page
    from embridge.tables.ids import write_order
    from embridge.tables.labels import read_labels
    from embridge.tables.qrels import read_graded_qrels

    started = time.perf_counter()
    if qrels and not queries:
        raise ParameterError("--qrels needs --queries QS QT.")
    if report:
        check_installed()
    given = [source, target, *(queries or ()), qrels, labels]
    written = [path for path in (report, rows) if path]
    check_outputs(*written, overwrite=overwrite, inputs=given)
    spaces = source_space or None, target_space or None
    opened, shared, query_pairs = open_pairs(session, (source, target), queries, spaces, (id_column, vector_column))
    judged = read_graded_qrels(qrels) if qrels else None
    known = read_labels(labels, id_column=id_column, label_column=label_column) if labels else None
    with session.progress("planning") as progress:
        found = eb.plan(shared, queries=query_pairs, qrels=judged, labels=known, progress=progress, **options)
    listed, ids, counts = 0, None, None
    if rows:
        seed, device = options["seed"], options["device"]
        chosen = (query_pairs or shared).sample(options["max_queries"], seed)
        with session.status("choosing rows to re-encode"):
            translation = eb.fit(shared, device=device)
            ids, counts = eb.rows_to_reencode(opened[0], translation, chosen.y, known=shared.hashes(), device=device)
        listed = len(ids)
    with replacing(*map(Output, written), inputs=given, overwrite=overwrite) as temporaries:
        if report:
            temporaries[0].write_bytes(report_page(found, all_strategies=all_strategies))
        if rows:
            write_order(temporaries[-1], ids, counts)
    seconds = time.perf_counter() - started
    inputs = pair_artifacts(opened)
    inputs += [Artifact.of_file(role, path) for role, path in (("qrels", qrels), ("labels", labels)) if path]
    outputs = [Artifact.of_file("report", report, "report")] if report else []
    outputs += [Artifact.of_file("ids", rows)] if rows else []
    run = Run.of(
        "plan", inputs=inputs, outputs=outputs, result=found, parameters=options, seconds=seconds, rows=found.corpus,
        device=device_name(options["device"]),
    )  # fmt: skip
    session.record(run)
    head = (
        f"{found.queries:,} queries over {found.corpus:,} rows; {found.method} from {found.anchors:,} other rows, {seconds:.0f} s"
    )
    tail = f"\n{report}: written" if report else ""
    tail += f"\n{rows}: {listed:,} rows in the order to re-encode them" if rows else ""
    result = found.to_dict() | {"total_seconds": seconds, "report": report}
    result["rows_to_re_encode"] = {"path": rows, "rows": listed} if rows else None
    session.emit(result, f"{head}\n{found.to_text(all_strategies=all_strategies)}{tail}")
