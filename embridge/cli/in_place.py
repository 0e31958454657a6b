"""Migrations in place on the command line: the part of migrate for stores, and cutover, rollback, drop-vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embridge.cli.session import Session, Verb, verb

if TYPE_CHECKING:
    from embridge.records.in_place import Swap

OF_INDEXES = (
    "min_recall", "queries", "verify_queries", "hubness", "query_space", "external_lists", "on_disk", "seed", "overwrite",
)  # fmt: skip
OF_STORES = ("into", "metric", "dtype", "mark_changed", "on_bad", "resume", "dry_run", "device", "precision", "batch_rows")
_INDEX_MODES, _STORE_MODES = ("auto", "wrap", "rewrite", "move", "rebuild"), ("column", "shadow")


def check_options(*, in_place: bool, output: str | None, mode: str | None) -> None:
    """Refuse, as wrong usage, what does not belong to an index or to a collection in a store."""
    context = click.get_current_context()
    given = [n for n in context.params if context.get_parameter_source(n) is not click.core.ParameterSource.DEFAULT]
    kind, other = ("a collection in a store", OF_INDEXES) if in_place else ("an index", OF_STORES)
    if wrong := next((name for name in given if name in other), None):
        raise click.UsageError(f"--{wrong.replace('_', '-')} is not an option for {kind}.")
    if in_place and output is not None:
        raise click.UsageError(f"A collection in a store is migrated in place; leave {output!r} out, or use embridge convert.")
    if not in_place and output is None:
        raise click.UsageError("Missing argument 'NEW.faiss'.")
    modes = _STORE_MODES if in_place else _INDEX_MODES
    if mode is not None and mode not in modes:
        raise click.UsageError(f"--mode {mode} is not for {kind}. Modes: {', '.join(modes)}.")


def migrate_collection(session: Session, uri: str, map_path: str, *, dry_run: bool, resume: bool, **options: Any) -> None:
    """Migrate a collection in place, or print what would be done."""
    import embridge as eb
    from embridge.records import Artifact, Run
    from embridge.stores.uri import scheme_of

    translation = eb.load_map(map_path)
    if dry_run:
        found = eb.preview_in_place(uri, translation, resume=resume, **options)
        lines = [f"{number}. {step}" for number, step in enumerate(found.steps, 1)]
        time = f"{found.rows:,} rows; reading and translating take about {found.seconds:.0f} s, writing and indexing come on top"
        size = f"about {found.bytes / 1e6:,.0f} MB are added. Nothing was written."
        session.emit(found.to_dict() | {"dry_run": True}, "\n".join([*lines, f"{time}; {size}"]))
        return
    try:
        with session.progress("migrating") as progress:
            done = eb.migrate_in_place(uri, translation, resume=resume, progress=progress, **options)
    except KeyboardInterrupt:
        click.echo(f"Interrupted; {uri} is in use as before. Run the same command with --resume to continue.", err=True)
        raise SystemExit(130) from None
    kind = str(scheme_of(uri))
    inputs = [
        Artifact("source", uri, done.source, kind, done.rows, done.source_space),
        Artifact.of_map("map", map_path, translation),
    ]
    outputs = [Artifact("output", uri, done.fingerprint, kind, done.rows, done.space)]
    parameters = {"mode": done.mode, "into": done.into, "skipped": done.skipped, "without_vector": done.without_vector}
    parameters |= {name: options[name] for name in ("dtype", "precision", "on_bad", "mark_changed")}
    session.record(Run.of("migrate", inputs=inputs, outputs=outputs, parameters=parameters, seconds=done.seconds, rows=done.rows))
    text = f"{uri}: {done.rows:,} rows have vectors of {done.space.name!r} in {done.into!r}, {done.seconds:.1f} s"
    text += f"; {done.skipped:,} cannot be translated" if done.skipped else ""
    text += f"; {done.without_vector:,} have no vector" if done.without_vector else ""
    session.emit(done.to_dict(), "\n".join([text, *done.remarks, "The old vectors are in use until embridge cutover."]))


def _swapped(session: Session, name: str, done: Swap, text: str) -> None:
    from embridge.records import Artifact, Run
    from embridge.stores.uri import scheme_of

    artifact = Artifact("collection", done.path, "", str(scheme_of(done.path)), None, done.space)
    session.record(Run.of(name, inputs=[artifact], parameters={"stage": done.stage}, seconds=done.seconds))
    session.emit(done.to_dict(), "\n".join([text, *done.remarks]))


@click.command(cls=Verb)
@click.argument("uri", metavar="URI")
@verb()
def cutover(session: Session, uri: str) -> None:
    """Put the new vectors of a collection that was migrated in place into use; the old ones are kept.

    It is refused while rows lack a new vector. Applications that name the vectors of the collection read the new ones from then on.

    \b
    embridge cutover "postgresql://user@host/db?table=docs"
    """
    import embridge as eb

    done = eb.cutover(uri)
    _swapped(session, "cutover", done, f"{done.path}: vectors of {done.space.name!r} are in use")


@click.command(cls=Verb)
@click.argument("uri", metavar="URI")
@verb()
def rollback(session: Session, uri: str) -> None:
    """Put the old vectors of a collection back into use after a cutover; the new ones are kept.

    \b
    embridge rollback "postgresql://user@host/db?table=docs"
    """
    import embridge as eb

    done = eb.rollback(uri)
    _swapped(session, "rollback", done, f"{done.path}: vectors of {done.space.name!r} are in use again")


@click.command(cls=Verb)
@click.argument("uri", metavar="URI")
@click.argument("side", type=click.Choice(["old", "new"]))
@verb()
def drop_vector(session: Session, uri: str, side: str) -> None:
    """Remove the vectors that are not in use, for good: the old ones after a cutover, or the new ones before it.

    No other verb removes vectors, and this one does not remove those in use.

    \b
    embridge drop-vector "postgresql://user@host/db?table=docs" old
    """
    import embridge as eb

    done = eb.drop_vector(uri, side)
    _swapped(session, "drop-vector", done, f"{done.path}: the {side} vectors are removed, those of {done.space.name!r} are in use")
