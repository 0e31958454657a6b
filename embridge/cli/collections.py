"""Verbs on a collection: info, encode."""

from __future__ import annotations

import time
import warnings
from typing import Any

import click

from embridge.cli.backend import backend_options
from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    columns,
    device_name,
    device_option,
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
    """Show rows, space, norms, duplicate ids and bad rows.

    Reads the whole collection once. For a file that does not name its space, the name is null. A two-vector collection has two
    spaces; --vector-column old_vector shows the old vectors.

    \b
    embridge info old.parquet
    embridge info "shards/*.parquet" --space minilm --id-column doc_id --vector-column embedding
    embridge info index.faiss --space minilm --json
    """
    import embridge as eb
    from embridge.errors import UndeclaredSpaceError
    from embridge.records import Artifact, Run

    started = time.perf_counter()
    is_named = True
    try:
        collection = open_source(source, space, **named)
    except UndeclaredSpaceError:
        collection, is_named = open_source(source, "undeclared", **named), False
    with session.progress("reading") as progress:
        found = eb.summarize(collection, progress=progress)
    space_found = collection.space.to_dict() | ({} if is_named else {"name": None})
    result: dict[str, Any] = {"rows": found.rows, "space": space_found, "norm": found.norm}
    result |= {"duplicate_ids": found.duplicate_ids, "bad_rows": found.bad_rows}
    result |= {"mean_cosine": found.mean_cosine, "effective_rank": found.effective_rank}
    if further := collection.payload_spaces:
        result["spaces"] = {collection.vector_column: space_found} | {c: s.to_dict() for c, s in further.items()}
    if is_named:
        seconds = time.perf_counter() - started
        inputs, parameters = [Artifact.of_collection("source", collection)], {"source": source}
        session.record(Run.of("info", inputs=inputs, parameters=parameters, seconds=seconds, rows=found.rows))
    columns = "".join(f"column {c}: {s.dim} dimensions, space {s.name}, {s.metric}\n" for c, s in further.items())
    lengths = ", ".join(f"{name} {value:.4f}" for name, value in found.norm.items())
    session.emit(
        result,
        f"{source}: {found.rows:,} rows, {collection.space.dim} dimensions, space {space_found['name'] or '(not declared)'}, "
        f"{collection.space.metric}, {'normalized' if collection.space.normalized else 'not normalized'}\n"
        f"{columns}norms: {lengths}\n"
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
@click.option("--prompt", metavar="TEXT", help="Prompt put before each text, for models that expect an instruction.")
@click.option("--prompt-name", metavar="NAME", help="A prompt of the model, such as query or document.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Texts per forward pass.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@device_option
@overwrite_option
@verb()
@backend_options
def encode(session: Session, texts: str, model: str, output: str, id_column: str | None, ids: str | None, **options: Any) -> None:
    """Encode a text column with a sentence-transformers model.

    If interrupted, the same command continues; work is kept in OUT.parts until OUT is complete. The file's
    metadata embridge.encoder records the prompt.

    \b
    embridge encode texts.parquet --model all-mpnet-base-v2 -o new.parquet
    embridge encode queries.parquet --model intfloat/e5-base --prompt-name query -o queries-new.parquet
    embridge encode texts.parquet --model ./my-model --space mine --ids ids.parquet -o new-sample.parquet
    """
    import embridge as eb
    from embridge.encoding import PromptWarning, encoder_of
    from embridge.outputs import ENCODING, Output
    from embridge.records import Artifact, Run
    from embridge.tables.ids import read_ids

    started = time.perf_counter()
    check_outputs(Output(output, ENCODING), overwrite=options["overwrite"], inputs=[texts, ids])
    only = read_ids(ids) if ids else None
    with session.progress("encoding") as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptWarning)
        made = eb.encode(texts, model, output, id_column=id_column or "id", only=only, progress=progress, **options)
    for warning in caught:
        click.echo(f"Warning: {warning.message}", err=True)
    seconds = time.perf_counter() - started
    encoder = encoder_of(made)
    inputs = [Artifact.of_file("texts", texts), *([Artifact.of_file("ids", ids)] if ids else [])]
    parameters = {"model": model, "text_column": options["text_column"], "dtype": options["dtype"]}
    parameters |= {name: encoder[name] for name in ("prompt", "prompt_name", "prompts")}
    backend, outputs = options["backend"], [Artifact.of_collection("output", made)]
    device = device_name(options["device"]) if backend == "local" else backend.device
    session.record(
        Run.of("encode", inputs=inputs, outputs=outputs, parameters=parameters, seconds=seconds, rows=len(made), device=device)
    )
    result = {"path": output, "rows": len(made), "space": made.space.to_dict(), "seconds": seconds}
    result |= {"prompt": encoder["prompt"], "prompt_name": encoder["prompt_name"]}
    session.emit(result, f"{output}: {len(made):,} rows of {made.space.name!r} ({made.space.dim}) in {seconds:.1f} s")
