"""The verb that migrates an index to another space: migrate."""

from __future__ import annotations

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
    verb,
)


@click.command(cls=Verb)
@click.argument("index_path", metavar="OLD.faiss")
@click.argument("map_path", metavar="MAP")
@click.argument("output", metavar="NEW.faiss")
@click.option(
    "--mode",
    type=click.Choice(["auto", "wrap", "rewrite", "move", "rebuild"]),
    default="auto",
    show_default=True,
    help="wrap: put the map in front; rewrite (or move): rewrite the vectors in place; rebuild: build the index again.",
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
@verb()
def migrate(
    session: Session, index_path: str, map_path: str, output: str, mode: str, min_recall: float | None, queries: str | None,
    verify_queries: int, hubness: str | None, space: str | None, query_space: str | None, external_lists: bool, on_disk: bool,
    id_column: str | None, vector_column: str | None, seed: int, overwrite: bool,
) -> None:  # fmt: skip
    """Migrate a FAISS index to the space at the other end of a map; ids, deletions and search settings are kept.

    wrap and rewrite are exact (they give the results of the old index for projected queries) under inner product for any map,
    under L2 for an isometry, and under cosine for a rotation without offset. Every result is compared with brute force before
    it is written; --json reports the comparison.

    \b
    embridge migrate old.faiss map.safetensors new.faiss
    embridge migrate old.faiss map.safetensors new.faiss --mode rewrite --min-recall 0.9
    embridge migrate foreign.faiss map.safetensors new.faiss --space minilm --queries queries-new.parquet
    embridge migrate old.faiss map.safetensors new.faiss --mode rebuild --hubness more-queries-new.parquet
    """
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
