"""What every verb shares: options, errors, output, progress and the catalog."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from embridge.errors import EmbridgeError

if TYPE_CHECKING:
    from embridge.catalog import Catalog
    from embridge.decoders import Decoder
    from embridge.feature_maps import Map
    from embridge.records import Artifact, Run
    from embridge.retrieval import Index
    from embridge.stores import Collection

_PATIENCE = 1.0  # seconds before a progress bar is worth its flicker


@dataclass
class Session:
    """The options that mean the same everywhere, and what follows from them."""

    json: bool
    quiet: bool
    catalog: Catalog | None

    def emit(self, result: Any, text: str) -> None:
        """Print the result: JSON where asked for, else text."""
        click.echo(json.dumps(_plain(result), default=str, allow_nan=False) if self.json else text)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar on stderr, where that is a terminal, that shows only when the work takes more than a second."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=self.quiet or not sys.stderr.isatty())
        task = bar.add_task(title, total=None)
        started = time.monotonic()

        def advance(done: int, total: int) -> None:
            if not bar.live.is_started and time.monotonic() - started > _PATIENCE:
                bar.start()
            bar.update(task, completed=done, total=total)

        try:
            yield advance
        finally:
            if bar.live.is_started:  # stopping what never began prints an empty line
                bar.stop()

    @contextlib.contextmanager
    def status(self, title: str) -> Iterator[None]:
        """A spinner on stderr for work that cannot tell how far it is."""
        from rich.console import Console

        if self.quiet or not sys.stderr.isatty():
            yield
            return
        with Console(stderr=True).status(title):
            yield

    def record(self, run: Run) -> None:
        """Store the run in the catalog, if there is one."""
        if self.catalog is not None:
            self.catalog.record(run)


class Verb(click.Command):
    """A command whose errors are sentences: printed on stderr, exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        debug = ctx.params.pop("debug", False)
        try:
            return super().invoke(ctx)
        except (EmbridgeError, OSError) as e:
            # An OSError that nobody expected (a full disk, a missing right) is the user's to mend as well.
            if debug or isinstance(e, BrokenPipeError):
                raise
            click.echo(f"Error: {e}", err=True)
            ctx.exit(1)


def verb(*, catalog: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb its Session and the options common to all; with `catalog` it is recorded."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(as_json: bool, quiet: bool, **options: Any) -> None:
            found = None
            if catalog:
                path, no_catalog = options.pop("catalog_path"), options.pop("no_catalog")
                if not no_catalog:
                    from embridge.catalog import Catalog

                    found = Catalog(path)
                    found.check()  # before any work: a catalog that cannot be written stops the verb here
            function(Session(as_json, quiet, found), **options)

        common = [
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
            click.option("--quiet", is_flag=True, help="No progress on stderr."),
            click.option("--debug", is_flag=True, help="Show the trace of an error."),
        ]
        if catalog:
            common += [catalog_option, click.option("--no-catalog", is_flag=True, help="Record nothing.")]
        for option in reversed(common):
            run = option(run)
        return run

    return decorate


catalog_option = click.option(
    "--catalog", "catalog_path", metavar="FILE", help="The DuckDB catalog. [default: $EMBRIDGE_CATALOG or embridge.duckdb]"
)
id_option = click.option("--id-column", metavar="NAME", help="Column of ids. [default: what the file says, else id]")
vector_option = click.option(
    "--vector-column", metavar="NAME", help="Column of vectors. [default: what the file says, else vector]"
)
space_option = click.option("--space", metavar="NAME[:METRIC]", help="Space of a file that does not say it itself.")
source_space_option = click.option("--source-space", metavar="NAME[:METRIC]", help="Space of SRC, where the file does not say it.")
target_space_option = click.option("--target-space", metavar="NAME[:METRIC]", help="Space of TGT, where the file does not say it.")
external_lists_option = click.option(
    "--external-lists", is_flag=True, help="Allow inverted lists of the index to lie outside its folder, if you trust it."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...; auto takes CUDA.")


def columns(function: Callable[..., None]) -> Callable[..., None]:
    """--id-column and --vector-column."""
    return id_option(vector_option(function))


def open_source(path: str, space: str | None, id_column: str | None, vector_column: str | None) -> Collection:
    """`embridge.open` with the options of the command line; an index has no columns."""
    import embridge as eb

    named = {} if path.endswith((".faiss", ".index")) else {"id_column": id_column, "vector_column": vector_column}
    return eb.open(path, space=space, **named)


def check_outputs(path: str, *, overwrite: bool, inputs: Sequence[str] = ()) -> None:
    """Refuse an output that may not be written, before work is done for it."""
    from embridge.files import check_output

    check_output(path, overwrite=overwrite, inputs=tuple(inputs))


def device_name(device: str) -> str:
    """The device that an option stands for (auto is one or the other)."""
    from embridge.device import resolve_device

    return str(resolve_device(device))


def collection_artifact(role: str, collection: Collection) -> Artifact:
    """A collection, as a run's input or output."""
    from embridge.records import Artifact

    path = str(collection.path)
    return Artifact(role, path, collection.fingerprint(), collection.kind, len(collection), collection.space)


def map_artifact(role: str, path: str, translation: Map) -> Artifact:
    """A map, as a run's input or output."""
    from embridge.records import Artifact

    target, source = translation.target, translation.source
    return Artifact(role, path, translation.fingerprint, "map", space=target, source_space=source)


def decoder_artifact(role: str, decoder: Decoder) -> Artifact:
    """A decoder, as a run's input or output."""
    from embridge.records import Artifact

    return Artifact(role, str(decoder.path), decoder.fingerprint, "decoder", space=decoder.space)


def index_artifact(role: str, index: Index) -> Artifact:
    """An index, as a run's input or output."""
    from embridge.records import Artifact

    return Artifact(role, index.path, index.fingerprint(), "faiss", len(index), index.space)


def file_artifact(role: str, path: str) -> Artifact:
    """Any other local file."""
    from embridge.files import fingerprint
    from embridge.records import Artifact

    return Artifact(role, path, fingerprint(path) if os.path.isfile(path) else "", "table")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned columns of text."""
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    lines = [names, ["-" * w for w in widths], *cells]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _plain(value: Any) -> Any:
    """The value with NaN and infinity as null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 60 else f"...{text[-57:]}" if "/" in text else f"{text[:57]}..."
