"""The options of verbs that can run on a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--backend",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where the work is done: here, or as tasks on a Ray cluster whose nodes all see the files.",
    ),
    click.option(
        "--address",
        metavar="ADDRESS",
        help="The cluster: auto (of this machine), HOST:PORT or ray://HOST:PORT. [default: $RAY_ADDRESS, else one started here]",
    ),
    click.option("--num-cpus", type=click.IntRange(1), help="CPU cores of a Ray task. [default: 1]"),
    click.option("--num-gpus", type=click.FloatRange(0), help="GPUs of a Ray task; may be a fraction. [default: 0]"),
)


def backend_options(function: Callable[..., None]) -> Callable[..., None]:
    """--backend, --address, --num-cpus and --num-gpus, which the verb receives as one argument `backend`."""

    @functools.wraps(function)
    def run(*given: Any, backend: str, address: str | None, num_cpus: int | None, num_gpus: float | None, **options: Any) -> None:
        from embridge.errors import ParameterError
        from embridge.ray import RayBackend

        stated = {"address": address, "num_cpus": num_cpus, "num_gpus": num_gpus}
        stated = {name: value for name, value in stated.items() if value is not None}
        if backend == "local" and stated:
            raise ParameterError(f"--{next(iter(stated)).replace('_', '-')} needs --backend ray.")
        function(*given, backend=RayBackend(**stated) if backend == "ray" else backend, **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run
