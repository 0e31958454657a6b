"""What a store can hold and do, as data."""

from __future__ import annotations

from dataclasses import dataclass

from embridge.types import Metric


@dataclass(frozen=True)
class Capabilities:
    """What a store does with rows of one metric.

    Attributes
    ----------
    keeps_lengths : bool
        Vectors come back with the lengths they were written with; False where they are scaled to unit length.
    keeps_order : bool
        Rows come back in the order in which they were written, else in another order that stays the same.
    keeps_repeated_ids : bool
        Rows that share an id are kept, or refused, so that they are noticed; else a row replaces the one with its id.
    has_snapshot : bool
        One reading sees one state, whatever is written meanwhile. Else `Collection.check_unchanged` finds most changes.
    supports_second_vector : bool
        A row may have a second vector, of another space.
    supports_alias : bool
        A name can be moved from one collection to another at once.
    id_types : tuple of str
        Of ``string`` and ``int64``.
    metrics : tuple of Metric
        Of its spaces.
    dtypes : tuple of str
        Of its vectors: ``float32``, ``float16``.
    largest_batch : int, optional
        Rows of one write; None is as many as memory holds.
    in_place_modes : tuple of str
        How a collection can be migrated in place (`embridge.stores.in_place`): ``column``, ``shadow``; the first is the default.
    finds_missing : bool
        Rows without a new vector are found, so that rows written during a migration in place are translated too.
    marks_changed : bool
        Rows whose old vector changes during a migration in place can be marked, so that they are translated again.
    """

    keeps_lengths: bool = True
    keeps_order: bool = True
    keeps_repeated_ids: bool = False
    has_snapshot: bool = False
    supports_second_vector: bool = False
    supports_alias: bool = False
    id_types: tuple[str, ...] = ("string", "int64")
    metrics: tuple[Metric, ...] = tuple(Metric)
    dtypes: tuple[str, ...] = ("float32",)
    largest_batch: int | None = None
    in_place_modes: tuple[str, ...] = ()
    finds_missing: bool = False
    marks_changed: bool = False
