"""Tables as text."""

from __future__ import annotations

from typing import Any


def aligned(columns: list[tuple[str, list[Any]]]) -> list[str]:
    """Columns of text: the first left-aligned, the others right-aligned."""
    cells = [[name, *(cell(value) for value in values)] for name, values in columns]
    widths = [max(map(len, column)) for column in cells]
    widths[0] = max(widths[0], 20)
    lines = zip(*cells, strict=True)
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) for line in lines
    ]


def cell(value: Any) -> str:
    """A number with three digits, an interval in brackets, an empty string for None."""
    if isinstance(value, tuple):
        return f"[{value[0]:.3f}, {value[1]:.3f}]"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def fusion_text(weight: float | None, correction: str | None) -> str | None:
    """Weight and hubness correction of a fusion; None where there is none."""
    return None if weight is None else f"{weight:g}, {correction}"
