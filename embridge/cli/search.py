"""Verbs on indexes: index, search."""

from __future__ import annotations

import time
from typing import Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    columns,
    external_lists_option,
    open_source,
    overwrite_option,
    seed_option,
    space_option,
    verb,
)


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("output", metavar="OUT.faiss")
@click.option("--factory", default="HNSW32", show_default=True, help="A FAISS factory string, such as Flat or IVF4096,PQ32.")
@click.option("--hubness", metavar="QUERIES", help="Reference queries of SRC's space, for hubness correction.")
@click.option("--uncalibrated", is_flag=True, help="Do not use the offset of translated rows (`embridge merge`).")
@space_option
@columns
@seed_option
@overwrite_option
@verb()
def index(
    session: Session, source: str, output: str, factory: str, hubness: str | None, uncalibrated: bool, space: str | None,
    id_column: str | None, vector_column: str | None, seed: int, overwrite: bool,
) -> None:  # fmt: skip
    """Build a FAISS index over a collection.

    Ids that are not int64 are written to OUT.faiss.ids.parquet, space and lineage to OUT.faiss.json.

    \b
    embridge index old-in-new.parquet old-in-new.faiss
    embridge index old.parquet old.faiss --factory "IVF1024,Flat" --space minilm
    embridge index old-in-new.parquet old-in-new.faiss --hubness queries-new.parquet
    """
    import embridge as eb
    from embridge.outputs import INDEX, Output, check_outputs
    from embridge.records import Artifact, Run

    started = time.perf_counter()
    check_outputs(Output(output, INDEX), overwrite=overwrite, inputs=[source, hubness])
    collection = open_source(source, space, id_column, vector_column)
    references = open_source(hubness, space, id_column, vector_column) if hubness else None
    with session.progress("adding") as progress:
        made = eb.build_index(
            collection, output, factory, hubness=references, calibrated=not uncalibrated, overwrite=overwrite, seed=seed,
            progress=progress,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    inputs, outputs = [Artifact.of_collection("source", collection)], [Artifact.of_index("index", made)]
    inputs += [Artifact.of_collection("reference queries", references)] if references else []
    facts = {"factory": factory, "seed": seed}
    session.record(Run.of("index", inputs=inputs, outputs=outputs, parameters=facts, seconds=seconds, rows=len(made)))
    result = {"path": output, "rows": len(made), "factory": factory, "space": made.space.to_dict(), "seconds": seconds}
    session.emit(result, f"{output}: {len(made):,} vectors of {made.space.name!r}, {factory}, {seconds:.1f} s")


@click.command(cls=Verb)
@click.argument("index_path", metavar="INDEX")
@click.argument("queries", metavar="QUERIES")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Hits per query.")
@click.option("--via", metavar="MAP", help="Map between the spaces of queries and index, in either direction.")
@click.option("--blend", metavar="OLD_QUERIES", help="The same queries by the index's own model, to blend with.")
@click.option(
    "--weight", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Weight of the projected queries in --blend."
)
@click.option("--params", default="", help='Search parameters of FAISS: "nprobe=32", "efSearch=128".')
@click.option("--space", metavar="NAME[:METRIC]", help="Space of QUERIES, where the file does not name it.")
@click.option("--index-space", metavar="NAME[:METRIC]", help="Space of a bare INDEX from elsewhere.")
@external_lists_option
@columns
@click.option("-o", "--output", metavar="FILE.parquet", help="Write hits as rows: query_id, rank, id, score.")
@overwrite_option
@verb()
def search(
    session: Session, index_path: str, queries: str, k: int, via: str | None, blend: str | None, weight: float, params: str,
    space: str | None, index_space: str | None, external_lists: bool, id_column: str | None, vector_column: str | None,
    output: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Search an index with a file of queries of its own space or, through a map, of another space.

    A map into the space of the index is applied to the queries. Of a map out of it the adjoint is applied: this searches an old
    index with queries of the new model, without changing the index.

    \b
    embridge search old-in-new.faiss queries-new.parquet -k 10
    embridge search old.faiss queries-new.parquet --via map.safetensors
    embridge search old.faiss queries-new.parquet --via map.safetensors --blend queries-old.parquet -o hits.parquet
    """
    import embridge as eb
    from embridge.outputs import Output, check_outputs
    from embridge.records import Artifact, Run
    from embridge.tables.hits import write_hits

    started = time.perf_counter()
    given = [index_path, queries, via, blend]
    if output:
        check_outputs(Output(output), overwrite=overwrite, inputs=given)
    opened = eb.open_index(index_path, space=index_space, external_lists=external_lists)
    query_rows = open_source(queries, space, id_column, vector_column)
    translation = eb.load_map(via) if via else None
    old = open_source(blend, opened.space.name, id_column, vector_column) if blend else None
    with session.status("searching"):
        most = min(k, max(len(opened), 1))
        ids, hits = eb.search(opened, query_rows, most, via=translation, old_queries=old, weight=weight, parameters=params)
    if output:
        write_hits(output, ids, hits, inputs=given, overwrite=overwrite)
    seconds = time.perf_counter() - started
    inputs = [Artifact.of_index("index", opened), Artifact.of_collection("queries", query_rows)]
    inputs += [Artifact.of_map("map", via, translation)] if via and translation else []
    inputs += [Artifact.of_collection("old queries", old)] if old else []
    parameters: dict[str, Any] = {"k": k, "params": params} | ({"weight": weight} if blend else {})
    outputs = [Artifact.of_file("hits", output)] if output else []
    session.record(Run.of("search", inputs=inputs, outputs=outputs, parameters=parameters, seconds=seconds, rows=len(ids)))
    rows = [(query, *hits.row(i)) for i, query in enumerate(ids.tolist())]
    result = {"k": k, "hits": [{"query_id": query, "ids": found, "scores": scores} for query, found, scores in rows]}
    if output:
        session.emit(result, f"{output}: hits of {len(ids):,} queries in {seconds:.1f} s")
        return
    lines = [
        f"{query}: " + ", ".join(f"{i} ({s:.3f})" for i, s in zip(found, scores, strict=True)) for query, found, scores in rows
    ]
    session.emit(result, "\n".join(lines))
