"""One conversion as a value: source, map, options and output; built and checked once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from embridge.conversion.engine import TranslateOptions
from embridge.conversion.identity import Identity
from embridge.conversion.log import FORMAT
from embridge.device import resolve_devices
from embridge.errors import CollectionError, EmbridgeError, ParameterError, SpaceMismatchError
from embridge.maps import LinearMap, Map
from embridge.ray import RayBackend
from embridge.records import Conversion
from embridge.stores import Collection, ParquetCollection
from embridge.stores.base import check_content
from embridge.stores.parquet.collection import ERROR_COLUMNS, OLD_COLUMN
from embridge.types import Metric, Space, space_mismatch

OnBad = Literal["stop", "skip"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Task:
    """A conversion.

    Attributes
    ----------
    source : Collection
    translation : LinearMap, KernelMap or Identity
    options : TranslateOptions
        Without `device`, which `devices` holds.
    devices : tuple of torch.device
    compact : bool
    keep_old : bool
        Write the source's vectors too, as the column ``old_vector``.
    on_bad : {"stop", "skip"}
    overwrite, resume : bool
    batch_rows : int or None
    progress : callable or None
    origin : str
        Fingerprint of the whole source, of which `source` may be one file.
    content : str
        Fingerprint of `source`; empty in a task on a cluster, whose caller checks the content of all files.
    backend : RayBackend or None
    """

    source: Collection
    translation: Map | Identity
    options: TranslateOptions
    devices: tuple[torch.device, ...]
    compact: bool
    keep_old: bool
    on_bad: OnBad
    overwrite: bool
    resume: bool
    batch_rows: int | None
    progress: Progress | None
    origin: str
    content: str
    backend: RayBackend | None = None

    @classmethod
    def of(
        cls,
        source: Collection,
        translation: Map | Identity,
        options: TranslateOptions,
        *,
        on_bad: OnBad,
        batch_rows: int | None,
        backend: RayBackend | None = None,
        **rest: Any,
    ) -> Task:
        """Check that source, map and options fit together.

        Raises
        ------
        SpaceMismatchError, ParameterError, MapError, CollectionError, DeviceError
        """
        if not translation.source.same_as(source.stated_space):
            raise space_mismatch("The map", translation.source, source.name, source.space)
        if not source.capabilities.keeps_lengths and not _takes_any_length(translation):
            raise SpaceMismatchError(
                f"{source.name} holds vectors scaled to unit length, and the map was fitted on vectors of other lengths. "
                "Hint: fit it on the vectors of this collection."
            )
        options.check(translation)
        if on_bad not in ("stop", "skip"):
            raise ParameterError.must_be("on_bad", "one of stop, skip", on_bad)
        if batch_rows is not None and batch_rows < 1:
            raise ParameterError.must_be("batch_rows", "at least 1", batch_rows)
        added = (*(ERROR_COLUMNS if options.confidence is not None else ()), *((OLD_COLUMN,) if rest["keep_old"] else ()))
        for column in added:
            if column in (source.id_column, source.vector_column, *source.payload_schema.names):
                raise CollectionError.reserved_column(source.name, column)
        if backend is not None and not isinstance(source, ParquetCollection):
            raise ParameterError(
                f"{source.name} is not in Parquet, which the backend 'ray' reads. Hint: `embridge copy` it to Parquet first."
            )
        # Tasks on a cluster find their devices there.
        devices = resolve_devices(options.device) if backend is None else [torch.device(backend.device_for(options.device))]
        origin, rest = source.fingerprint(), rest | {"on_bad": on_bad, "batch_rows": batch_rows, "backend": backend}
        return cls(source, translation, options, tuple(devices), origin=origin, content=origin, **rest)

    def of_file(self, part: ParquetCollection, **changes: Any) -> Task:
        """The same for one file of the source."""
        return replace(self, source=part, content=part.fingerprint(), **changes)

    @property
    def confidence(self) -> dict[str, Any] | None:
        """The values that determine the columns of errors; the map's fingerprint does not include them."""
        if self.options.confidence is None or self.translation.confidence is None:
            return None
        return {"coverage": self.options.confidence, "fingerprint": self.translation.confidence.fingerprint}

    @property
    def payload_spaces(self) -> dict[str, Space]:
        """The spaces of vector columns in the payload of the output."""
        names = self.source.payload_schema.names
        found = {name: space for name, space in self.source.payload_spaces.items() if name in names}
        return found | ({OLD_COLUMN: self.source.space} if self.keep_old else {})

    @property
    def lineage(self) -> dict[str, str]:
        """Fingerprints of the inputs of the output."""
        return {"source": self.origin} | ({"map": self.translation.fingerprint} if self.translation.fingerprint else {})

    @property
    def plan(self) -> dict[str, Any]:
        """Everything that determines the bytes of the output, as JSON."""
        return {
            "format": FORMAT,
            "source": self.origin,
            "rows": len(self.source),
            "map": self.translation.fingerprint,
            "columns": [self.source.id_column, self.source.vector_column],
            "dtype": self.options.dtype,
            "compact": self.compact,
            "keep_old": self.keep_old,
            "precision": self.options.precision,
            "device": self.devices[0].type,
            "confidence": self.confidence,
        }

    def check_source(self) -> None:
        """Check, after reading all rows, that the source is unchanged.

        Raises
        ------
        ChangedSourceError
        """
        if self.content:
            check_content(self.source, self.content)
        else:
            self.source.check_unchanged()

    def already_done(self, path: str | os.PathLike[str]) -> Conversion | None:
        """The finished output at `path` of a run that ended before reporting it; None where it was made from other inputs."""
        try:
            found = ParquetCollection(path)
        except EmbridgeError:
            return None
        if found.lineage != self.lineage or found.vector_type != self.options.dtype or found.confidence != self.confidence:
            return None
        if found.payload_spaces != self.payload_spaces:
            return None
        rows = len(self.source)
        return self.result(str(path), len(found), rows - len(found), 0.0, found.fingerprint(), rows)

    def result(self, path: str, rows: int, skipped: int, seconds: float, fingerprint: str, reused: int = 0) -> Conversion:
        """The record of an output."""
        device = "+".join(str(device) for device in self.devices)
        return Conversion(path, rows, seconds, device, self.origin, self.translation.fingerprint, fingerprint, skipped, reused)


def _takes_any_length(translation: Map | Identity) -> bool:
    """Vectors that were scaled to unit length have translations in the same directions as before, or are what the map expects.

    An affine map without an intercept scales a translation with its vector, which does not count under cosine.
    """
    if isinstance(translation, Identity) or translation.source.normalized:
        return True
    is_linear = isinstance(translation, LinearMap) and not translation.intercept.any()
    return is_linear and translation.target.metric == Metric.COSINE
