"""Verbs on pairs of collections: anchors, evaluate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    collection_artifact,
    columns,
    device_name,
    device_option,
    file_artifact,
    map_artifact,
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
    """Rows that two collections share: choose which to re-encode, count which are there.

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
    help="uniform: at random; kmeans: one row near each of n centres, to cover sparse regions too.",
)
@space_option
@columns
@seed_option
@overwrite_option
@verb()
def sample(
    session: Session, source: str, size: int, output: str, strategy: Any, space: str | None, seed: int, overwrite: bool,
    **named: str | None,
) -> None:  # fmt: skip
    """Choose which rows to re-encode with the new model.

    \b
    embridge anchors sample old.parquet -n 5000 -o ids.parquet
    embridge anchors sample old.parquet -n 2000 --strategy kmeans -o ids.parquet
    """
    import embridge as eb
    from embridge.anchors import ids_at
    from embridge.records import Run
    from embridge.stores.tables import write_ids

    started = time.perf_counter()
    check_outputs(output, overwrite=overwrite, inputs=[source])
    collection = open_source(source, space, **named)
    with session.status("choosing rows"):
        ids = ids_at(collection, eb.sample_rows(collection, size, strategy=strategy, seed=seed))
    write_ids(output, ids)
    seconds = time.perf_counter() - started
    parameters = {"n": size, "strategy": strategy, "seed": seed}
    inputs, outputs = (collection_artifact("source", collection),), (file_artifact("ids", output),)
    session.record(Run("anchors sample", parameters, seconds, inputs, outputs, size))
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
    from embridge.ids import match_rows
    from embridge.records import Run

    started = time.perf_counter()
    old, new = open_source(source, source_space, **named), open_source(target, target_space, **named)
    with session.status("matching ids"):
        shared = len(match_rows(old, new)[0])
    seconds = time.perf_counter() - started
    inputs = (collection_artifact("source", old), collection_artifact("target", new))
    session.record(Run("anchors match", {}, seconds, inputs, rows=shared))
    result = {"shared": shared, "source_rows": len(old), "target_rows": len(new), "seconds": seconds}
    session.emit(result, f"{shared:,} shared ids; {source} has {len(old):,} rows, {target} has {len(new):,}")


@click.command(cls=Verb)
@click.argument("map_path", metavar="MAP")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("--queries", nargs=2, metavar="QS QT", help="Queries by the source's and by the target's model.")
@click.option("--qrels", metavar="R", help="Parquet with query_id, doc_id and, if it has one, score (above 0 is relevant).")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours compared.")
@click.option("--weight", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Of the new query in the blend.")
@click.option("--hubness", metavar="REFERENCES", help="Other queries by the target's model: measure a hubness bias too.")
@click.option(
    "--max-queries", type=click.IntRange(1), default=5000, show_default=True, help="Of more queries than these a sample asks."
)
@source_space_option
@target_space_option
@columns
@seed_option
@device_option
@verb()
def evaluate(
    session: Session, map_path: str, source: str, target: str, queries: tuple[str, str] | None, qrels: str | None,
    hubness: str | None, source_space: str | None, target_space: str | None, id_column: str | None, vector_column: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Measure a map beside leaving the old index alone and re-encoding everything.

    Corpus are the shared rows of SRC and TGT that the map was not fitted on. Without --queries they are the queries too, and
    do not find themselves.

    \b
    embridge evaluate map.safetensors old.parquet new.parquet
    embridge evaluate map.safetensors old.parquet new.parquet --queries q-old.parquet q-new.parquet --qrels qrels.parquet -k 10
    embridge evaluate map.safetensors old.parquet new.parquet --hubness more-queries-new.parquet
    """
    import embridge as eb
    from embridge.errors import ParameterError, SpaceMismatchError
    from embridge.records import Run
    from embridge.stores.tables import read_qrels

    started = time.perf_counter()
    if qrels and not queries:
        raise ParameterError("--qrels judges queries; give them with --queries QS QT.")
    translation = eb.LinearMap.load(map_path)
    source_space, target_space = source_space or None, target_space or None
    sides = [(source, source_space), (target, target_space)]
    sides += list(zip(queries, (source_space, target_space), strict=True)) if queries else []
    opened = [open_source(path, space, id_column, vector_column) for path, space in sides]
    with session.status("matching ids"):
        shared = eb.match(opened[0], opened[1])
        asked = eb.match(opened[2], opened[3]) if queries else None
    judged = read_qrels(qrels) if qrels else None
    references = open_source(hubness, target_space, id_column, vector_column) if hubness else None
    if references is not None and not references.space.same_as(translation.target):
        raise SpaceMismatchError.between("The hubness bias", translation.target, references.name, references.space)
    vectors = references.read()[1] if references else None
    with session.progress("evaluating") as progress:
        found = eb.evaluate(translation, shared, queries=asked, qrels=judged, hubness=vectors, progress=progress, **options)
    roles = ("source", "target", "source queries", "target queries")
    inputs = [map_artifact("map", map_path, translation)]
    inputs += [collection_artifact(role, side) for role, side in zip(roles, opened, strict=False)]
    inputs += [file_artifact("qrels", qrels)] if qrels else []
    inputs += [collection_artifact("reference queries", references)] if references else []
    seconds = time.perf_counter() - started
    device = device_name(options["device"])
    session.record(Run("evaluate", options, seconds, tuple(inputs), (), found.corpus, device, (found,)))
    result = found.to_dict()
    head = f"{Path(map_path).name}: {found.queries:,} queries over {found.corpus:,} rows that the map was not fitted on"
    tail = f"mean cosine {found.mean_cosine:.3f}, relative residual {found.relative_residual:.3f}"
    tail += f"; recall and MRR over the {found.judged:,} queries with a relevant row among these" if found.judged else ""
    tail += f"\nconfidence: {found.confidence}" if found.confidence else ""
    session.emit(result, f"{head}\n{found}\n{tail}")
