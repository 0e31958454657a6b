"""The verb that fits a map and its reverse: fit."""

from __future__ import annotations

import time
from typing import Any

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
    seed_option,
    source_space_option,
    target_space_option,
    verb,
)


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("-o", "--output", required=True, metavar="MAP", help="The map to write, usually *.safetensors.")
@click.option(
    "--reverse-output",
    metavar="MAP",
    help="Also write the reverse map: the regression from TGT to SRC on the same rows. It is not the inverse of MAP.",
)
@click.option(
    "--method",
    type=click.Choice(
        ["auto", "bridge", "ridge", "rotation", "isometry", "projection", "affine", "linear", "l-ortho", "ortho", "kernel"]
    ),
    default="auto",
    show_default=True,
    help="auto chooses for the role; with --alpha or --share it is bridge. kernel maps documents better than any affine "
    "map, but cannot migrate an index and has no adjoint.",
)
@click.option(
    "--for",
    "role",
    type=click.Choice(["documents", "queries", "decode", "search"]),
    default="documents",
    show_default=True,
    help="What the map is for: translating rows (documents or search), projecting queries of SRC onto rows of TGT, or "
    "feeding decoders of TGT. The reverse map gets the opposite role.",
)
@click.option("--keep-affine", is_flag=True, help="auto does not consider kernel, so that the map can migrate an index.")
@click.option(
    "--queries",
    nargs=2,
    metavar="QS QT",
    help="Queries by both models: auto uses half of them to choose a method, instead of documents.",
)
@click.option("--qrels", metavar="R", help="Relevance judgments: Parquet with query_id, doc_id and, optionally, score.")
@click.option(
    "--alpha",
    type=float,
    help="Regularization of ridge, bridge and kernel, in units of the mean feature variance. [default: by folds]",
)
@click.option(
    "--share",
    "shrinkage_target_weight",
    type=float,
    help="Weight of the Procrustes solution in bridge and kernel, in [0, 1]. [default: by folds]",
)
@click.option(
    "--landmarks",
    type=click.IntRange(1),
    help="Landmarks of kernel; the cost per converted row is proportional to them. [default: 5000]",
)
@click.option(
    "--test-size",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Fraction of the shared rows held out for `evaluate`; the same rows every time.",
)
@click.option(
    "--moments",
    metavar="FILE",
    help="Save the moments (*.moments.safetensors) for --update; with --reverse-output for both directions.",
)
@click.option("--update", metavar="FILE", help="Moments of earlier anchors, to which new rows of SRC and TGT are added.")
@click.option("--remove", is_flag=True, help="With --update: remove the shared rows of SRC and TGT instead.")
@source_space_option
@target_space_option
@columns
@seed_option
@device_option
@overwrite_option
@verb()
@backend_options
def fit(
    session: Session, source: str, target: str, output: str, reverse_output: str | None, method: str, source_space: str | None,
    target_space: str | None, id_column: str | None, vector_column: str | None, queries: tuple[str, str] | None, qrels: str | None,
    moments: str | None, update: str | None, overwrite: bool, alpha: float | None, landmarks: int | None,
    shrinkage_target_weight: float | None, **options: Any,
) -> None:  # fmt: skip
    """Fit a map from the space of SRC to the space of TGT, from the ids that they share.

    With at least 100 held-out rows, half of them calibrate the confidence of an affine map: `convert --confidence` then predicts
    the error of each row.

    \b
    embridge fit old.parquet new-sample.parquet -o map.safetensors
    embridge fit old.parquet new-sample.parquet -o map.safetensors --queries q-old.parquet q-new.parquet --qrels qrels.parquet
    embridge fit old.parquet new-sample.parquet -o map.safetensors --reverse-output back.safetensors
    embridge fit new-sample.parquet old.parquet -o back.safetensors --for queries
    embridge fit old.parquet new-sample.parquet -o map.safetensors --keep-affine
    embridge fit old.parquet new.parquet -o map.safetensors --source-space minilm --target-space mpnet
    embridge fit old.parquet new.parquet -o rotation.safetensors --method rotation
    embridge fit old.parquet new-sample.parquet -o map.safetensors --moments all.moments.safetensors
    embridge fit old.parquet more.parquet -o map2.safetensors --update all.moments.safetensors
    embridge fit shards/ new-shards/ -o map.safetensors --keep-affine --backend ray --address auto
    """
    import embridge as eb
    from embridge.errors import ParameterError
    from embridge.records import Artifact, FitReport, Run
    from embridge.tables.qrels import read_graded_qrels

    started = time.perf_counter()
    if options["remove"] and not update:
        raise ParameterError("--remove needs --update FILE, the moments to remove rows from.")
    if qrels and not queries:
        raise ParameterError("--qrels needs --queries QS QT.")
    inputs = [path for path in (source, target, *(queries or ()), qrels, update) if path and path != moments]
    check_outputs(*(path for path in (output, reverse_output, moments) if path), overwrite=overwrite, inputs=inputs)
    earlier = eb.FoldMoments.load(update) if update else None
    sides = [(source, source_space), (target, target_space)]
    sides += list(zip(queries, (source_space, target_space), strict=True)) if queries else []
    opened = [open_source(path, space, id_column, vector_column) for path, space in sides]
    seed = options.pop("seed")
    given = {"alpha": alpha, "shrinkage_target_weight": shrinkage_target_weight, "landmarks": landmarks}
    given["seed"] = seed if method in ("affine", "kernel") else None
    parameters = {name: value for name, value in given.items() if value is not None}
    found = eb.fit_maps(
        opened[0],
        opened[1],
        method,
        reverse=bool(reverse_output),
        queries=eb.match(opened[2], opened[3]) if queries else None,
        qrels=read_graded_qrels(qrels) if qrels else None,
        keep_moments=bool(moments),
        update=earlier,
        progress=session.status,
        parameters=parameters,
        seed=seed,
        **options,
    )
    found.save(output, reverse=reverse_output, moments=moments, inputs=inputs, overwrite=overwrite)
    seconds = time.perf_counter() - started
    made = [(output, found.forward)] + ([(reverse_output, found.reverse)] if reverse_output and found.reverse else [])
    records = [translation.record for _, translation in made]
    facts = {"method": method, "for": records[0].role, "test_size": options["test_size"], "seed": seed}
    facts |= {"calibrated": records[0].calibrated, "keep_affine": options["keep_affine"]} | parameters
    facts |= {"update": update, "remove": options["remove"]} if update else {}
    names = ("source", "target", "source queries", "target queries")
    inputs = [Artifact.of_collection(name, side) for name, side in zip(names, opened, strict=False)]
    inputs += [Artifact.of_file(name, path) for name, path in (("moments", update), ("qrels", qrels)) if path]
    outputs = [Artifact.of_map(name, *one) for name, one in zip(("map", "reverse map"), made, strict=False)]
    outputs += [Artifact.of_file("moments", moments)] if moments else []
    run = Run.of(
        "fit", inputs=inputs, outputs=outputs, result=(found.anchors, *records), parameters=facts, seconds=seconds,
        rows=records[0].anchors, device=records[0].device,
    )  # fmt: skip
    session.record(run)
    reports = [FitReport(path, t.fingerprint, t.source, t.target, t.record, isinstance(t, eb.LinearMap)) for path, t in made]
    result = reports[0].to_dict() | {"seconds": seconds, "reverse": reports[1].to_dict() if len(reports) > 1 else None}
    session.emit(result, "\n".join([f"{reports[0]}, {seconds:.1f} s", *map(str, reports[1:])]))
