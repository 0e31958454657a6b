"""Verbs on decoders: decode a collection; register, list, show and evaluate decoders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    catalog_option,
    columns,
    device_option,
    open_source,
    overwrite_option,
    seed_option,
    source_space_option,
    space_option,
    table,
    target_space_option,
    verb,
)

_KINDS = click.Choice(["classifier", "regressor", "output"])
_decoder_space = click.option(
    "--decoder-space", metavar="NAME[:METRIC]", help="Space of the decoder, where neither file nor sidecar names it."
)
_kind = click.option("--kind", type=_KINDS, help="Kind of an ONNX or torch program with one output. [default: by its width]")
_trust = click.option(
    "--trust", "trusted", multiple=True, metavar="TYPE", help="A type (skops) or operator (torch, ONNX) to trust."
)


def _open(path: str, space: str | None, trusted: tuple[str, ...], kind: Any = None) -> Any:
    import embridge as eb

    return eb.open_decoder(path, space=space, kind=kind, trusted=trusted)


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.option(
    "--decoder", "decoder_path", required=True, metavar="D", help="*.safetensors (linear head), *.skops, *.onnx or *.pt2."
)
@click.option("--via", metavar="MAP", help="A map from the space of SRC to that of the decoder.")
@click.option("-o", "--output", required=True, metavar="OUT", help="The Parquet file to write.")
@_decoder_space
@_kind
@_trust
@space_option
@columns
@device_option
@click.option("--batch-rows", type=click.IntRange(1), help="Rows decoded at a time. [default: 8 MiB of vectors]")
@overwrite_option
@verb()
def decode(
    session: Session, source: str, decoder_path: str, via: str | None, output: str, decoder_space: str | None, kind: Any,
    trusted: tuple[str, ...], space: str | None, id_column: str | None, vector_column: str | None, device: str, **options: Any,
) -> None:  # fmt: skip
    """Run a decoder over every row of a collection.

    OUT has the ids, the payload and the columns prediction, probability or output (lists), but no vectors. A linear head and
    a map are combined into one matrix.

    \b
    embridge decode new.parquet --decoder head.safetensors -o labels.parquet
    embridge decode old.parquet --decoder svm.skops --via old-to-new.safetensors -o labels.parquet
    embridge decode old.parquet --decoder net.onnx --decoder-space mpnet --via old-to-new.safetensors -o out.parquet
    """
    import embridge as eb
    from embridge.records import Artifact, Run

    collection = open_source(source, space, id_column, vector_column)
    decoder = _open(decoder_path, decoder_space, trusted, kind)
    translation = eb.load_map(via) if via else None
    with session.progress("decoding") as progress:
        done = eb.decode(collection, decoder, output, via=translation, device=device, progress=progress, **options)
    inputs = [Artifact.of_collection("source", collection), Artifact.of_decoder("decoder", decoder)]
    inputs += [Artifact.of_map("map", via, translation)] if via and translation else []
    outputs = [Artifact("output", output, done.fingerprint, "table")]
    parameters = {"columns": list(done.columns), "folded": done.folded}
    session.record(Run.of("decode", inputs=inputs, outputs=outputs, result=done, parameters=parameters))
    result = {"path": done.path, "rows": done.rows, "columns": list(done.columns), "folded": done.folded}
    result |= {"seconds": done.seconds, "rows_per_second": done.rows_per_second, "device": done.device}
    how = "folded with the map into one matrix, " if done.folded else ""
    text = f"{output}: {done.rows:,} rows in {done.seconds:.1f} s ({how}{done.rows_per_second:,.0f} a second, {done.device}): "
    session.emit(result, text + ", ".join(done.columns))


@click.group()
def decoder() -> None:
    """Declare, list and evaluate decoders: models trained on one space.

    \b
    embridge decoder register svm.skops --space mpnet
    embridge decoder evaluate svm.skops old.parquet new.parquet --via map.safetensors --labels labels.parquet
    """


@decoder.command(cls=Verb)
@click.argument("path", metavar="D")
@click.option("--space", required=True, metavar="NAME[:METRIC]", help="Space of the decoder's input.")
@click.option("--name", help="Name of the decoder. [default: the file's name]")
@_kind
@click.option("--classes", metavar="A,B,...", help="Class names, in the order of the outputs, for a classifier without names.")
@click.option("--normalized", is_flag=True, default=None, help="Vectors of the space have unit length.")
@_trust
@overwrite_option
@verb()
def register(
    session: Session, path: str, space: str, name: str | None, kind: Any, classes: str | None, normalized: bool | None,
    trusted: tuple[str, ...], overwrite: bool,
) -> None:  # fmt: skip
    """Declare the space of a decoder's input, after checking that it opens and decodes.

    The declaration is written to D.json, unless the file itself holds it (as linear heads do).

    \b
    embridge decoder register svm.skops --space mpnet
    embridge decoder register net.onnx --space mpnet:dot --kind classifier --classes cat,dog
    """
    import embridge as eb
    from embridge.records import Artifact, DecoderRecord, Run

    started = time.perf_counter()
    named = classes.split(",") if classes else None
    found = eb.register_decoder(path, space, kind=kind, classes=named, normalized=normalized, trusted=trusted, overwrite=overwrite)
    record = DecoderRecord(name or Path(path).stem, found.format, found.kind, _classes(found))
    outputs, seconds = [Artifact.of_decoder("decoder", found)], time.perf_counter() - started
    session.record(Run.of("decoder register", outputs=outputs, result=record, parameters={"space": space}, seconds=seconds))
    session.emit(_facts(found) | {"name": record.name}, f"{record.name}: {found!r}")


@decoder.command(name="list", cls=Verb)
@catalog_option
@verb(catalog=False)
def list_(session: Session, catalog_path: str | None) -> None:
    """List registered decoders with their last score behind a map.

    \b
    embridge decoder list
    """
    from embridge.catalog import Catalog

    found = Catalog(catalog_path).decoders()
    session.emit(found, table(found))


@decoder.command(cls=Verb)
@click.argument("path", metavar="D")
@_decoder_space
@_trust
@verb(catalog=False)
def show(session: Session, path: str, decoder_space: str | None, trusted: tuple[str, ...]) -> None:
    """Show the space, kind and classes of a decoder.

    \b
    embridge decoder show svm.skops
    """
    found = _facts(_open(path, decoder_space, trusted))
    lines = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in found.items()}
    session.emit(found, "\n".join(f"{k:<12} {v}" for k, v in lines.items() if v is not None))


@decoder.command(cls=Verb)
@click.argument("path", metavar="D")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("--via", required=True, metavar="MAP", help="A map from the space of SRC to that of TGT and the decoder.")
@click.option(
    "--labels",
    required=True,
    metavar="LABELS",
    help="Parquet with a column of ids (--id-column, else id) and one of labels; it may be SRC itself.",
)
@click.option("--label-column", default="label", show_default=True, help="Column of LABELS: classes, numbers, or lists of numbers.")
@click.option(
    "--exclude", metavar="IDS", help="Parquet with a column of ids (--id-column, else id): rows that the decoder was trained on."
)
@click.option("--no-retrain", is_flag=True, help="Do not retrain a decoder on SRC.")
@_decoder_space
@_kind
@_trust
@source_space_option
@target_space_option
@columns
@seed_option
@verb()
def evaluate(
    session: Session, path: str, source: str, target: str, via: str, labels: str, label_column: str, exclude: str | None,
    no_retrain: bool, decoder_space: str | None, kind: Any, trusted: tuple[str, ...], source_space: str | None,
    target_space: str | None, id_column: str | None, vector_column: str | None, seed: int,
) -> None:  # fmt: skip
    """Measure a decoder on translated vectors, compared with its own space, no translation, and a decoder retrained on SRC.

    The test rows are the labeled shared rows of SRC and TGT that the map was not fitted on; the retrained decoder is trained on
    the others.

    \b
    embridge decoder evaluate svm.skops old.parquet new.parquet --via map.safetensors --labels labels.parquet
    """
    import embridge as eb
    from embridge.files import one_file
    from embridge.records import Artifact, Run
    from embridge.tables.ids import read_ids
    from embridge.tables.targets import read_targets

    started = time.perf_counter()
    found = _open(path, decoder_space, trusted, kind)
    translation = eb.load_map(via)
    old = open_source(source, source_space, id_column, vector_column)
    new = open_source(target, target_space, id_column, vector_column)
    same = id_column or (old.id_column if one_file(labels, source) else "id")
    known = read_targets(labels, label_column, same)
    apart = read_ids(exclude, id_column or "id") if exclude else ()
    with session.status("matching ids"):
        shared = eb.match(old, new)
    with session.progress("evaluating") as progress:
        result = eb.evaluate_decoder(
            found, shared, known, via=translation, exclude=apart, retrained=not no_retrain, seed=seed, progress=progress
        )
    inputs = [Artifact.of_decoder("decoder", found), Artifact.of_map("map", via, translation)]
    inputs += [Artifact.of_collection("source", old), Artifact.of_collection("target", new), Artifact.of_file("labels", labels)]
    inputs += [Artifact.of_file("excluded ids", exclude)] if exclude else []
    seconds = time.perf_counter() - started
    parameters = {"label_column": label_column, "seed": seed, "retrained": not no_retrain}
    session.record(Run.of("decoder evaluate", inputs=inputs, result=result, parameters=parameters, seconds=seconds, device="cpu"))
    head = f"{Path(path).name}: {result.rows:,} labeled rows that the map was not fitted on"
    tail = f"; retrained on {result.trained_on:,} others" if result.trained_on else ""
    session.emit(result.to_dict(), f"{head}{tail}\n{result}")


def _classes(found: Any) -> tuple[Any, ...]:
    return () if found.classes is None else tuple(found.classes.tolist())


def _facts(found: Any) -> dict[str, Any]:
    return {
        "path": found.path,
        "format": found.format,
        "kind": found.kind,
        "space": found.space.to_dict(),
        "classes": None if found.classes is None else found.classes.tolist(),
        "fingerprint": found.fingerprint,
    }
