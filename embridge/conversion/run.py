"""A whole collection into another model's space."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from embridge.conversion.stream import translate
from embridge.device import resolve_device
from embridge.errors import SpaceMismatchError
from embridge.files import check_output, fingerprint
from embridge.ids import check_unique
from embridge.maps import LinearMap
from embridge.records import Conversion
from embridge.stores import Collection
from embridge.stores.writer import write_collection

Progress = Callable[[int, int], None]


def check_map(translation: LinearMap, source: Collection) -> None:
    """Refuse a map that does not start in the space of the collection.

    Raises
    ------
    SpaceMismatchError
    """
    if not translation.source.same_as(source.space):
        raise SpaceMismatchError.between("The map", translation.source, source.name, source.space)


def convert(
    source: Collection,
    translation: LinearMap,
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    compact: bool = False,
    overwrite: bool = False,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Translate every vector of a collection and write a Parquet collection of the target space.

    Ids, row order and the other columns stay as they are. Memory is bounded by the batch. The output is whole or absent.

    Parameters
    ----------
    source : Collection
    translation : LinearMap
        From the space of the source.
    path : str or path-like
        The Parquet file to write.
    device : str, optional
        Default: CUDA where there is one, else the CPU.
    dtype : {"float32", "float16"}
        Of the vectors written; computed in float32.
    compact : bool, default False
        Byte stream split and zstd for float32 vectors: smaller, slower.
    overwrite : bool, default False
    batch_rows : int, optional
        Default: as many as hold 32 MiB.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Conversion

    Raises
    ------
    SpaceMismatchError
        The map starts in another space.
    OutputExistsError
        The output exists, or is the source.
    BadVectorsError, BadIdsError
        Rows that cannot be translated, null or duplicate ids. Nothing is written.
    """
    started = time.perf_counter()
    check_map(translation, source)
    target = check_output(path, overwrite=overwrite, inputs=(source.path,))
    place = resolve_device(device)
    check_unique(source)
    origin = source.fingerprint()
    writer = write_collection(
        target,
        translation.target,
        source.id_type,
        source.payload_schema,
        columns=(source.id_column, source.vector_column),
        lineage={"source": origin, "map": translation.fingerprint},
        dtype=dtype,
        compact=compact,
    )
    with writer as output:
        for batch in translate(source, translation, place, dtype=dtype, batch_rows=batch_rows):
            output.write(batch)
            if progress is not None:
                progress(output.rows, len(source))
    seconds = time.perf_counter() - started
    return Conversion(str(path), output.rows, seconds, str(place), origin, translation.fingerprint, fingerprint(target))
