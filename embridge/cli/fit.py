"""The verb that fits maps, one way or both."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

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
    target_space_option,
    verb,
)

if TYPE_CHECKING:
    from embridge.feature_maps import Map


@click.command(cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="TGT")
@click.option("-o", "--output", required=True, metavar="MAP", help="The map to write, usually *.safetensors.")
@click.option(
    "--reverse-output",
    metavar="MAP",
    help="Write the way back too: the regression from TGT to SRC, on the same rows. It is not the inverse of the first.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "bridge", "ridge", "rotation", "isometry", "affine", "linear", "l-ortho", "ortho", "kernel"]),
    default="auto",
    show_default=True,
    help="auto: the simplest that folds cannot tell from the best; with --alpha or --share it is bridge. kernel: nearer to the new "
    "model than any of these, for converting; it moves no index and has no way back for queries.",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["search", "decode"]),
    default="search",
    show_default=True,
    help="What auto, bridge, ridge and kernel choose by: neighbours, or squared error.",
)
@click.option("--alpha", type=float, help="Of ridge, bridge and kernel, in units of the mean feature variance. [default: by folds]")
@click.option(
    "--share", "s", type=float, help="Of bridge and kernel: share of the Procrustes solution, in [0, 1]. [default: by folds]"
)
@click.option(
    "--landmarks", type=click.IntRange(1), help="Of kernel: converting a row costs in proportion to them. [default: 5000]"
)
@click.option(
    "--test-size",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the shared rows held out for `evaluate`; the same rows every time.",
)
@click.option(
    "--moments",
    metavar="FILE",
    help="Keep what was fitted on as moments (*.moments.safetensors), for --update; with --reverse-output for both ways.",
)
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
    session: Session, source: str, target: str, output: str, reverse_output: str | None, method: str, purpose: Any,
    source_space: str | None, target_space: str | None, id_column: str | None, vector_column: str | None, test_size: float,
    moments: str | None, update: str | None, remove: bool, seed: int, device: str, overwrite: bool, **given: float | None,
) -> None:  # fmt: skip
    """Fit a map from the space of SRC to the space of TGT, from the ids that they share.

    Half of the rows held out, where there are 100 at least, calibrate the confidence of an affine map: `convert --confidence`
    then foretells the error of each row.

    \b
    embridge fit old.parquet new-sample.parquet -o map.safetensors
    embridge fit old.parquet new-sample.parquet -o map.safetensors --reverse-output back.safetensors
    embridge fit old.parquet new.parquet -o map.safetensors --source-space minilm --target-space mpnet
    embridge fit old.parquet new.parquet -o rotation.safetensors --method rotation
    embridge fit old.parquet new-sample.parquet -o kernel.safetensors --method kernel
    embridge fit old.parquet new-sample.parquet -o map.safetensors --moments all.moments.safetensors
    embridge fit old.parquet more.parquet -o map2.safetensors --update all.moments.safetensors
    """
    import embridge as eb
    from embridge.errors import OutputExistsError, ParameterError
    from embridge.files import check_output, one_file, whole_or_absent
    from embridge.records import Run
    from embridge.translators.calibration import LEAST_ROWS

    started = time.perf_counter()
    if remove and not update:
        raise ParameterError("--remove takes rows out of the moments of --update FILE; give that.")
    if method == "kernel" and (moments or update):
        raise ParameterError("'kernel' needs the anchors themselves; moments do not hold rows. Leave --moments and --update out.")
    outputs = [path for path in (output, reverse_output, moments) if path]
    for number, path in enumerate(outputs):
        if any(one_file(path, other) for other in outputs[:number]):
            raise OutputExistsError.twice(path)
        inputs = [source, target, *([update] if update and path != moments else [])]
        check_outputs(path, overwrite=overwrite, inputs=inputs)
    earlier = eb.Folds.load(update) if update else None
    if earlier is not None and update and reverse_output and not earlier.full:
        raise ParameterError.one_way(update)
    old = open_source(source, source_space, id_column, vector_column)
    new = open_source(target, target_space, id_column, vector_column)
    parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if method in ("affine", "kernel"):
        parameters["seed"] = seed
    with session.status("matching ids"):
        known = None if earlier is None or remove else earlier.anchor_hashes
        train, held_out = eb.match(old, new, known=known).split(test_size, seed)
    if earlier is not None and not len(train):
        raise ParameterError(f"{source!r} and {target!r} share no row to fit on that is not in {update!r} already.")
    with session.status("taking moments"):
        full = bool(reverse_output) if earlier is None else earlier.full
        folds = train.folds(device=device, partial=earlier is not None, full=full) if moments or update else None
        if earlier is not None and folds is not None:
            folds = earlier - folds if remove else earlier + folds
    half = len(held_out) // 2  # the other half is left for `evaluate` to check the confidence on
    ways = [(output, folds or train, held_out)]
    if reverse_output:
        ways += [(reverse_output, ways[0][1].reversed(), held_out.reversed())]
    made: list[tuple[str, Map]] = []
    for path, data, rows in ways:
        with session.status(f"fitting {method}"):
            translation = eb.fit(data, method, purpose=purpose, device=device, **parameters)
            sources = (rows.record.source, rows.record.target)
            translation = translation.recorded(held_out=len(rows), sources=sources)
        if half >= LEAST_ROWS and isinstance(translation, eb.LinearMap):
            with session.status("calibrating"):
                translation = eb.calibrate(translation, data, rows.sample(half, seed), seed=seed, device=device)
        made.append((path, translation))
    with contextlib.ExitStack() as stack:  # all are written before one of them gets its name
        for path, written in [*([(moments, folds)] if moments and folds else []), *made]:
            written.save(stack.enter_context(whole_or_absent(check_output(path, overwrite=overwrite))))
    seconds = time.perf_counter() - started
    records = [translation.record for _, translation in made]
    facts = {"method": method, "for": purpose, "test_size": test_size, "seed": seed, "calibrated": records[0].calibrated}
    roles = ("map", "reverse map")
    run = Run(
        "fit",
        facts | ({"update": update, "remove": remove} if update else {}) | parameters,
        seconds,
        (
            collection_artifact("source", old),
            collection_artifact("target", new),
            *([file_artifact("moments", update)] if update else []),
        ),
        (
            *(map_artifact(role, *one) for role, one in zip(roles, made, strict=False)),
            *([file_artifact("moments", moments)] if moments else []),
        ),
        records[0].anchors,
        records[0].device,
        (train.record, *records),
    )
    session.record(run)
    told = [_told(*one) for one in made]
    result = told[0] | {"seconds": seconds, "reverse": told[1] if reverse_output else None}
    lines = [_line(*one) for one in made]
    session.emit(result, "\n".join([f"{lines[0]}, {seconds:.1f} s", *lines[1:]]))


def _told(path: str, translation: Map) -> dict[str, Any]:
    record = translation.record
    return {
        "map": path,
        "method": record.method,
        "parameters": record.parameters,
        "source": translation.source.name,
        "target": translation.target.name,
        "anchors": record.anchors,
        "held_out": record.held_out,
        "calibrated": record.calibrated,
        "fingerprint": translation.fingerprint,
    }


def _line(path: str, translation: Map) -> str:
    from embridge.maps import LinearMap
    from embridge.translators.calibration import LEAST_ROWS

    record, source, target = translation.record, translation.source, translation.target
    needs = f"{2 * LEAST_ROWS} rows held out" if isinstance(translation, LinearMap) else "an affine map"
    none = f"no confidence (it needs {needs})"
    confidence = f"confidence calibrated on {record.calibrated:,} of these" if record.calibrated else none
    chosen = ", ".join(f"{k} {v}" for k, v in record.parameters.items())
    return (
        f"{path}: {source.name} ({source.dim}) -> {target.name} ({target.dim}), {record.method} ({chosen}), "
        f"{record.anchors:,} anchors, {record.held_out:,} held out, {confidence}"
    )
