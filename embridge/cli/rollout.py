"""Verbs of a rollout: start, next, add, queries, status, search, finish."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from embridge.cli.session import (
    Session,
    Verb,
    check_outputs,
    columns,
    open_beside,
    open_source,
    overwrite_option,
    seed_option,
    source_space_option,
    target_space_option,
    verb,
)

if TYPE_CHECKING:
    from embridge.records import Artifact
    from embridge.records.rollout import RolloutStep
    from embridge.rollout import Rollout
    from embridge.stores import Collection

_path = click.argument("rollout_path", metavar="ROLLOUT")


@click.group()
def rollout() -> None:
    """Move a live collection to a new encoder step by step, searchable at every moment.

    \b
    embridge anchors sample old.parquet -n 1000 --queries queries-old.parquet -o ids.parquet
    embridge rollout start old.parquet new-sample.parquet -o rollout --queries queries-old.parquet queries-new.parquet
    embridge rollout status rollout
    embridge rollout next rollout -n 2000 -o ids.parquet
    embridge encode texts.parquet --model M --ids ids.parquet -o native.parquet
    embridge rollout add rollout native.parquet
    embridge rollout search rollout queries-new.parquet
    embridge rollout finish rollout -o new.parquet
    """


@rollout.command(cls=Verb)
@click.argument("source", metavar="OLD")
@click.argument("sample", metavar="SAMPLE_NEW")
@click.option("-o", "--output", required=True, metavar="ROLLOUT", help="The folder to make.")
@click.option("--queries", nargs=2, metavar="QS QT", help="Logged queries by the old and by the new model.")
@click.option("--qrels", metavar="R", help="Parquet with query_id, doc_id and, if it has one, score (above 0 is relevant).")
@click.option("--index", "factory", metavar="FACTORY", help="Keep a fused FAISS index, such as HNSW32. [default: exact search]")
@source_space_option
@target_space_option
@columns
@seed_option
@verb()
def start(
    session: Session, source: str, sample: str, output: str, queries: tuple[str, str] | None, qrels: str | None,
    factory: str | None, source_space: str | None, target_space: str | None, seed: int, **named: str | None,
) -> None:  # fmt: skip
    """Start a rollout from the old collection and a sample of its rows by the new model.

    Rows of the sample are native from the start, the others are translated. Each row is scored by both its vectors.

    \b
    embridge rollout start old.parquet new-sample.parquet -o rollout
    embridge rollout start old.parquet new-sample.parquet -o rollout --queries q-old.parquet q-new.parquet --qrels qrels.parquet
    """
    import embridge as eb
    from embridge.errors import ParameterError
    from embridge.outputs import Output
    from embridge.tables.qrels import read_graded_qrels

    if qrels and not queries:
        raise ParameterError("--qrels needs --queries QS QT.")
    given = [source, sample, *(queries or ()), qrels]
    check_outputs(Output(output, folder=True), overwrite=False, inputs=given, resume=True)
    old, new = open_source(source, source_space, **named), open_source(sample, target_space, **named)
    logged = [open_beside(path, side.space, **named) for path, side in zip(queries or (), (old, new), strict=False)]
    with session.status("starting"):
        pairs = eb.match(*logged) if logged else None
        judged = read_graded_qrels(qrels) if qrels else None
        made = eb.Rollout.start(old, new, output, queries=pairs, qrels=judged, factory=factory, seed=seed)
    inputs = _artifacts({"source": old, "native": new} | dict(zip(("source queries", "target queries"), logged, strict=False)))
    if made.started is not None:
        _finish(session, made, made.started, inputs, qrels, {"index": factory, "seed": seed})


@rollout.command(name="next", cls=Verb)
@_path
@click.option("-n", "size", type=click.IntRange(1), required=True, help="How many rows.")
@click.option("-o", "--output", required=True, metavar="IDS", help="The Parquet file to write: id, order, queries.")
@click.option("--again", is_flag=True, help="Rows that were listed before, and are not native yet, may be listed again.")
@overwrite_option
@verb()
def next_(session: Session, rollout_path: str, size: int, output: str, again: bool, overwrite: bool) -> None:
    """List the rows that the new model should encode next, for `encode --ids`; never a row twice.

    First come the rows that most logged queries reach; without queries, those in whose neighborhood most rows are.

    \b
    embridge rollout next rollout -n 2000 -o ids.parquet
    """
    import embridge as eb

    check_outputs(output, overwrite=overwrite, inputs=[rollout_path])
    opened = eb.Rollout(rollout_path)
    done = opened.next(size, output, again=again, overwrite=overwrite)
    _finish(session, opened, done, [], None, {"n": size, "again": again})


@rollout.command(cls=Verb)
@_path
@click.argument("native", metavar="NATIVE")
@columns
@verb()
def add(session: Session, rollout_path: str, native: str, **named: str | None) -> None:
    """Add native vectors: rows by the new model, with ids of the rollout.

    A row that is native already, with the same vector, is passed over. So the step can be repeated after an interruption.

    \b
    embridge rollout add rollout native.parquet
    """
    import embridge as eb

    opened = eb.Rollout(rollout_path)
    rows = open_beside(native, opened.spaces[1], **named)
    inputs = _artifacts({"rollout": opened.collection, "native": rows})
    with session.status("adding"):
        done = opened.add(rows)
    _finish(session, opened, done, inputs, None, {})


@rollout.command(cls=Verb)
@_path
@click.argument("source", metavar="QS")
@click.argument("target", metavar="QT")
@click.option("--qrels", metavar="R", help="Parquet with query_id, doc_id and, if it has one, score (above 0 is relevant).")
@columns
@verb()
def queries(session: Session, rollout_path: str, source: str, target: str, qrels: str | None, **named: str | None) -> None:
    """Add logged queries by the old and by the new model, and measure the present stage by all of them.

    \b
    embridge rollout queries rollout more-old.parquet more-new.parquet --qrels qrels.parquet
    """
    import embridge as eb
    from embridge.tables.qrels import read_graded_qrels

    opened = eb.Rollout(rollout_path)
    logged = [open_beside(path, space, **named) for path, space in zip((source, target), opened.spaces, strict=True)]
    with session.status("measuring"):
        done = opened.queries(eb.match(*logged), qrels=read_graded_qrels(qrels) if qrels else None)
    _finish(session, opened, done, _artifacts({"source queries": logged[0], "target queries": logged[1]}), qrels, {})


@rollout.command(cls=Verb)
@_path
@verb()
def status(session: Session, rollout_path: str) -> None:
    """Show how good search is now, against the old model, and what the next rows are forecast to bring.

    \b
    embridge rollout status rollout
    """
    import embridge as eb
    from embridge.records import Run

    started = time.perf_counter()
    found = eb.Rollout(rollout_path).status()
    parameters = {"rollout": rollout_path, "stage": found.stage}
    session.record(Run.of("rollout status", parameters=parameters, seconds=time.perf_counter() - started, rows=found.rows))
    session.emit(found.to_dict(), str(found))


@rollout.command(cls=Verb)
@_path
@click.argument("queries", metavar="QUERIES")
@click.option("--old-queries", metavar="OLD", help="The same queries by the old model. [default: QUERIES, projected]")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Hits per query.")
@click.option("--params", default="", help='Search parameters of FAISS: "nprobe=32", "efSearch=128".')
@columns
@click.option("-o", "--output", metavar="FILE.parquet", help="Write hits as rows: query_id, rank, id, score.")
@overwrite_option
@verb()
def search(
    session: Session, rollout_path: str, queries: str, old_queries: str | None, k: int, params: str, output: str | None,
    overwrite: bool, **named: str | None,
) -> None:  # fmt: skip
    """Search all rows by both of their vectors, with queries of the new model alone or of both.

    \b
    embridge rollout search rollout queries-new.parquet -k 10
    embridge rollout search rollout queries-new.parquet --old-queries queries-old.parquet -o hits.parquet
    """
    import embridge as eb
    from embridge.records import Run
    from embridge.tables.hits import write_hits

    started = time.perf_counter()
    given = [rollout_path, queries, old_queries]
    if output:
        check_outputs(output, overwrite=overwrite, inputs=given)
    opened = eb.Rollout(rollout_path)
    old_space, new_space = opened.spaces
    rows = open_beside(queries, new_space, **named)
    old = open_beside(old_queries, old_space, **named) if old_queries else None
    with session.status("searching"):
        ids, hits = opened.search(rows, k, old_queries=old, parameters=params)
    outputs = []
    if output:
        write_hits(output, ids, hits, inputs=given, overwrite=overwrite)
        outputs = _files({"hits": output})
    seconds = time.perf_counter() - started
    inputs = _artifacts({"queries": rows} | ({"old queries": old} if old else {}))
    parameters = {"rollout": rollout_path, "k": k, "params": params}
    session.record(Run.of("rollout search", inputs=inputs, outputs=outputs, parameters=parameters, seconds=seconds, rows=len(ids)))
    found = [(query, *hits.row(i)) for i, query in enumerate(ids.tolist())]
    result = {"k": k, "hits": [{"query_id": query, "ids": hit, "scores": scores} for query, hit, scores in found]}
    lines = [f"{query}: " + ", ".join(f"{i} ({s:.3f})" for i, s in zip(hit, scores, strict=True)) for query, hit, scores in found]
    session.emit(result, f"{output}: hits of {len(ids):,} queries in {seconds:.1f} s" if output else "\n".join(lines))


@rollout.command(cls=Verb)
@_path
@click.option("-o", "--output", required=True, metavar="OUT", help="The Parquet file to write.")
@click.option("--accept-loss", is_flag=True, help="Write it although it is not measured to be as good as the old model.")
@overwrite_option
@verb()
def finish(session: Session, rollout_path: str, output: str, accept_loss: bool, overwrite: bool) -> None:
    """Write a collection of the new space alone: native rows where encoded, translated elsewhere.

    It refuses, with the measured loss, where this is not measured to be as good as the old model.

    \b
    embridge rollout finish rollout -o new.parquet
    embridge rollout finish rollout -o new.parquet --accept-loss
    """
    import embridge as eb
    from embridge.stores.locations import is_remote

    if not is_remote(output):
        check_outputs(output, overwrite=overwrite, inputs=[rollout_path])
    opened = eb.Rollout(rollout_path)
    with session.status("writing"):
        done = opened.finish(output, accept_loss=accept_loss, overwrite=overwrite)
    _finish(session, opened, done, [], None, {"accept_loss": accept_loss})


def _artifacts(collections: dict[str, Collection]) -> list[Artifact]:
    from embridge.records import Artifact

    return [Artifact.of_collection(role, collection) for role, collection in collections.items()]


def _files(paths: dict[str, str]) -> list[Artifact]:
    from embridge.records import Artifact

    return [Artifact.of_file(role, path) for role, path in paths.items()]


def _finish(
    session: Session, made: Rollout, done: RolloutStep, inputs: list[Artifact], qrels: str | None, parameters: dict[str, Any]
) -> None:
    """Record a step that changed a rollout, or wrote a file out of it, and print it."""
    import embridge as eb
    from embridge.records import Run

    inputs += _files({"qrels": qrels}) if qrels else []
    present = _artifacts({"rollout": made.collection})
    outputs = present if done.verb in ("start", "add") else []
    if done.verb in ("next", "queries", "finish"):
        inputs += present
    if done.verb == "next":
        outputs = _files({"ids": done.output})
    elif done.verb == "finish":
        outputs = _artifacts({"output": eb.open(done.output)})
    facts = {"rollout": done.path, "stage": done.status.stage, "native": done.status.native}
    session.record(
        Run.of(
            f"rollout {done.verb}",
            inputs=inputs,
            outputs=outputs,
            parameters=parameters | facts,
            seconds=done.seconds,
            rows=done.rows,
        )
    )
    session.emit(done.to_dict(), str(done))
