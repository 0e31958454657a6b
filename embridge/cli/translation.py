"""Verbs on pairs of collections: anchors, fit."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    collection_artifact,
    columns,
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
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("-o", "--output", required=True, metavar="MAP", help="The map to write, usually *.safetensors.")
@click.option(
    "--method",
    type=click.Choice(["auto", "bridge", "ridge", "rotation", "isometry", "affine", "linear", "l-ortho", "ortho"]),
    default="auto",
    show_default=True,
    help="auto: the simplest that folds cannot tell from the best; with --alpha or --share it is bridge.",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["search", "decode"]),
    default="search",
    show_default=True,
    help="What auto, bridge and ridge choose by: neighbours, or squared error.",
)
@click.option("--alpha", type=float, help="Of ridge and bridge, in units of the mean feature variance. [default: by folds]")
@click.option("--share", "s", type=float, help="Of bridge: share of the Procrustes solution, in [0, 1]. [default: by folds]")
@click.option(
    "--test-size",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the shared rows held out for `evaluate`; the same rows every time.",
)
@click.option("--moments", metavar="FILE", help="Keep what was fitted on as moments (*.moments.safetensors), for --update.")
@click.option("--update", metavar="FILE", help="Moments of earlier anchors: rows of SRC and TGT that are new are added to them.")
@click.option("--remove", is_flag=True, help="With --update: the shared rows of SRC and TGT are taken out instead.")
@source_space_option
@target_space_option
@columns
@seed_option
@device_option
@overwrite_option
@verb()
def fit(
    session: Session, source: str, target: str, output: str, method: str, purpose: Any, source_space: str | None,
    target_space: str | None, id_column: str | None, vector_column: str | None, test_size: float, moments: str | None,
    update: str | None, remove: bool, seed: int, device: str, overwrite: bool, **given: float | None,
) -> None:  # fmt: skip
    """Fit a map from the space of SRC to the space of TGT, from the ids that they share.

    Half of the rows held out, where there are 100 at least, calibrate its confidence: `convert --confidence` then foretells the
    error of each row.

    \b
    embridge fit old.parquet new-sample.parquet -o map.safetensors
    embridge fit old.parquet new.parquet -o map.safetensors --source-space minilm --target-space mpnet
    embridge fit old.parquet new.parquet -o rotation.safetensors --method rotation
    embridge fit old.parquet new-sample.parquet -o map.safetensors --moments all.moments.safetensors
    embridge fit old.parquet more.parquet -o map2.safetensors --update all.moments.safetensors
    """
    import embridge as eb
    from embridge.errors import ParameterError
    from embridge.records import Run
    from embridge.translators.calibration import LEAST_ROWS

    started = time.perf_counter()
    if remove and not update:
        raise ParameterError("--remove takes rows out of the moments of --update FILE; give that.")
    check_outputs(output, overwrite=overwrite, inputs=[source, target, *([update] if update else [])])
    if moments:
        check_outputs(moments, overwrite=overwrite, inputs=[source, target])
    earlier = eb.Folds.load(update) if update else None
    old = open_source(source, source_space, id_column, vector_column)
    new = open_source(target, target_space, id_column, vector_column)
    parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if method == "affine":
        parameters["seed"] = seed
    with session.status("matching ids"):
        known = None if earlier is None or remove else earlier.anchor_hashes
        train, held_out = eb.match(old, new, known=known).split(test_size, seed)
    if earlier is not None and not len(train):
        raise ParameterError(f"{source!r} and {target!r} share no row to fit on that is not in {update!r} already.")
    with session.status(f"fitting {method}"):
        folds = train.folds(device=device, partial=earlier is not None) if moments or update else None
        if earlier is not None and folds is not None:
            folds = earlier - folds if remove else earlier + folds
        data = folds or train
        translation = eb.fit(data, method, purpose=purpose, device=device, **parameters)
        sources = (train.record.source, train.record.target)
        record = replace(translation.record, held_out=len(held_out), sources=sources)
        translation = replace(translation, record=record)
    half = len(held_out) // 2  # the other half is left for `evaluate` to check the confidence on
    if half >= LEAST_ROWS:
        with session.status("calibrating"):
            translation = eb.calibrate(translation, data, held_out.sample(half, seed), seed=seed, device=device)
    if moments and folds:
        folds.save(moments, overwrite=overwrite)
    translation.save(output, overwrite=overwrite)
    seconds = time.perf_counter() - started
    record = translation.record
    facts = {"method": method, "for": purpose, "test_size": test_size, "seed": seed, "calibrated": record.calibrated}
    run = Run(
        "fit",
        facts | ({"update": update, "remove": remove} if update else {}) | parameters,
        seconds,
        (
            collection_artifact("source", old),
            collection_artifact("target", new),
            *([file_artifact("moments", update)] if update else []),
        ),
        (map_artifact("map", output, translation), *([file_artifact("moments", moments)] if moments else [])),
        record.anchors,
        record.device,
        (train.record, record),
    )
    session.record(run)
    result = {
        "map": output,
        "method": record.method,
        "parameters": record.parameters,
        "source": old.space.name,
        "target": new.space.name,
        "anchors": record.anchors,
        "held_out": len(held_out),
        "calibrated": record.calibrated,
        "seconds": seconds,
        "fingerprint": translation.fingerprint,
    }
    needs = f"no confidence (it needs {2 * LEAST_ROWS} rows held out)"
    confidence = f"confidence calibrated on {record.calibrated:,} of these" if record.calibrated else needs
    chosen = ", ".join(f"{k} {v}" for k, v in record.parameters.items())
    session.emit(
        result,
        f"{output}: {old.space.name} ({old.space.dim}) -> {new.space.name} ({new.space.dim}), {record.method} ({chosen}), "
        f"{record.anchors:,} anchors, {len(held_out):,} held out, {confidence}, {seconds:.1f} s",
    )
