"""The verb that measures a map: evaluate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    columns,
    device_name,
    device_option,
    open_source,
    overwrite_option,
    seed_option,
    source_space_option,
    target_space_option,
    verb,
)

if TYPE_CHECKING:
    from embridge.anchors import Anchors
    from embridge.evaluation.metrics import Qrels
    from embridge.maps import Map
    from embridge.records import Artifact, Evaluation
    from embridge.records.through import IndexEvaluation
    from embridge.stores import Collection


@click.command(cls=Verb)
@click.argument("map_path", metavar="MAP")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("--queries", nargs=2, metavar="QS QT", help="Queries by the source's and by the target's model.")
@click.option("--qrels", metavar="R", help="Parquet with query_id, doc_id and, if it has one, score (above 0 is relevant).")
@click.option(
    "--reverse-map", metavar="MAP", help="A map from the target's space to the source's: measure project-queries through it too."
)
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbors compared.")
@click.option(
    "--weight", type=click.FloatRange(0, 1),
    help="Weight of the new query in the blend. [default: chosen for each half of the queries on the other half]",
)  # fmt: skip
@click.option("--hubness", metavar="REFERENCES", help="Other queries by the target's model, to measure hubness correction too.")
@click.option("--labels", metavar="FILE", help="Parquet with labels by id, of queries or of rows: scores by label too.")
@click.option("--label-column", metavar="NAME", default="label", show_default=True, help="Of --labels: strings or integers.")
@click.option("--against", metavar="MAP2", help="Another map between the same spaces, for paired differences.")
@click.option("--per-query", metavar="FILE", help="Parquet to write: one row per query and strategy.")
@click.option("--max-queries", type=click.IntRange(1), default=5000, show_default=True, help="Larger sets of queries are sampled.")
@click.option(
    "--through",
    metavar="STORE",
    help="All rows by SRC's model in a store (SRC, or one with two vectors): measure strategies on the store's own index too.",
)
@source_space_option
@target_space_option
@columns
@seed_option
@device_option
@overwrite_option
@verb()
def evaluate(
    session: Session, map_path: str, source: str, target: str, queries: tuple[str, str] | None, qrels: str | None,
    reverse_map: str | None, hubness: str | None, labels: str | None, label_column: str, against: str | None,
    per_query: str | None, through: str | None,
    source_space: str | None, target_space: str | None, id_column: str | None, vector_column: str | None, overwrite: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Compare a map with keeping the old index and with re-encoding everything.

    The corpus is the shared rows of SRC and TGT that the map was not fitted on. Without --queries these rows are the queries too,
    and a row does not find itself. Overlap falls as a corpus grows: it is also measured on parts of the corpus, and predicted
    for all rows of SRC where SRC has more rows than it shares with TGT.

    \b
    embridge evaluate map.safetensors old.parquet new.parquet
    embridge evaluate map.safetensors old.parquet new.parquet --queries q-old.parquet q-new.parquet --qrels qrels.parquet -k 10
    embridge evaluate map.safetensors old.parquet new.parquet --reverse-map back.safetensors
    embridge evaluate map.safetensors old.parquet new.parquet --hubness more-queries-new.parquet
    embridge evaluate map.safetensors old.parquet new.parquet --against rotation.safetensors
    embridge evaluate map.safetensors old.parquet new.parquet --labels docs.parquet --per-query queries.parquet
    embridge evaluate map.safetensors old.parquet new.parquet --through "postgresql://user@host/db?table=docs"

    The file of --per-query has query_id, label, strategy, overlap, candidate_recall, recall, reciprocal_rank and ndcg. In DuckDB:

    \b
    SELECT query_id, overlap FROM 'queries.parquet' WHERE strategy = 'blend' ORDER BY overlap LIMIT 10
    """
    import embridge as eb
    from embridge.errors import ParameterError
    from embridge.records import Artifact, Run
    from embridge.tables.hits import write_per_query
    from embridge.tables.labels import read_labels
    from embridge.tables.qrels import read_graded_qrels
    from embridge.types import space_mismatch

    started = time.perf_counter()
    if qrels and not queries:
        raise ParameterError("--qrels needs --queries QS QT.")
    given = (map_path, source, target, *(queries or ()), qrels, reverse_map, hubness, labels, against, through)
    if per_query:
        check_outputs(per_query, overwrite=overwrite, inputs=[path for path in given if path])
    translation = eb.load_map(map_path)
    other = eb.load_map(against) if against else None
    back = eb.load_map(reverse_map) if reverse_map else None
    known = read_labels(labels, id_column=id_column, label_column=label_column) if labels else None
    spaces = source_space or None, target_space or None
    opened, shared, query_pairs = open_pairs(session, (source, target), queries, spaces, (id_column, vector_column))
    judged = read_graded_qrels(qrels) if qrels else None
    references = open_source(hubness, spaces[1], id_column, vector_column) if hubness else None
    if references is not None and not references.space.same_as(translation.target):
        raise space_mismatch("The hubness bias", translation.target, references.name, references.space)
    vectors = references.read()[1] if references else None
    size = len(opened[0]) if len(opened[0]) > len(shared) else None  # else all rows of SRC are here, except those fitted on
    with session.progress("evaluating") as progress:
        found = eb.evaluate(
            translation, shared, queries=query_pairs, qrels=judged, reverse_map=back, hubness=vectors, labels=known, against=other,
            corpus_size=size, progress=progress, **options,
        )  # fmt: skip
    checked = _through(through, translation, query_pairs or shared, back, judged, found, spaces, options) if through else None
    if per_query and found.per_query is not None:
        write_per_query(per_query, found.per_query, inputs=given, overwrite=overwrite)
    inputs = [Artifact.of_map("map", map_path, translation)]
    inputs += [Artifact.of_map("reverse map", reverse_map, back)] if reverse_map and back else []
    inputs += [Artifact.of_map("other map", against, other)] if against and other else []
    inputs += pair_artifacts(opened)
    inputs += [Artifact.of_file(role, path) for role, path in (("qrels", qrels), ("labels", labels)) if path]
    inputs += [Artifact.of_collection("reference queries", references)] if references else []
    outputs = [Artifact.of_file("per query", per_query)] if per_query else []
    facts = options | ({"label_column": label_column} if labels else {})
    run = Run.of(
        "evaluate", inputs=inputs, outputs=outputs, result=found, parameters=facts, seconds=time.perf_counter() - started,
        rows=found.corpus, device=device_name(options["device"]),
    )  # fmt: skip
    session.record(run)
    text = _text(found, map_path, [path for path in (reverse_map, against) if path], per_query)
    result = found.to_dict() | ({"through": checked.to_dict()} if checked else {})
    session.emit(result, text if checked is None else f"{text}\n\n{checked}")


def _through(
    path: str, translation: Map, queries: Anchors, back: Map | None, judged: Qrels | None, found: Evaluation,
    spaces: tuple[str | None, str | None], options: dict[str, Any],
) -> IndexEvaluation:  # fmt: skip
    """The strategies on the index of a store, with the weights that were chosen."""
    import embridge as eb
    from embridge.cli.session import open_beside

    store = open_source(path, spaces[0], None, None) if spaces[0] else open_beside(path, translation.source, None, None)
    fused = next((score.weight for score in found.strategies if score.name == "fuse"), None)
    return eb.evaluate_through(
        store, translation, queries, k=options["k"], reverse_map=back, qrels=judged, seed=options["seed"],
        weight=0.5 if found.weight is None else found.weight, fusion=eb.Fusion() if fused is None else eb.Fusion(fused),
    )  # fmt: skip


def _text(found: Evaluation, map_path: str, maps: Sequence[str], per_query: str | None) -> str:
    names = [Path(path).name for path in maps]
    fitted = f"neither it nor {' nor '.join(names)} was fitted on" if names else "the map was not fitted on"
    head = f"{Path(map_path).name}: {found.queries:,} queries over {found.corpus:,} rows that {fitted}"
    tail = f"mean cosine {found.mean_cosine:.3f}, relative residual {found.relative_residual:.3f}"
    if found.weight is not None:
        tail += f"; weight of the projected query in the blend {found.weight:g}"
    tail += f"; recall, MRR and nDCG over the {found.judged:,} queries with a relevant row among these" if found.judged else ""
    tail += f"\nconfidence: {found.confidence}" if found.confidence else ""
    tail += f"\n{per_query}: scores by query" if per_query else ""
    return f"{head}\n{found}\n{tail}"


def open_pairs(
    session: Session, sides: tuple[str, str], queries: tuple[str, str] | None, spaces: tuple[str | None, str | None],
    columns: tuple[str | None, str | None],
) -> tuple[list[Collection], Anchors, Anchors | None]:  # fmt: skip
    """Open SRC, TGT and the queries of both, if given, and match their ids."""
    import embridge as eb

    paths = [*zip(sides, spaces, strict=True), *(zip(queries, spaces, strict=True) if queries else ())]
    opened = [open_source(path, space, *columns) for path, space in paths]
    with session.status("matching ids"):
        return opened, eb.match(opened[0], opened[1]), eb.match(opened[2], opened[3]) if queries else None


def pair_artifacts(opened: Sequence[Collection]) -> list[Artifact]:
    """The collections of `open_pairs` as inputs of a run."""
    from embridge.records import Artifact

    roles = ("source", "target", "source queries", "target queries")
    return [Artifact.of_collection(role, side) for role, side in zip(roles, opened, strict=False)]
