"""The verb that migrates an index, or a collection in place, to another space: migrate."""

from __future__ import annotations

from typing import Any

import click

from embridge.cli.in_place import OF_STORES, check_options, migrate_collection
from embridge.cli.session import (
    Session,
    Verb,
    columns,
    device_option,
    external_lists_option,
    on_disk_option,
    open_source,
    overwrite_option,
    seed_option,
    verb,
)


@click.command(cls=Verb)
@click.argument("path", metavar="OLD.faiss|URI")
@click.argument("map_path", metavar="MAP")
@click.argument("output", metavar="[NEW.faiss]", required=False)
@click.option(
    "--mode",
    type=click.Choice(["auto", "wrap", "rewrite", "move", "rebuild", "column", "shadow"]),
    help="Index: wrap puts the map in front, rewrite (or move) rewrites the vectors in place, rebuild builds the index again. "
    "Collection: column adds a second vector to every row, shadow writes a second collection. [default: auto; what the store has]",
)
@click.option(
    "--min-recall",
    type=click.FloatRange(0, 1),
    help="Refuse a result in which sampled queries find a smaller share of their true 10 nearest rows.",
)
@click.option(
    "--queries", metavar="QUERIES", help="Queries of the new space to verify with. [default: rows plus noise, translated]"
)
@click.option("--verify-queries", type=click.IntRange(1), default=100, show_default=True, help="Number of queries used to verify.")
@click.option("--hubness", metavar="REFERENCES", help="Queries of the new space: rebuild with hubness correction.")
@click.option("--space", metavar="NAME[:METRIC]", help="Space of OLD.faiss, where no sidecar names it.")
@click.option("--query-space", metavar="NAME[:METRIC]", help="Space of QUERIES and REFERENCES, where the files do not name it.")
@external_lists_option
@on_disk_option
@columns
@seed_option
@overwrite_option
@click.option(
    "--into", metavar="NAME", help="Collection: name of the new column or of the shadow. [default: the old one with _new]"
)
@click.option(
    "--metric", type=click.Choice(["cosine", "dot", "l2"]), help="Collection: of the new vectors. [default: as the old ones]"
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), help="Collection: of the new vectors. [default: as the old ones]"
)
@click.option(
    "--mark-changed",
    is_flag=True,
    help="Collection: notice rows whose old vector changes until the cutover, by a trigger (PostgreSQL).",
)
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    help="Collection: rows that cannot be translated stop the migration, or stay without a new vector. [default: stop]",
)
@click.option("--resume", is_flag=True, help="Collection: continue a migration, or take in the rows that were added since.")
@click.option("--dry-run", is_flag=True, help="Collection: print the steps, with estimated time and space; write nothing.")
@device_option
@click.option(
    "--precision", type=click.Choice(["float32", "tf32", "bfloat16"]), default="float32", help="Collection: of the products."
)
@click.option("--batch-rows", type=click.IntRange(1), help="Collection: rows read at a time. [default: by free memory]")
@verb()
def migrate(session: Session, path: str, map_path: str, output: str | None, mode: str | None, **options: Any) -> None:
    """Migrate a FAISS index, or a collection in place, to the space at the other end of a map.

    A collection in a store gets new vectors beside the old ones, which stay in use. A run that is interrupted continues with
    --resume. embridge cutover puts the new vectors into use, embridge rollback the old ones again, and embridge drop-vector
    removes one side. embridge verify URI MAP recomputes the new vectors.

    An index is written as a new one; ids, deletions and search settings are kept.

    wrap and rewrite are exact (they give the results of the old index for projected queries) under inner product for any map,
    under L2 for an isometry, and under cosine for a rotation without offset. Every result is compared with brute force before
    it is written; --json reports the comparison.

    \b
    embridge migrate old.faiss map.safetensors new.faiss
    embridge migrate old.faiss map.safetensors new.faiss --mode rewrite --min-recall 0.9
    embridge migrate foreign.faiss map.safetensors new.faiss --space minilm --queries queries-new.parquet
    embridge migrate old.faiss map.safetensors new.faiss --mode rebuild --hubness more-queries-new.parquet
    embridge migrate "postgresql://user@host/db?table=docs&id=id" map.safetensors --space minilm --dry-run
    """
    from embridge.stores.uri import scheme_of

    in_place = scheme_of(path) is not None
    check_options(in_place=in_place, output=output, mode=mode)
    if in_place:
        named = {name: options[name] for name in (*OF_STORES, "space", "id_column", "vector_column")}
        migrate_collection(session, path, map_path, mode=mode, **named)
    else:
        for name in OF_STORES:
            options.pop(name)
        _migrate_index(session, path, map_path, str(output), mode or "auto", **options)


def _migrate_index(
    session: Session, index_path: str, map_path: str, output: str, mode: str, min_recall: float | None, queries: str | None,
    verify_queries: int, hubness: str | None, space: str | None, query_space: str | None, external_lists: bool, on_disk: bool,
    id_column: str | None, vector_column: str | None, seed: int, overwrite: bool,
) -> None:  # fmt: skip
    """Migrate a FAISS index into a new file."""
    import embridge as eb
    from embridge.outputs import INDEX, ON_DISK, Output, check_outputs
    from embridge.records import Artifact, Run
    from embridge.types import space_mismatch

    check_outputs(
        Output(output, ON_DISK if on_disk else INDEX), overwrite=overwrite, inputs=[index_path, map_path, queries, hubness]
    )
    translation = eb.load_map(map_path)
    inputs, vectors = [], []
    for role, path in (("queries", queries), ("reference queries", hubness)):
        opened = open_source(path, query_space, id_column, vector_column) if path else None
        if opened is not None:
            if not any(opened.space.same_as(end) for end in (translation.source, translation.target)):
                raise space_mismatch("The migrated index", translation.target, opened.name, opened.space)
            inputs.append(Artifact.of_collection(role, opened))
        vectors.append(opened.read()[1] if opened else None)
    with session.progress("rebuilding") as progress:
        done = eb.migrate(
            index_path, translation, output, mode=mode, space=space, min_recall=min_recall, queries=vectors[0],
            hubness=vectors[1], verify_queries=verify_queries, external_lists=external_lists, on_disk=on_disk, overwrite=overwrite,
            seed=seed, progress=progress,
        )  # fmt: skip
    old = Artifact("index", index_path, done.source, "faiss", done.rows, done.source_space)
    new = Artifact("index", output, done.fingerprint, "faiss", done.rows, done.space)
    parameters = {"requested": mode, "mode": done.mode, "exact": done.exact, "verified_overlap": done.verified_overlap}
    parameters |= {"queries_verified": done.queries_verified, "min_recall": min_recall, "seed": seed}
    inputs = [old, Artifact.of_map("map", map_path, translation), *inputs]
    session.record(Run.of("migrate", inputs=inputs, outputs=[new], result=done, parameters=parameters))
    result = done.to_dict() | {"path": output}
    how = "exact" if done.exact else "approximate"
    text = f"{output}: {done.rows:,} vectors of {done.space.name!r} by {done.mode}, {how}, {done.seconds:.1f} s\n{done.reason}"
    session.emit(result, text)
