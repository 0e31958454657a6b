"""Results of checks of predicted errors, and of decoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from embridge.records.rows import Row


@dataclass(frozen=True)
class ConfidenceCheck:
    """Accuracy of a map's predicted errors, on rows that it was neither fitted nor calibrated on.

    Attributes
    ----------
    rows : int
    worst_tenth : float
        Mean error of the 10 % of rows with the highest predicted error, over the mean error of all: 1 is no better than chance.
    worst_tenth_ci : tuple of float
        Its 95 % interval (normal approximation).
    oracle_tenth : float
        The same for the 10 % of rows with the largest error.
    level, coverage : float
        The coverage that the bound was calibrated for, and the share of rows whose error is within it.
    """

    rows: int
    worst_tenth: float
    worst_tenth_ci: tuple[float, float]
    oracle_tenth: float
    level: float
    coverage: float

    def __str__(self) -> str:
        low, high = self.worst_tenth_ci
        chance = "; on these rows this is no better than chance" if low <= 1 else ""
        return (
            f"the 10 % of rows with the highest predicted error have {self.worst_tenth:.2f} times the mean error [{low:.2f}, "
            f"{high:.2f}] (the 10 % with the largest error: {self.oracle_tenth:.2f}){chance}; the {self.level:g} bound holds for "
            f"{self.coverage:.3f} of {self.rows:,} rows"
        )


@dataclass(frozen=True)
class DecoderStrategy:
    """Scores of a decoder with one strategy, against labels.

    Attributes
    ----------
    name : str
        ``native`` (the decoder on vectors of its own space), ``translated`` (on translated source vectors), ``no-translation`` (on
        untranslated source vectors) or ``retrained`` (a decoder trained on source vectors, on other rows).
    values : dict of str to float
        ``accuracy`` and ``macro_f1`` of a classifier, ``r2`` and ``mse`` of a regressor, ``mse`` of kind ``output``.
    intervals : dict of str to tuple of float
        95 % bootstrap intervals over rows.
    """

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class DecoderEvaluation:
    """A decoder on translated vectors compared with the alternatives, on rows that the map was not fitted on.

    Attributes
    ----------
    kind : str
        Of the decoder.
    rows, trained_on : int
        Test rows of every strategy; training rows of ``retrained`` (0 where it was left out).
    padded : int
        Zero columns appended to the source vectors for ``no-translation``; negative: columns cut off; 0: the widths are equal.
    strategies : tuple of DecoderStrategy
    decoder, map : str
        Their fingerprints.
    """

    kind: str
    rows: int
    trained_on: int
    padded: int
    strategies: tuple[DecoderStrategy, ...]
    decoder: str = ""
    map: str = ""

    def __getitem__(self, name: str) -> DecoderStrategy:
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        whole = {"decoder": self.decoder, "translator": self.map, "rows": self.rows, "trained_on": self.trained_on}
        whole |= {"padded": self.padded}
        for strategy in self.strategies:
            for metric, value in strategy.values.items():
                low, high = strategy.intervals[metric]
                values = {"strategy": strategy.name, "metric": metric, "value": value, "low": low, "high": high}
                yield "decoder_evaluation", whole | values

    def __str__(self) -> str:
        metrics = list(self.strategies[0].values)
        lines = [f"{'strategy':<16}" + "".join(f"{name:>10}  {'95 % interval':<18}" for name in metrics)]
        for s in self.strategies:
            cells = [f"{s.values[m]:>10.4g}  {'[{:.4g}, {:.4g}]'.format(*s.intervals[m]):<18}" for m in metrics]
            lines.append(f"{s.name:<16}" + "".join(cells))
        return "\n".join(line.rstrip() for line in lines)
