"""Verbs on a collection: info, encode."""

from __future__ import annotations

import time
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
    id_option,
    open_source,
    overwrite_option,
    space_option,
    verb,
)


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@space_option
@columns
@verb()
def info(session: Session, source: str, space: str | None, **named: str | None) -> None:
    """Tell what is in a collection: rows, space, norms, duplicate ids, bad rows.

    Reads everything once. A file that does not name its space is told as it is, with the name null.

    \b
    embridge info old.parquet
    embridge info "shards/*.parquet" --space minilm --id-column doc_id --vector-column embedding
    embridge info index.faiss --space minilm --json
    """
    import embridge as eb
    from embridge.errors import UndeclaredSpaceError
    from embridge.records import Run

    started = time.perf_counter()
    is_named = True
    try:
        collection = open_source(source, space, **named)
    except UndeclaredSpaceError:
        collection, is_named = open_source(source, "undeclared", **named), False
    with session.progress("reading") as progress:
        found = eb.summarise(collection, progress=progress)
    told = collection.space.to_dict() | ({} if is_named else {"name": None})
    result: dict[str, Any] = {"rows": found.rows, "space": told, "norm": found.norm}
    result |= {"duplicate_ids": found.duplicate_ids, "bad_rows": found.bad_rows}
    result |= {"mean_cosine": found.mean_cosine, "effective_rank": found.effective_rank}
    if is_named:
        seconds = time.perf_counter() - started
        artifact = collection_artifact("source", collection)
        session.record(Run("info", {"source": source}, seconds, inputs=(artifact,), rows=found.rows))
    lengths = ", ".join(f"{name} {value:.4f}" for name, value in found.norm.items())
    session.emit(
        result,
        f"{source}: {found.rows:,} rows, {collection.space.dim} dimensions, space {told['name'] or '(not declared)'}, "
        f"{collection.space.metric}, {'normalised' if collection.space.normalized else 'not normalised'}\n"
        f"norms: {lengths}\n"
        f"mean cosine of two rows: {found.mean_cosine:.3f}; effective rank: {found.effective_rank:.1f} of {collection.space.dim}\n"
        f"ids that occur more than once: {found.duplicate_ids:,}; bad rows: {found.bad_rows:,}",
    )


@click.command(cls=Verb)
@click.argument("texts", metavar="TEXTS")
@click.option("--model", required=True, help="A sentence-transformers model: name or path.")
@click.option("-o", "--output", required=True, metavar="OUT", help="The Parquet file to write.")
@click.option("--space", metavar="NAME", help="Name of the space. [default: last part of the model's name]")
@click.option("--text-column", default="text", show_default=True, metavar="NAME")
@id_option
@click.option("--ids", metavar="IDS", help="Encode only these: Parquet with a column id (from `anchors sample`).")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Texts a forward pass.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@device_option
@overwrite_option
@verb()
def encode(session: Session, texts: str, model: str, output: str, id_column: str | None, ids: str | None, **options: Any) -> None:
    """Encode a text column with a sentence-transformers model.

    Interrupted, it goes on where it stopped when it is called again; work is kept in OUT.parts until OUT is whole.

    \b
    embridge encode texts.parquet --model all-mpnet-base-v2 -o new.parquet
    embridge encode texts.parquet --model ./my-model --space mine --ids ids.parquet -o new-sample.parquet
    """
    import embridge as eb
    from embridge.records import Run
    from embridge.stores.tables import read_ids

    started = time.perf_counter()
    check_outputs(output, overwrite=options["overwrite"], inputs=[texts, *([ids] if ids else [])])
    only = read_ids(ids) if ids else None
    with session.progress("encoding") as progress:
        made = eb.encode(texts, model, output, id_column=id_column or "id", only=only, progress=progress, **options)
    seconds = time.perf_counter() - started
    inputs = (file_artifact("texts", texts), *([file_artifact("ids", ids)] if ids else []))
    parameters = {"model": model, "text_column": options["text_column"], "dtype": options["dtype"]}
    device, outputs = device_name(options["device"]), (collection_artifact("output", made),)
    session.record(Run("encode", parameters, seconds, inputs, outputs, len(made), device))
    result = {"path": output, "rows": len(made), "space": made.space.to_dict(), "seconds": seconds}
    session.emit(result, f"{output}: {len(made):,} rows of {made.space.name!r} ({made.space.dim}) in {seconds:.1f} s")
