"""The command line: the group, and the modules of its verbs."""

from __future__ import annotations

import importlib
from typing import Any

import click

from embridge import __version__

_VERBS = {
    "demo": "demo",
    "info": "collections",
    "encode": "collections",
    "convert": "conversion",
    "copy": "conversion",
    "verify": "conversion",
    "anchors": "anchors",
    "fit": "fit",
    "evaluate": "evaluation",
    "merge": "merge",
    "plan": "plan",
    "rollout": "rollout",
    "index": "search",
    "migrate": "migrate",
    "cutover": "in_place",
    "rollback": "in_place",
    "drop-vector": "in_place",
    "search": "search",
    "decode": "decode",
    "decoder": "decode",
    "serve": "serve",
    "sql": "sql",
    "catalog": "catalog",
    "doctor": "doctor",
}


class _Verbs(click.Group):
    """Loads the module of a verb when it is called, so that help and completion are fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        return getattr(importlib.import_module(f"embridge.cli.{_VERBS[cmd_name]}"), cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List every verb with the first sentence of its help, wrapped."""
        verbs = ((name, self.get_command(ctx, name)) for name in _VERBS)
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(1000)) for name, found in verbs if found])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take passwords out of URIs before any message can show them; opening these URIs finds their passwords."""
        return super().parse_args(ctx, [_shown(argument) for argument in args])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; Ctrl-C exits with status 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _VERBS:
            ctx.fail(f"No such verb {args[0]!r}. Verbs: {', '.join(_VERBS)}.")
        return super().resolve_command(ctx, args)


def _shown(argument: str) -> str:
    if "://" not in argument:
        return argument
    from embridge.stores.uri import without_password

    option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + mark + without_password(value)


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="embridge")
def main() -> None:
    """Keep embeddings useful when the encoder changes.

    \b
    embridge demo                                         all steps on bundled embeddings
    embridge info old.parquet --space minilm              what is in a file
    embridge anchors sample old.parquet -n 5000 -o ids.parquet
    embridge encode texts.parquet --model M --ids ids.parquet -o new-sample.parquet
    embridge fit old.parquet new-sample.parquet -o map.safetensors
    embridge evaluate map.safetensors old.parquet new-sample.parquet
    embridge plan old.parquet new-sample.parquet          every strategy side by side
    embridge convert old.parquet map.safetensors old-in-new.parquet
    embridge copy old.parquet lancedb:///data/lance#old     to another store
    embridge merge re-encoded.parquet old-in-new.parquet -o mixed.parquet
    embridge rollout start old.parquet new-sample.parquet -o rollout   change encoders step by step
    embridge index old-in-new.parquet old-in-new.faiss --factory HNSW32
    embridge migrate old.faiss map.safetensors new.faiss  migrate an index without a rebuild
    embridge migrate postgresql://... map.safetensors     new vectors beside the old ones; then cutover, rollback
    embridge search old-in-new.faiss queries.parquet -k 10
    embridge decode old.parquet --decoder head.safetensors --via map.safetensors -o labels.parquet
    embridge sql map.safetensors "SELECT id, translate(vector::FLOAT[384]) FROM 'old.parquet'"
    embridge serve map.safetensors --index old.faiss        translate and search over HTTP
    embridge catalog sql "SELECT * FROM best_translator"

    Results go to stdout, progress to stderr; every verb takes --json. Exit status: 0 done, 1 error, 2 wrong usage, 130 Ctrl-C.
    """


if __name__ == "__main__":
    main()
