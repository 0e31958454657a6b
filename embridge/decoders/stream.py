"""Runs a decoder over a whole collection: reads batches, translates them if needed, writes predictions with ids and payload."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import numpy as np

from embridge.arrays import check_rows
from embridge.decoders.base import Decoded, Decoder
from embridge.decoders.linear import LinearHead
from embridge.device import resolve_device
from embridge.errors import MapError, OutputError, ParameterError
from embridge.files import fingerprint
from embridge.maps import Map
from embridge.outputs import Output, claim
from embridge.records import Decoding
from embridge.stores import Collection, source_paths
from embridge.stores.base import IdValues, check_content
from embridge.stores.ids import check_unique
from embridge.tables.predictions import check_payload, write_predictions
from embridge.types import decoder_mismatch, space_mismatch

BATCH_BYTES = 8 << 20  # of float32 vectors: wide enough for a product, small enough for wide outputs


def decode(
    source: Collection,
    decoder: Decoder,
    path: str | os.PathLike[str],
    *,
    via: Map | None = None,
    batch_rows: int | None = None,
    device: str | None = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Decoding:
    """Run a decoder over every row of a collection, and write its predictions as Parquet.

    The output has the ids, the payload, and ``prediction``, ``probability`` (a list per row) or ``output`` (a list per row) of
    `Decoded`; no vectors. Memory is bounded by the batch. The output is whole or absent. A linear head and a map are
    combined into one matrix (`LinearHead.after`), without intermediate vectors.

    Parameters
    ----------
    source : Collection
        In the space of the decoder, or of the map's source.
    decoder : Decoder
    path : str or path-like
        A local Parquet file.
    via : LinearMap or KernelMap, optional
        From the space of the source to that of the decoder.
    batch_rows : int, optional
        Default: as many as hold 8 MiB of float32 vectors.
    device : str, default "cpu"
        Device for linear heads, torch programs and translations; None uses CUDA where there is one.
    overwrite : bool, default False
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Decoding

    Raises
    ------
    SpaceMismatchError
        The spaces of collection, map and decoder differ.
    OutputExistsError, InterruptedOutputError
        The output exists or is an input, or another process is writing it.
    ChangedSourceError
        The source changed while it was read.
    CollectionError
        The source has a column of a name that the output needs.
    BadVectorsError, BadIdsError
        Rows that cannot be decoded, or that decode to NaN or infinite values; null or duplicate ids.
    DecoderError
        The model fails.
    """
    started = time.perf_counter()
    step = prepare(decoder, source, via)
    if batch_rows is not None and batch_rows < 1:
        raise ParameterError.must_be("batch_rows", "at least 1", batch_rows)
    place = str(resolve_device(device))
    with claim(Output(path), inputs=[*source_paths(source), decoder.path], overwrite=overwrite) as [target]:
        check_payload(source)
        check_unique(source)
        origin = source.fingerprint()
        lineage = {"source": origin, "decoder": decoder.fingerprint} | ({"map": via.fingerprint} if via else {})
        run = step.to(place)
        rows = batch_rows or max(256, BATCH_BYTES // (4 * source.stated_space.dim))
        done = 0
        with write_predictions(target, source, lineage) as writer:
            for batch in source.batches(rows, payload=True):
                found = run.decode(batch.vectors)
                _check(found, IdValues(batch.ids), source.name)
                writer.write(batch, {"prediction": found.prediction, "probability": found.probability, "output": found.output})
                done += len(batch)
                if progress is not None:
                    progress(done, len(source))
            if done != len(source):
                raise OutputError(f"{source.name} gave {done:,} rows instead of {len(source):,}; nothing is written.")
            check_content(source, origin)
        made = fingerprint(target)
    seconds = time.perf_counter() - started
    folded = via is not None and isinstance(step, LinearHead)
    used = via.fingerprint if via else ""
    return Decoding(str(path), done, writer.columns, folded, seconds, place, origin, decoder.fingerprint, made, used)


class _Translated(Decoder):
    """A decoder behind a map that it cannot be combined with: each batch is translated, then decoded."""

    format = "translated"

    def __init__(self, decoder: Decoder, translation: Map, device: str = "cpu") -> None:
        self.path, self.kind, self.classes = decoder.path, decoder.kind, decoder.classes
        self.space, self._decoder, self._map, self._device = translation.source, decoder, translation, device

    @property
    def fingerprint(self) -> str:
        return self._decoder.fingerprint

    def _decode(self, rows: np.ndarray) -> Decoded:
        if self._device == "cpu":
            return self._decoder.decode(self._map.apply(rows))
        import torch

        return self._decoder.decode(self._map.apply(torch.tensor(rows, device=self._device)).cpu().numpy())

    def to(self, device: str) -> _Translated:
        return _Translated(self._decoder.to(device), self._map, device)


def prepare(decoder: Decoder, source: Collection, via: Map | None) -> Decoder:
    """A decoder for the rows of `source`: combined with the map where both are linear, else behind it.

    Raises
    ------
    SpaceMismatchError
        The spaces of collection, map and decoder differ.
    """
    if via is None:
        if not decoder.space.same_as(source.stated_space):
            raise decoder_mismatch(decoder.name, decoder.space, source.name, source.space)
        return decoder
    if not via.source.same_as(source.stated_space):
        raise space_mismatch("The map", via.source, source.name, source.space)
    if not via.target.same_as(decoder.space):
        raise decoder_mismatch(decoder.name, decoder.space, "the map's target", via.target)
    if isinstance(decoder, LinearHead):
        with contextlib.suppress(MapError):  # combined with another map before: use two steps
            return decoder.after(via)
    return _Translated(decoder, via)


def _check(found: Decoded, ids: IdValues, where: str) -> None:
    """Refuse results that are not numbers."""
    for values in (found.prediction, found.probability, found.output):
        if values is not None and values.dtype.kind == "f":
            check_rows(values.reshape(len(values), -1), ids, f"The output for {where}", zero_is_bad=False)
