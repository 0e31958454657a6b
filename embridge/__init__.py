"""embridge keeps embeddings useful when the encoder changes.

The public names are in `__init__.pyi`. Each is loaded when it is first used: importing embridge loads none of torch, FAISS,
DuckDB and pyarrow.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

# Idle OpenMP threads (torch, FAISS) spin by default, which on a busy machine starves the threads they wait for: a fit that takes
# 2 s so took 16 to 90 s with four processes on two cores. It must be set in the environment before either library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Arrow's own allocator does not return memory: a conversion needs 700 to 800 MB with it, 640 with the system's, at equal speed.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"


def _read_stub() -> dict[str, tuple[str, str]]:
    """Module and attribute of every public name: ``from M import A as A``, and ``B = A`` for another name of an import."""
    stub = (Path(__file__).parent / "__init__.pyi").read_text(encoding="utf-8")
    imports = re.findall(r"^from (\S+) import (\w+)( as \2)?$", stub, re.MULTILINE)
    homes = {attribute: (module, attribute) for module, attribute, _ in imports}
    public = {attribute: homes[attribute] for _, attribute, is_public in imports if is_public}
    return public | {name: homes[other] for name, other in re.findall(r"^(\w+) = (\w+)", stub, re.MULTILINE)}


_HOMES = _read_stub()

__all__ = ["__version__", *sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embridge' has no attribute {name!r}")
    home, attribute = _HOMES[name]
    value = getattr(importlib.import_module(home), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
