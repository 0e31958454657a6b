"""Verbs on a whole collection: convert, copy, verify."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from embridge.cli.backend import backend_options
from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    columns,
    device_option,
    open_source,
    overwrite_option,
    space_option,
    verb,
)

if TYPE_CHECKING:
    from embridge.records import Conversion


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("map_path", metavar="MAP")
@click.argument("output", metavar="OUT")
@space_option
@columns
@device_option
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Type of the vectors in OUT."
)
@click.option("--compact", is_flag=True, help="Smaller, slower files: byte stream split and zstd (float32 only).")
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the matrix products; tf32 needs CUDA.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Rows that cannot be translated: stop, or leave them out and list them in OUT.bad.parquet.",
)
@click.option(
    "--confidence",
    type=float,
    is_flag=False,
    flag_value=0.9,
    metavar="[LEVEL]",
    help="Add columns predicted_error and error_bound, which holds with this probability. [level: 0.9]",
)
@click.option("--keep-old", is_flag=True, help="Keep SRC's vectors as the column old_vector, for fused search.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run of the same source, map and options.")
@click.option("--batch-rows", type=click.IntRange(1), help="Rows read at a time. [default: by free memory]")
@overwrite_option
@verb()
@backend_options
def convert(
    session: Session, source: str, map_path: str, output: str, space: str | None, id_column: str | None,
    vector_column: str | None, **options: Any,
) -> None:  # fmt: skip
    """Translate a whole collection. Ids, order and other columns are kept; OUT is complete or absent.

    A folder is converted file by file into a folder, unless OUT ends in .parquet; its manifest, _embridge.json, lists what was
    written. --overwrite replaces only these files. An interrupted run leaves OUT.partial and OUT.journal; the same
    command with --resume continues them and gives the same bytes as an uninterrupted run.

    \b
    embridge convert old.parquet map.safetensors old-in-new.parquet
    embridge convert old.parquet map.safetensors old-in-new.parquet --resume
    embridge convert shards/ map.safetensors shards-in-new/ --device cuda --dtype float16
    embridge convert shards/ map.safetensors shards-in-new/ --backend ray --address auto
    embridge convert old.parquet map.safetensors old-in-new.parquet --confidence
    embridge convert old.parquet map.safetensors both.parquet --keep-old
    embridge convert old.faiss map.safetensors s3://bucket/old-in-new.parquet
    embridge convert old.parquet map.safetensors lancedb:///data/lance#old-in-new
    """
    import embridge as eb
    from embridge.conversion.run import makes_folder
    from embridge.outputs import CONVERSION, Output
    from embridge.records import Artifact, Run
    from embridge.stores.locations import is_remote

    collection = open_source(source, space, id_column, vector_column)
    if not is_remote(output):
        kind = Output(output, CONVERSION, folder=makes_folder(collection, output))
        check_outputs(kind, overwrite=options["overwrite"], resume=options["resume"], inputs=[source, map_path])
    translation = eb.load_map(map_path)
    try:
        with session.progress("converting") as progress:
            done = eb.convert(collection, translation, output, progress=progress, **options)
    except KeyboardInterrupt:
        click.echo(f"Interrupted. Run the same command with --resume to continue {output}.", err=True)
        raise SystemExit(130) from None
    parameters = {name: options[name] for name in ("dtype", "compact", "precision", "on_bad", "confidence", "keep_old")} | {
        "skipped": done.skipped
    }
    inputs = [Artifact.of_collection("source", collection), Artifact.of_map("map", map_path, translation)]
    outputs = [Artifact.of_collection("output", eb.open(output))]
    session.record(Run.of("convert", inputs=inputs, outputs=outputs, result=done, parameters=parameters))
    result = {"path": done.path, "rows": done.rows, "seconds": done.seconds}
    result |= {"rows_per_second": done.rows_per_second, "device": done.device, "skipped": done.skipped}
    result |= {"confidence": options["confidence"], "keep_old": options["keep_old"], "reused": done.reused}
    speed = f"{done.rows_per_second:,.0f} rows per second, {done.device}"
    reused = f"; {done.reused:,} were done before" if done.reused else ""
    session.emit(result, f"{output}: {done.rows:,} rows in {done.seconds:.1f} s ({speed}){left_out(done)}{reused}")


def left_out(done: Conversion) -> str:
    """What a conversion says about bad rows."""
    from embridge.stores.locations import beside
    from embridge.stores.uri import scheme_of

    listed = "" if scheme_of(done.path) else f", listed in {beside(done.path, '.bad.parquet')}"
    return f"; {done.skipped:,} bad rows left out{listed}" if done.skipped else ""


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("output", metavar="DST")
@space_option
@columns
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Type of the vectors in DST."
)
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Rows without a usable vector or id: stop, or leave them out.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run of the same source and options.")
@click.option("--batch-rows", type=click.IntRange(1), help="Rows read at a time. [default: by free memory]")
@overwrite_option
@verb()
def copy(
    session: Session, source: str, output: str, space: str | None, id_column: str | None, vector_column: str | None, **options: Any
) -> None:
    """Copy a collection to another store. Ids, vectors, other columns and the space are kept; DST is complete or cannot be opened.

    An interrupted run continues after the last id that DST has safely: the same command with --resume.

    \b
    embridge copy old.parquet lancedb:///data/lance#old
    embridge copy lancedb:///data/lance#old old.parquet --overwrite
    embridge copy "npy:///data/vectors.npy?ids=ids.parquet" old.parquet --space minilm
    """
    import embridge as eb
    from embridge.conversion.run import makes_folder
    from embridge.outputs import CONVERSION, Output
    from embridge.records import Artifact, Run
    from embridge.stores.locations import is_remote

    collection = open_source(source, space, id_column, vector_column)
    if not is_remote(output):
        kind = Output(output, CONVERSION, folder=makes_folder(collection, output))
        check_outputs(kind, overwrite=options["overwrite"], resume=options["resume"], inputs=[source])
    try:
        with session.progress("copying") as progress:
            done = eb.copy(collection, output, progress=progress, **options)
    except KeyboardInterrupt:
        click.echo(f"Interrupted. Run the same command with --resume to continue {output}.", err=True)
        raise SystemExit(130) from None
    inputs, outputs = [Artifact.of_collection("source", collection)], [Artifact.of_collection("output", eb.open(output))]
    parameters = {"dtype": options["dtype"], "on_bad": options["on_bad"], "skipped": done.skipped}
    session.record(Run.of("copy", inputs=inputs, outputs=outputs, parameters=parameters, seconds=done.seconds, rows=done.rows))
    result = {"path": done.path, "rows": done.rows, "seconds": done.seconds}
    result |= {"rows_per_second": done.rows_per_second, "skipped": done.skipped}
    speed = f"{done.rows_per_second:,.0f} rows per second"
    session.emit(result, f"{output}: {done.rows:,} rows in {done.seconds:.1f} s ({speed}){left_out(done)}")


@click.command(cls=Verb)
@click.argument("output", metavar="OUT")
@click.argument("map_path", metavar="[MAP]", required=False)
@click.option("--source", metavar="SRC", help="The collection that OUT was converted from.")
@click.option("--map", "named_map", metavar="MAP", help="The map that it was converted with, where it is not the second argument.")
@click.option(
    "--precision", type=click.Choice(["float32", "tf32", "bfloat16"]), default="float32", help="Precision of the conversion."
)
@click.option("--sample", type=click.IntRange(1), help="Migrated in place: rows that are recomputed. [default: all]")
@space_option
@columns
@verb()
@backend_options
def verify(
    session: Session, output: str, map_path: str | None, source: str | None, named_map: str | None, precision: Any,
    sample: int | None, space: str | None, backend: Any, **named: str | None,
) -> None:  # fmt: skip
    """Check a converted collection: all rows are read and ids must be unique; with SRC and MAP every vector is recomputed.

    Of a collection that was migrated in place, MAP alone recomputes the new vectors from the old ones.

    \b
    embridge verify old-in-new.parquet
    embridge verify old-in-new.parquet --source old.parquet --map map.safetensors
    embridge verify "postgresql://user@host/db?table=docs" map.safetensors --sample 10000
    """
    import embridge as eb
    from embridge.records import Artifact, Run

    started = time.perf_counter()
    if map_path and named_map:
        raise click.UsageError("Name the map once: as the second argument, or with --map.")
    map_path = map_path or named_map
    collection = open_source(source, space, **named) if source else None
    translation = eb.load_map(map_path) if map_path else None
    with session.progress("verifying") as progress:
        found = eb.verify(
            output, source=collection, translation=translation, precision=precision, sample=sample, backend=backend,
            progress=progress,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    inputs = [Artifact.of_collection("output", eb.open(output))]
    inputs += [Artifact.of_collection("source", collection)] if collection else []
    inputs += [Artifact.of_map("map", map_path, translation)] if map_path and translation else []
    parameters = {"compared": found.compared, "max_error": found.max_error}
    session.record(Run.of("verify", inputs=inputs, parameters=parameters, seconds=seconds, rows=found.rows))
    result = {"path": output, "rows": found.rows, "compared": found.compared, "max_error": found.max_error, "seconds": seconds}
    compared = f", {found.compared:,} recomputed, largest error {found.max_error:.1e}" if found.compared else ""
    session.emit(result, f"{output}: {found.rows:,} rows are correct{compared}")
