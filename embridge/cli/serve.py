"""The verb serve."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import click

from embridge.cli.session import Session, Verb, device_option, verb
from embridge.serving.options import ServeOptions

_ENVIRONMENT = "EMBRIDGE_SERVE"
_DEFAULT = ServeOptions()


def _read_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Take defaults from a TOML file: the command line and the environment come before it."""
    if path is None:
        return
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e).splitlines()[0]
        raise click.BadParameter(f"{path!r} cannot be read as TOML: {reason}.") from e
    values = {name.replace("-", "_"): value for name, value in values.items()}
    known = {str(p.name): p for p in context.command.params if p.name != "config"}
    for name, value in values.items():
        if name not in known:
            raise click.BadParameter(f"{path!r} has an unknown option {name!r}. Options: {', '.join(sorted(known))}.")
        many = known[name].nargs == -1 or getattr(known[name], "multiple", False)
        if isinstance(value, dict) or isinstance(value, list) != many:
            raise click.BadParameter(f"{name!r} of {path!r} must be {'a list' if many else 'one value'}.")
    context.default_map = {**(context.default_map or {}), **values}


@click.command(cls=Verb, context_settings={"auto_envvar_prefix": _ENVIRONMENT, "show_default": True})
@click.argument("maps", metavar="[NAME=]MAP...", nargs=-1, envvar=f"{_ENVIRONMENT}_MAPS")
@click.option(
    "--config", metavar="FILE.toml", is_eager=True, expose_value=False, callback=_read_config, help="Take options from a TOML file."
)
@click.option("--index", multiple=True, metavar="[NAME=]INDEX", help="Search this: a FAISS index, a collection or a rollout.")
@click.option("--index-space", metavar="NAME[:METRIC]", help="Space of an index that does not name it.")
@click.option(
    "--model",
    multiple=True,
    metavar="[SPACE=]MODEL",
    help="Embed texts with a sentence-transformers model, in this process.",
)
@click.option(
    "--upstream",
    multiple=True,
    metavar="[SPACE=]URL#MODEL",
    help="Embed texts by an OpenAI-compatible server. Its key is $EMBRIDGE_UPSTREAM_KEY_SPACE, $EMBRIDGE_UPSTREAM_KEY or "
    "$OPENAI_API_KEY.",
)
@device_option
@click.option("--host", default=_DEFAULT.host)
@click.option("--port", type=click.IntRange(0, 65535), default=_DEFAULT.port, help="0 takes a free one.")
@click.option(
    "--api-key",
    metavar="KEY",
    show_default=False,
    help="Key of clients. Others see it in the list of processes: use the environment.",
)
@click.option("--catalog", metavar="FILE", show_default="$EMBRIDGE_CATALOG or embridge.duckdb", help="Catalog of figures to show.")
@click.option("--query-log", metavar="FOLDER", help="Log queries of POST /v1/queries here, for the rollout that is served.")
@click.option("--max-body-mb", type=click.IntRange(1, 4096), default=_DEFAULT.max_body >> 20, help="MiB of a request.")
@click.option("--max-rows", type=click.IntRange(1), default=_DEFAULT.max_rows, help="Vectors or texts of a request.")
@click.option("--max-concurrency", type=click.IntRange(1), default=_DEFAULT.max_concurrency, help="Requests at a time.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=_DEFAULT.timeout, help="Seconds of a request.")
@click.option("--workers", type=click.IntRange(1, 256), default=_DEFAULT.workers, help="Threads that compute.")
@click.option(
    "--reload", type=click.FloatRange(0, min_open=True), default=_DEFAULT.reload, help="Seconds between looks for changed files."
)
@click.option(
    "--drain", type=click.FloatRange(0), default=_DEFAULT.drain, help="Seconds for which requests are accepted after SIGTERM."
)
@verb(catalog=False)
def serve(
    session: Session, index: tuple[str, ...], model: tuple[str, ...], upstream: tuple[str, ...], max_body_mb: int, **options: Any
) -> None:
    """Serve embeddings, translation and search over HTTP.

    An application keeps its index and its client when the encoder is switched off: POST /v1/embeddings takes texts as OpenAI's API
    does, embeds them with the new model, and gives vectors in the space of the index. Vectors are translated by POST /v1/translate,
    and --index is searched by POST /v1/search. The page at / shows what is served.

    Every option may also be in the environment (EMBRIDGE_SERVE_PORT, EMBRIDGE_SERVE_MAPS, ...) or in a TOML file (port = 8080,
    maps = ["map.safetensors"]); the command line comes first, then the environment. SIGTERM finishes requests, SIGHUP reads
    changed files at once. Logs are JSON lines on stderr.

    \b
    embridge serve map.safetensors
    embridge serve queries.safetensors --model mpnet=all-mpnet-base-v2 --index old.faiss
    embridge serve queries.safetensors --upstream "large=https://api.openai.com/v1#text-embedding-3-large" --index old.faiss
    embridge serve --config serve.toml
    """
    # Before any library is loaded: products of several threads at a time, each on its share of the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options["workers"])))
    import embridge as eb

    eb.serve(ServeOptions(indexes=index, models=model, upstreams=upstream, max_body=max_body_mb << 20, **options))
