"""Shared by all verbs: options, errors, output, progress and the catalog."""

from __future__ import annotations

import contextlib
import functools
import io
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
    from embridge.outputs import Output
    from embridge.records import Run
    from embridge.stores import Collection
    from embridge.types import Space

_CATALOG = "embridge.catalog"  # key of a context for the files of the catalog
_PATIENCE = 1.0  # seconds before a progress bar is shown


@dataclass
class Session:
    """The options common to all verbs, and the functions that depend on them."""

    json: bool
    quiet: bool
    catalog: Catalog | None

    def emit(self, result: Any, text: str) -> None:
        """Print the result: JSON with --json, else text."""
        click.echo(json.dumps(_plain(result), allow_nan=False) if self.json else text)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar on stderr, shown on a terminal when the work takes more than a second."""
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
            if bar.live.is_started:  # stopping a bar that was never shown prints an empty line
                bar.stop()

    @contextlib.contextmanager
    def status(self, title: str) -> Iterator[None]:
        """A spinner on stderr for work without measurable progress."""
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
    """A command that prints errors as one sentence on stderr, with exit status 1."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of the help, not cut: the list of commands wraps it."""
        return super().get_short_help_str(1000)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        debug = ctx.params.pop("debug", False)
        for stream in (sys.stdout, sys.stderr):  # paths and ids may hold characters that the terminal cannot show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when the output is closed
        except (EmbridgeError, OSError, MemoryError, RecursionError, UnicodeError) as e:
            if debug:
                raise
            click.echo(f"Error: {_sentence(e)}", err=True)
            ctx.exit(1)


def _sentence(error: BaseException) -> str:
    """The message of an error; errors not from embridge come from the system, such as a missing permission."""
    if isinstance(error, EmbridgeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else "")
    if isinstance(error, MemoryError):
        return "Out of memory. Hint: free some, or use fewer rows at a time."
    if isinstance(error, RecursionError):
        return "The input is nested too deeply."
    return f"{type(error).__name__}: {error}"


def verb(*, catalog: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb its Session and the options common to all; with `catalog` it is recorded."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(as_json: bool, quiet: bool, **options: Any) -> None:
            found = None
            _check_text(options)
            options = _without_passwords(options)
            if catalog:
                path, no_catalog = options.pop("catalog_path"), options.pop("no_catalog")
                if not no_catalog:
                    from embridge.catalog import Catalog

                    found = Catalog(path)
                    _check_apart(found.path, options)
                    found.check()  # fails before any work if the catalog cannot be written
            function(Session(as_json, quiet, found), **options)

        common = [
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
            click.option("--quiet", is_flag=True, help="No progress on stderr."),
            click.option("--debug", is_flag=True, help="Show the trace of an error."),
        ]
        if catalog:
            common += [catalog_option, click.option("--no-catalog", is_flag=True, help="Do not record the run.")]
        for option in reversed(common):
            run = option(run)
        return run

    return decorate


def _texts(options: dict[str, Any]) -> list[str]:
    return [v for value in options.values() for v in (value if isinstance(value, tuple) else [value]) if isinstance(v, str)]


def _check_text(options: dict[str, Any]) -> None:
    """Refuse names that are not UTF-8 before any work: Arrow, FAISS and DuckDB need UTF-8."""
    from embridge.errors import ParameterError

    for text in _texts(options):
        if text.encode("utf-8", "replace").decode() != text:
            raise ParameterError(f"{text!r} is not valid UTF-8. Hint: rename the file.")


def _without_passwords(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with URIs as they may be shown and recorded; opening them finds their passwords."""
    if not any("://" in text for text in _texts(options)):
        return options
    from embridge.stores.uri import without_password

    def plain(value: Any) -> Any:
        return without_password(value) if isinstance(value, str) else value

    return {name: tuple(map(plain, v)) if isinstance(v, tuple) else plain(v) for name, v in options.items()}


def _check_apart(catalog: str, options: dict[str, Any]) -> None:
    """Refuse a catalog that is also an input or output of the verb, and keep its name for `check_outputs`."""
    from embridge.errors import OutputExistsError
    from embridge.files import one_file

    files = [catalog, f"{catalog}.wal"]
    for path in _texts(options):
        if any(one_file(path, file) for file in files):
            raise OutputExistsError(f"{path!r} is the catalog, or its log. Hint: choose another file, or another --catalog.")
    click.get_current_context().meta[_CATALOG] = files


catalog_option = click.option(
    "--catalog", "catalog_path", metavar="FILE", help="The DuckDB catalog. [default: $EMBRIDGE_CATALOG or embridge.duckdb]"
)
id_option = click.option("--id-column", metavar="NAME", help="Column of ids. [default: the one the file names, else id]")
vector_option = click.option(
    "--vector-column", metavar="NAME", help="Column of vectors. [default: the one the file names, else vector]"
)
space_option = click.option("--space", metavar="NAME[:METRIC]", help="Space of a file that does not name it.")
source_space_option = click.option("--source-space", metavar="NAME[:METRIC]", help="Space of SRC, where the file does not name it.")
target_space_option = click.option("--target-space", metavar="NAME[:METRIC]", help="Space of TGT, where the file does not name it.")
external_lists_option = click.option(
    "--external-lists", is_flag=True, help="Allow inverted lists of the index to lie outside its folder, if you trust it."
)
on_disk_option = click.option(
    "--on-disk",
    is_flag=True,
    help="Build an IVF index in bounded memory, with its inverted lists in a file beside it; repeat the command to go on.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of all random choices."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...; auto uses CUDA where available."
)


def columns(function: Callable[..., None]) -> Callable[..., None]:
    """--id-column and --vector-column."""
    return id_option(vector_option(function))


def open_source(path: str, space: str | None, id_column: str | None, vector_column: str | None) -> Collection:
    """`embridge.open` with the options of the command line; an index has no columns."""
    import embridge as eb

    named = {} if path.endswith((".faiss", ".index")) else {"id_column": id_column, "vector_column": vector_column}
    return eb.open(path, space=space, **named)


def open_beside(path: str, space: Space, id_column: str | None, vector_column: str | None) -> Collection:
    """`open_source` of a file beside others: where it does not name its space, it has theirs."""
    from embridge.errors import UndeclaredSpaceError

    try:
        return open_source(path, None, id_column, vector_column)
    except UndeclaredSpaceError:
        return open_source(path, f"{space.name}:{space.metric}", id_column, vector_column)


def check_outputs(*outputs: str | Output, overwrite: bool, inputs: Sequence[str | None] = (), resume: bool = False) -> None:
    """Refuse outputs that may not be written, before any work; the catalog counts as an input."""
    from embridge import outputs as protocol

    context = click.get_current_context(silent=True)
    catalog = context.meta.get(_CATALOG, []) if context else []
    given = [protocol.Output(output) if isinstance(output, str) else output for output in outputs]
    protocol.check_outputs(*given, inputs=[*inputs, *catalog], overwrite=overwrite, resume=resume)


def device_name(device: str) -> str:
    """The name of the device that an option selects (auto is resolved)."""
    from embridge.device import resolve_device

    return str(resolve_device(device))


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
    """The value as JSON: NaN and infinity become null, bytes hexadecimal, keys and other types text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)[:1000])
    return text if len(text) <= 60 else f"...{text[-57:]}" if "/" in text else f"{text[:57]}..."
