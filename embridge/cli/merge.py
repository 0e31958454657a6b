"""The verb that merges native and translated rows into one collection: merge."""

from __future__ import annotations

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
    verb,
)


@click.command(cls=Verb)
@click.argument("native", metavar="NATIVE")
@click.argument("translated", metavar="TRANSLATED")
@click.option("-o", "--output", required=True, metavar="OUT.parquet", help="The Parquet file to write.")
@click.option("--queries", metavar="QUERIES", help="Queries of the new model, to calibrate with. [default: rows on both sides]")
@click.option("--map", "map_path", metavar="MAP", help="Map that made TRANSLATED: rows it was fitted on are not used to calibrate.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Hits per query in later searches.")
@click.option("--max-queries", type=click.IntRange(1), default=2000, show_default=True, help="Larger sets of queries are sampled.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Type of the vectors in OUT."
)
@click.option("--space", metavar="NAME[:METRIC]", help="Space of all files that do not name it.")
@columns
@seed_option
@device_option
@overwrite_option
@verb()
def merge(
    session: Session, native: str, translated: str, output: str, queries: str | None, map_path: str | None, k: int,
    max_queries: int, dtype: str, space: str | None, id_column: str | None, vector_column: str | None, seed: int, device: str,
    overwrite: bool,
) -> None:  # fmt: skip
    """Merge rows of the new model and translated rows into one collection with comparable scores.

    An id on both sides is written once, as native. The column provenance is native or translated. From the rows on both sides an
    offset is estimated and stored in OUT; `embridge index` and `embridge search` add it to the scores of translated rows.

    \b
    embridge merge re-encoded.parquet old-in-new.parquet -o mixed.parquet --queries queries-new.parquet --map map.safetensors
    embridge merge more-re-encoded.parquet mixed.parquet -o mixed-2.parquet
    embridge merge re-encoded.parquet old-in-new.faiss -o mixed.parquet -k 100
    """
    import embridge as eb
    from embridge.records import Artifact, Run

    check_outputs(output, overwrite=overwrite, inputs=[native, translated, queries, map_path])
    named = (space, id_column, vector_column)
    sides = [open_source(native, *named), open_source(translated, *named)]
    opened = open_source(queries, *named) if queries else None
    translation = eb.load_map(map_path) if map_path else None
    device = device_name(device)
    with session.progress("merging") as progress:
        done = eb.merge(
            *sides, output, queries=opened, translation=translation, k=k, max_queries=max_queries, dtype=dtype, overwrite=overwrite,
            seed=seed, device=device, progress=progress,
        )  # fmt: skip
    inputs = [Artifact.of_collection("native", sides[0]), Artifact.of_collection("translated", sides[1])]
    inputs += [Artifact.of_collection("queries", opened)] if opened else []
    inputs += [Artifact.of_map("map", map_path, translation)] if map_path and translation else []
    result = done.to_dict()
    left_out = ("path", "seconds", "rows", "native_source", "translated_source", "fingerprint")
    parameters = {name: value for name, value in result.items() if name not in left_out}
    parameters |= {"dtype": dtype, "seed": seed, "max_queries": max_queries}
    outputs = [Artifact.of_collection("output", eb.open(output))]
    session.record(Run.of("merge", inputs=inputs, outputs=outputs, result=done, parameters=parameters, device=device))
    session.emit(result, str(done))
