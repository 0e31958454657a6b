"""What the notebooks share: their size, where data lie, where figures and tables go.

``EMBRIDGE_NOTEBOOK_SCALE=small`` makes every notebook quick and leaves the committed figures and tables alone.
``EMBRIDGE_SHARED_DATA`` says where the data lie if not in ``shared/data`` beside the checkout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

SMALL = os.environ.get("EMBRIDGE_NOTEBOOK_SCALE") == "small"
HERE = Path(__file__).parent
DATA = Path(os.environ.get("EMBRIDGE_SHARED_DATA", HERE.parents[1] / "shared" / "data"))
SEEDS = range(1 if SMALL else 5)


def size(full: int, small: int) -> int:
    """A number of rows, steps or anchors, by the size of the run."""
    return small if SMALL else full


def save(figure, name: str) -> None:
    """Write a figure to ``figures/NAME.png``, in a full run."""
    if not SMALL:
        (HERE / "figures").mkdir(exist_ok=True)
        figure.savefig(HERE / "figures" / f"{name}.png", dpi=80, bbox_inches="tight", metadata={"Software": None})


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table in Markdown, by row."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def publish(name: str, text: str) -> None:
    """Put a table in its place in RESULTS.md, between ``<!-- NAME -->`` and ``<!-- /NAME -->``, in a full run."""
    if SMALL:
        return
    page = HERE / "RESULTS.md"
    place = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    found = page.read_text()
    if not place.search(found):
        raise LookupError(f"RESULTS.md has no place for {name!r}.")
    page.write_text(place.sub(lambda m: f"{m[1]}{text}\n{m[2]}", found))
