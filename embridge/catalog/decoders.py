"""What the catalog keeps of decoders: rows of its tables, made of records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from embridge.errors import CatalogError
from embridge.records import Artifact, DecoderEvaluation, DecoderRecord, Decoding


def facts_of(
    detail: DecoderRecord | DecoderEvaluation | Decoding, run: int, outputs: Sequence[Artifact]
) -> Iterator[tuple[str, list[Any]]]:
    """Table and values of every row that a record makes.

    Raises
    ------
    CatalogError
        A registered decoder is not among the outputs of its run.
    """
    if isinstance(detail, DecoderRecord):
        made = [a for a in outputs if a.kind == "decoder" and a.space is not None]
        if not made or made[0].space is None:
            raise CatalogError(f"The run that registered {detail.name!r} names no decoder with its space.")
        space, classes = made[0].space, json.dumps(list(detail.classes))
        path = os.path.abspath(made[0].path)
        facts = [made[0].fingerprint, path, detail.name, detail.format, detail.kind, space.name, space.dim, classes, run]
        yield "decoder", facts
    elif isinstance(detail, Decoding):
        path = os.path.abspath(detail.path)
        values = [run, detail.source, detail.decoder, detail.map or None, detail.fingerprint, path, detail.rows]
        yield "decoding", [*values, detail.folded, detail.seconds, detail.device]
    else:
        for strategy in detail.strategies:
            for metric, value in strategy.values.items():
                values = [run, detail.decoder, detail.map, strategy.name, metric, value, *strategy.intervals[metric]]
                yield "decoder_evaluation", [*values, detail.rows, detail.trained_on, detail.padded]
