"""Verbs on indexes: index, search."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    columns,
    external_lists_option,
    on_disk_option,
    open_source,
    overwrite_option,
    seed_option,
    space_option,
    verb,
)

if TYPE_CHECKING:
    from embridge.stores import Collection

_SIDES = ("none", "old", "new", "both")
_sides_option = click.option(
    "--fused-hubness",
    type=click.Choice(_SIDES),
    help="Sides of a fused search to correct for hubness. [default: the index's; with reference queries both]",
)
_old_space_option = click.option("--old-space", metavar="NAME[:METRIC]", help="Space of old vectors and queries that name none.")


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("output", metavar="OUT.faiss")
@click.option("--factory", default="HNSW32", show_default=True, help="A FAISS factory string, such as Flat or IVF4096,PQ32.")
@click.option("--fuse", metavar="OLD", help="Old vectors of the same ids, or a two-vector collection (SRC itself): a fused index.")
@click.option("--weight", type=click.FloatRange(0, 1), help="Default weight of the new side of a fused index. [default: 0.5]")
@_sides_option
@click.option("--hubness", metavar="QUERIES", help="Reference queries of SRC's space, for hubness correction.")
@click.option("--old-hubness", metavar="OLD_QUERIES", help="Reference queries of the old space, for a fused index.")
@click.option(
    "--uncalibrated", is_flag=True, help="Do not use the offset of translated rows (`embridge merge`); a fused index never does."
)
@on_disk_option
@space_option
@_old_space_option
@columns
@seed_option
@overwrite_option
@verb()
def index(
    session: Session, source: str, output: str, factory: str, fuse: str | None, weight: float | None, fused_hubness: str | None,
    hubness: str | None, old_hubness: str | None, uncalibrated: bool, on_disk: bool, space: str | None, old_space: str | None,
    id_column: str | None, vector_column: str | None, seed: int, overwrite: bool,
) -> None:  # fmt: skip
    """Build a FAISS index over a collection, or a fused one over its old and new vectors.

    Ids that are not int64 are written to OUT.faiss.ids.parquet, spaces and lineage to OUT.faiss.json. A fused index scores a row
    by both its vectors; the weight of the new side can be changed in every search.

    \b
    embridge index old-in-new.parquet old-in-new.faiss
    embridge index old.parquet old.faiss --factory "IVF1024,Flat" --space minilm
    embridge index large.parquet large.faiss --factory "IVF65536,Flat" --on-disk
    embridge index old-in-new.parquet old-in-new.faiss --hubness queries-new.parquet
    embridge index old-in-new.parquet fused.faiss --fuse old.parquet --weight 0.3
    embridge index both.parquet fused.faiss --fuse both.parquet --hubness queries-new.parquet --old-hubness queries-old.parquet
    """
    import embridge as eb
    from embridge.outputs import INDEX, ON_DISK, Output, check_outputs
    from embridge.records import Artifact, Run

    started = time.perf_counter()
    if fuse is None and (weight is not None or fused_hubness or old_hubness or old_space):
        raise click.UsageError("--weight, --fused-hubness, --old-hubness and --old-space belong to a fused index: give --fuse OLD.")
    sides = ON_DISK if on_disk else INDEX
    check_outputs(Output(output, sides), overwrite=overwrite, inputs=[source, fuse, hubness, old_hubness])
    named = (id_column, vector_column)
    collection = open_source(source, space, *named)
    old = _open_old(fuse, old_space, *named) if fuse else None
    references = open_source(hubness, space, *named) if hubness else None
    old_references = _open_old(old_hubness, old_space, *named) if old_hubness else None
    default = eb.Fusion.default(has_bias=references is not None)
    fusion = default.changed(weight, fused_hubness) if old is not None else None
    with session.progress("adding") as progress:
        made = eb.build_index(
            collection, output, factory, fuse=old, fusion=fusion, hubness=references, old_hubness=old_references,
            calibrated=not uncalibrated, on_disk=on_disk, overwrite=overwrite, seed=seed, progress=progress,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    given = {"source": collection, "old vectors": old, "reference queries": references, "old reference queries": old_references}
    inputs = [Artifact.of_collection(role, side) for role, side in given.items() if side is not None]
    parameters: dict[str, Any] = {"factory": factory, "seed": seed}
    result: dict[str, Any] = {
        "path": output,
        "rows": len(made),
        "factory": factory,
        "space": made.space.to_dict(),
        "seconds": seconds,
    }
    text = f"{output}: {len(made):,} vectors of {made.space.name!r}"
    if made.fusion is not None and made.old_space is not None:
        fused = {"weight": made.fusion.weight, "hubness": str(made.fusion.hubness)}
        parameters |= fused
        result |= {"old_space": made.old_space.to_dict(), **fused}
        text += f" fused with {made.old_space.name!r}, weight {made.fusion.weight:g}, hubness correction {made.fusion.hubness}"
    outputs = [Artifact.of_index("index", made)]
    session.record(Run.of("index", inputs=inputs, outputs=outputs, parameters=parameters, seconds=seconds, rows=len(made)))
    session.emit(result, f"{text}, {factory}, {seconds:.1f} s")


def _open_old(path: str, space: str | None, id_column: str | None, vector_column: str | None) -> Collection:
    """A collection of old vectors; of a two-vector collection its old side. `space` is about the old vectors."""
    from embridge.errors import UndeclaredSpaceError

    with contextlib.suppress(UndeclaredSpaceError):
        old = open_source(path, None, id_column, vector_column).old_side
        vector_column = vector_column if old is None else old.vector_column
    return open_source(path, space, id_column, vector_column)


@click.command(cls=Verb)
@click.argument("index_path", metavar="INDEX")
@click.argument("queries", metavar="QUERIES")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Hits per query.")
@click.option(
    "--via", metavar="MAP", help="Map between the spaces of queries and index (fused: of the index), in either direction."
)
@click.option(
    "--old-queries", "--blend", metavar="OLD_QUERIES", help="The same queries by the old model, to blend or to fuse with."
)
@click.option("--weight", type=click.FloatRange(0, 1), help="Weight of the new side. [default: 0.5, or the fused index's]")
@_sides_option
@click.option("--hubness", metavar="QUERIES", help="Reference queries of the new space, where INDEX is a collection.")
@click.option("--old-hubness", metavar="OLD_QUERIES", help="Reference queries of the old space, where INDEX is a collection.")
@click.option("--params", default="", help='Search parameters of FAISS: "nprobe=32", "efSearch=128".')
@click.option("--exact", is_flag=True, help="Search a collection in a store row by row, not through the store's index.")
@click.option("--space", metavar="NAME[:METRIC]", help="Space of QUERIES, where the file does not name it.")
@_old_space_option
@click.option(
    "--index-space", metavar="NAME[:METRIC]", help="Space of a bare INDEX from elsewhere, or of a collection that names none."
)
@external_lists_option
@columns
@click.option("-o", "--output", metavar="FILE.parquet", help="Write hits as rows: query_id, rank, id, score.")
@overwrite_option
@verb()
def search(
    session: Session, index_path: str, queries: str, k: int, via: str | None, old_queries: str | None, weight: float | None,
    fused_hubness: str | None, hubness: str | None, old_hubness: str | None, params: str, exact: bool, space: str | None,
    old_space: str | None, index_space: str | None, external_lists: bool, id_column: str | None, vector_column: str | None,
    output: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Search an index with a file of queries of its own space or, through a map, of another space.

    A map into the space of the index is applied to the queries. Of a map out of it the adjoint is applied: this searches an old
    index with queries of the new model, without changing the index.

    A fused index takes the queries of both models. With the old model gone, --via projects the new queries to the old side. INDEX
    may be a collection too, which is searched by both its vectors where it has two: in a store through the store's own index, in
    Parquet exactly.

    \b
    embridge search old-in-new.faiss queries-new.parquet -k 10
    embridge search old.faiss queries-new.parquet --via map.safetensors
    embridge search old.faiss queries-new.parquet --via map.safetensors --old-queries queries-old.parquet -o hits.parquet
    embridge search fused.faiss queries-new.parquet --old-queries queries-old.parquet --weight 0.3
    embridge search both.parquet queries-new.parquet --via map.safetensors
    embridge search "postgresql://user@host/db?table=docs" queries-new.parquet --via map.safetensors
    """
    import embridge as eb
    from embridge.outputs import Output, check_outputs
    from embridge.records import Artifact, Run
    from embridge.stores.locations import looks_like_parquet
    from embridge.stores.uri import scheme_of
    from embridge.tables.hits import write_hits

    started = time.perf_counter()
    given = [index_path, queries, via, old_queries, hubness, old_hubness]
    if output:
        check_outputs(Output(output), overwrite=overwrite, inputs=given)
    named = (id_column, vector_column)
    if looks_like_parquet(index_path) or scheme_of(index_path):
        opened = open_source(index_path, index_space, *named)
        searched, old_side = Artifact.of_collection("collection", opened), opened.old_side
        known, default = (None if old_side is None else old_side.stated_space), eb.Fusion.default(has_bias=hubness is not None)
    else:
        opened = eb.open_index(index_path, space=index_space, external_lists=external_lists)
        searched, known, default = Artifact.of_index("index", opened), opened.old_space, opened.fusion or eb.Fusion()
    old_space = old_space or (known or (opened.space if isinstance(opened, eb.Index) else opened.stated_space)).name
    query_rows = open_source(queries, space, *named)
    translation = eb.load_map(via) if via else None
    old = _open_old(old_queries, old_space, *named) if old_queries else None
    references = open_source(hubness, space, *named) if hubness else None
    old_references = _open_old(old_hubness, old_space, *named) if old_hubness else None
    with session.status("searching"):
        ids, hits = eb.search(
            opened, query_rows, min(k, max(len(opened), 1)), via=translation, old_queries=old, weight=weight, hubness=fused_hubness,
            references=references, old_references=old_references, parameters=params, exact=exact,
        )  # fmt: skip
    if output:
        write_hits(output, ids, hits, inputs=given, overwrite=overwrite)
    seconds = time.perf_counter() - started
    inputs = [searched, Artifact.of_collection("queries", query_rows)]
    inputs += [Artifact.of_map("map", via, translation)] if via and translation else []
    further = {"old queries": old, "reference queries": references, "old reference queries": old_references}
    inputs += [Artifact.of_collection(role, side) for role, side in further.items() if side is not None]
    parameters: dict[str, Any] = {"k": k, "params": params, "exact": exact}
    if old is not None or known is not None:
        used = default.changed(weight, fused_hubness)
        parameters |= {"weight": used.weight, "hubness": str(used.hubness)}
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
