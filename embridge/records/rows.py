"""Records as rows of catalog tables."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

Row = tuple[str, dict[str, Any]]
"""A table and the values of one row, by column."""


def columns_of(record: Any, *, leave_out: tuple[str, ...] = (), **renamed: str) -> dict[str, Any]:
    """Fields of a record by column name.

    A confidence interval ``x_ci`` becomes the columns ``x_low`` and ``x_high``, both None where there is none.

    Parameters
    ----------
    record : dataclass instance
    leave_out : tuple of str
        Fields that have no column.
    **renamed : str
        Fields (or columns of intervals) whose column has another name.

    Returns
    -------
    dict
    """
    found: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in leave_out:
            continue
        if field.name.endswith("_ci"):
            name = field.name.removesuffix("_ci")
            found[f"{name}_low"], found[f"{name}_high"] = value or (None, None)
        else:
            found[field.name] = value
    return {renamed.get(name, name): value for name, value in found.items()}
