"""The verb doctor: versions, devices and problems of this installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import click

from embridge.cli.session import Session, Verb, verb

_PACKAGES = ("numpy", "torch", "faiss-cpu", "faiss-gpu", "pyarrow", "duckdb", "safetensors", "sentence-transformers")


@click.command(cls=Verb)
@verb(catalog=False)
def doctor(session: Session) -> None:
    """Show versions, devices, free memory, and problems.

    \b
    embridge doctor
    embridge doctor --json
    """
    from embridge import __version__
    from embridge.device import available_devices, free_memory

    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    problems = []
    faiss_packages = [name for name in versions if name.startswith("faiss-")]
    gpus = 0
    if not faiss_packages:
        problems.append("No FAISS is installed: pip install 'embridge[cpu]' or 'embridge[gpu]'.")
    else:
        from embridge.indexes.gpu import gpu_count

        gpus = gpu_count()
    if len(faiss_packages) > 1:
        problems.append("faiss-cpu and faiss-gpu are both installed and share one folder: uninstall both, install one.")
    if not _version("sentence-transformers"):
        problems.append("sentence-transformers is not installed, so `encode` cannot run: pip install 'embridge[encode]'.")
    result: dict[str, Any] = {
        "embridge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": available_devices(),
        "faiss_gpus": gpus,
        "cores": os.cpu_count(),
        "free_memory_gb": round(free_memory() / 1e9, 1),
        "problems": problems,
    }
    lines = [f"embridge {__version__}, Python {result['python']}, {result['platform']}"]
    lines += [f"  {name} {version}" for name, version in versions.items()]
    lines += [f"devices: {', '.join(result['devices'])}; FAISS sees {gpus} GPUs"]
    lines += [f"{result['cores']} cores, {result['free_memory_gb']} GB of memory free"]
    lines += [f"problem: {problem}" for problem in problems] or ["no problems found"]
    session.emit(result, "\n".join(lines))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
