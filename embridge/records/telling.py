"""An evaluation as text: one table, then what labels, corpus size and another map make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embridge.records.evaluation import Difference, Evaluation, LabelStrategy

_LINES = 16  # of labels
_FEW = 20  # queries: labels with fewer come last


def strategy_lines(found: Evaluation) -> list[str]:
    """Every strategy; columns in which there is nothing are left out."""
    columns = [
        ("strategy", [s.name for s in found.strategies]),
        (f"overlap@{found.k}", [s.overlap for s in found.strategies]),
        ("95 % interval", [s.overlap_ci for s in found.strategies]),
        (f"recall@{found.k}", [s.recall for s in found.strategies]),
        ("95 % interval", [s.recall_ci for s in found.strategies]),
        ("MRR", [s.mrr for s in found.strategies]),
        (f"nDCG@{found.k}", [s.ndcg for s in found.strategies]),
        (f"in top {max(100, found.k)}", [s.candidate_recall for s in found.strategies]),
    ]
    return _aligned([(name, values) for name, values in columns if any(v is not None for v in values)])


def size_lines(found: Evaluation) -> list[str]:
    """Overlap by rows searched, a line a strategy; nothing where only one size was measured."""
    if len({s.corpus for s in found.sizes}) < 2:
        return []
    ahead = [s for s in found.sizes if s.forecast]
    told = f", at {ahead[0].corpus:,} by forecast" if ahead else ""
    lines = [f"overlap@{found.k} by rows searched{told}:"]
    for name in dict.fromkeys(s.strategy for s in found.sizes):
        mine = [s for s in found.sizes if s.strategy == name]
        points = [f"{s.corpus:,}: {s.overlap:.3f}" for s in mine if not s.forecast]
        points += [f"{s.corpus:,}: about {s.overlap:.3f} {_cell(s.overlap_ci)}" for s in mine if s.forecast]
        lines.append(f"  {name:<20} {', '.join(points)}")
    return lines


def label_lines(found: Evaluation) -> list[str]:
    """Labels, those first that translated documents lose most to re-encoding; by recall where anything is judged."""
    if not found.by_label:
        return []
    table: dict[Any, dict[str, LabelStrategy]] = {}
    for one in found.by_label:
        table.setdefault(one.label, {})[one.strategy] = one
    measure = "recall" if found.judged else "overlap"

    def loss(label: Any) -> float | None:
        mine, best = (getattr(table[label][name], measure) for name in ("translate-documents", "re-encode"))
        return None if mine is None or best is None else best - mine

    def order(label: Any) -> tuple[bool, float, str]:
        lost = loss(label)
        return table[label]["re-encode"].queries < _FEW or lost is None, -(lost or 0.0), str(label)

    labels = sorted(table, key=order)
    shown = labels[:_LINES]
    columns: list[tuple[str, list[Any]]] = [
        ("label", [str(label)[:40] for label in shown]),
        ("queries", [f"{table[label]['re-encode'].queries:,}" for label in shown]),
    ]
    there = (name for name in ("keep-old", "translate-documents", "blend", "re-encode") if name in table[shown[0]])
    columns += [(name, [getattr(table[label][name], measure) for label in shown]) for name in there]
    lines = [
        f"{measure}@{found.k} by label, worst translated first (labels of fewer than {_FEW} queries last):",
        *_aligned(columns),
    ]
    return lines + ([f"and {len(labels) - _LINES:,} labels more"] if len(labels) > _LINES else [])


def difference_lines(found: Evaluation) -> list[str]:
    """This map beside the other: figures, and what they mean."""
    lines = []
    for name in dict.fromkeys(d.strategy for d in found.differences):
        mine = [d for d in found.differences if d.strategy == name]
        lines.append(f"{name}, this map minus the other: {'; '.join(map(str, mine))}. {_verdict(mine)}")
    return lines


def _verdict(differences: Sequence[Difference]) -> str:
    said = []
    for side, name in (("this", "this map"), ("other", "the other map")):
        if metrics := [d.metric for d in differences if d.better == side]:
            said.append(f"{name} is significantly better in {', '.join(metrics)}")
    sentence = ", ".join(said) or "no difference is significant"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _aligned(columns: list[tuple[str, list[Any]]]) -> list[str]:
    """Columns of text: the first to the left, all others to the right."""
    cells = [[name, *(_cell(value) for value in values)] for name, values in columns]
    widths = [max(map(len, column)) for column in cells]
    widths[0] = max(widths[0], 20)
    lines = zip(*cells, strict=True)
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) for line in lines
    ]


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{value[0]:.3f}, {value[1]:.3f}]"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
