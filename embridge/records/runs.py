"""The record of a run of one verb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embridge.errors import CatalogError
from embridge.records.artifacts import Artifact
from embridge.records.evaluation import Evaluation
from embridge.records.fitting import AnchorRecord, FitRecord
from embridge.records.outputs import Conversion, DecoderRecord, Decoding, Merge, Migration
from embridge.records.planning import Plan
from embridge.records.quality import DecoderEvaluation
from embridge.records.rows import Row

Detail = (
    FitRecord | AnchorRecord | Evaluation | Plan | Conversion | Migration | Merge | Decoding | DecoderEvaluation | DecoderRecord
)
_OF_AN_OUTPUT = {FitRecord: "map", DecoderRecord: "decoder"}  # details that describe one output, of this kind


@dataclass(frozen=True)
class Run:
    """One verb that was executed, as `Catalog.record` stores it.

    Attributes
    ----------
    verb : str
        ``fit``, ``convert`` ...
    parameters : dict
        Everything that determined the result, as JSON values.
    seconds : float
    inputs, outputs : tuple of Artifact
        Files that were read and written.
    rows : int, optional
    device : str, optional
    details : tuple
        Records of the results, each stored in its own tables. The i-th `FitRecord` belongs to the i-th map among
        the outputs.

    Examples
    --------
    >>> from embridge.records import Artifact, Conversion, Run
    >>> done = Conversion("new.parquet", rows=10, seconds=0.5, device="cpu", source="c1", map="f1", fingerprint="c2")
    >>> run = Run.of("convert", inputs=[Artifact("source", "old.parquet", "c1", "parquet")], result=done)
    >>> run.rows, run.seconds, run.device
    (10, 0.5, 'cpu')
    """

    verb: str
    parameters: dict[str, Any]
    seconds: float
    inputs: tuple[Artifact, ...] = ()
    outputs: tuple[Artifact, ...] = ()
    rows: int | None = None
    device: str | None = None
    details: tuple[Detail, ...] = ()

    @classmethod
    def of(
        cls,
        verb: str,
        *,
        inputs: Sequence[Artifact] = (),
        outputs: Sequence[Artifact] = (),
        result: Detail | Sequence[Detail] = (),
        parameters: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        rows: int | None = None,
        device: str | None = None,
    ) -> Run:
        """A run with its results.

        Parameters
        ----------
        verb : str
        inputs, outputs : sequence of Artifact
        result : record or sequence of records
            The result of the verb: `Conversion`, `Evaluation`, `FitRecord` ...
        parameters : mapping, optional
        seconds, rows, device : optional
            Default: those of the last record in `result` that has them; without one, seconds are 0 and the others None.

        Returns
        -------
        Run
        """
        details = tuple(result) if isinstance(result, Sequence) else (result,)
        known = {"seconds": seconds, "rows": rows, "device": device}
        for detail in details:
            known |= {name: getattr(detail, name, None) for name, value in known.items() if value is None}
        facts = (known["seconds"] or 0.0, tuple(inputs), tuple(outputs), known["rows"], known["device"])
        return cls(verb, dict(parameters or {}), *facts, details)

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables, except that of the table ``run``.

        Raises
        ------
        CatalogError
            The numbers of maps and records of fits, or of decoders and their records, differ.
        """
        for direction, artifacts in (("in", self.inputs), ("out", self.outputs)):
            for artifact in artifacts:
                yield from artifact.to_rows(direction)
        made = {kind: [a for a in self.outputs if a.kind == kind] for kind in _OF_AN_OUTPUT.values()}
        for record, kind in _OF_AN_OUTPUT.items():
            count = sum(type(detail) is record for detail in self.details)
            if count not in (0, len(made[kind])):
                named = len(made[kind])
                raise CatalogError(f"The run {self.verb!r} names {named} {kind}s and has {count} records of them; each needs one.")
        for detail in self.details:
            if isinstance(detail, FitRecord | DecoderRecord):
                yield from detail.to_rows(made[_OF_AN_OUTPUT[type(detail)]].pop(0))
            else:
                yield from detail.to_rows()
