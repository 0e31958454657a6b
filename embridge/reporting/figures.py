"""The figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from embridge.records import CostedScore, LabelFigures, NormDistribution, Plan
from embridge.reporting.drawing import FAINT, FIRST, GRID, INK, PAPER, SECOND, drawing, printable, to_svg

WIDTH = 460.0  # pixels; a column of the page
_FEW = 30  # queries, below which a label's score is mostly random
_STRONGEST = 0.6  # opacity of the largest difference in the heat map: numbers on it stay legible


def strategy_figure(plan: Plan) -> str:
    """Each strategy's paired difference to ``keep-old`` with its interval, best first; with and without correction."""
    strategies = [s for s in plan.strategies if not s.name.startswith("progressive-")]  # they are the curve
    gains: dict[str, float] = {}
    for s in strategies:
        gains[s.name] = max(s.gain, gains.get(s.name, -np.inf))
    names = sorted(gains, key=lambda name: gains[name])
    measure, keep, full = _measure(plan), plan["keep-old"], plan["re-encode"]
    base = keep.overlap if keep.recall is None else keep.recall
    recommended = {r.strategy for r in plan.recommendations.values()}
    both = any(s.hubness for s in strategies)
    with drawing(WIDTH, 150 + 54 * len(names)) as figure:
        axes = figure.add_subplot()
        for value, line in ((0.0, "-"), (full.gain, "--")):
            axes.axvline(value, color=FAINT, linewidth=1, linestyle=line)
        for s in strategies:
            y = names.index(s.name) + (0.17 if both else 0) * (-1 if s.hubness else 1)
            color = SECOND if s.encodes else FIRST
            axes.plot(s.gain_ci, (y, y), color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(
                s.gain, y, color=color, marker="D" if s.title in recommended else "o", markeredgewidth=1.6,
                markersize=8 if s.title in recommended else 6, markerfacecolor=PAPER if s.hubness else color,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(f"{measure}: difference to keep-old")
        above = axes.secondary_xaxis("top", functions=(lambda x: np.add(x, base), lambda x: np.subtract(x, base)))
        above.set_xlabel(measure)
        for axis, show in ((axes.xaxis, _difference), (above.xaxis, lambda value, _: f"{value:.2f}")):
            axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(FuncFormatter(show))
        axes.spines["left"].set_visible(False)

        def entry(label: str, **look: Any) -> Any:
            return axes.plot([], [], label=label, **({"color": FAINT, "linestyle": "none", "marker": "o"} | look))[0]

        entries = [
            entry("no row is encoded", color=FIRST),
            entry("rows are encoded", color=SECOND),
            *([entry("with hubness correction", markerfacecolor=PAPER, markeredgewidth=1.6)] if both else []),
            entry("recommended", marker="D", markersize=8),
            entry("keep-old", linestyle="-", marker=""),
            entry("re-encode", linestyle="--", marker=""),
        ]
        figure.legend(handles=entries, loc="outside lower center", ncols=3, fontsize=10.5, handlelength=1.6, columnspacing=1.4)
        best = max(strategies, key=lambda s: s.gain)
        described = (
            f"{len(names)} strategies, best first, each with the paired difference to keep-old in {measure} and its 95 % interval. "
            f"keep-old has {base:.3f}, re-encode {full.gain:+.3f} against it; the largest difference is {best.gain:+.3f} "
            f"({best.title}). The table below has every number."
        )
        return to_svg(figure, "strategies", "Strategies with intervals", described)


def _difference(value: float, _: int) -> str:
    return f"{value:+.2f}".replace("-", "\u2212") if abs(value) > 1e-9 else "0"


def curve_figure(plan: Plan) -> str:
    """Overlap of translated documents by number of anchors, and the prediction with its interval."""
    curve = plan.learning_curve
    with drawing(WIDTH, 280) as figure:
        axes = figure.add_subplot()
        axes.plot(curve.anchors, curve.overlap, color=FIRST, marker="o", linewidth=2, label="translated documents, measured")
        axes.axhline(plan["keep-old"].overlap, color=FAINT, linewidth=1, label="keep-old, all queries")
        ticks = list(curve.anchors)
        if curve.forecast:
            ahead = (curve.anchors[-1], *curve.forecast_anchors)
            low, high = zip(*[(curve.overlap[-1],) * 2, *curve.forecast_ci], strict=True)
            band = to_rgb(SECOND)
            axes.fill_between(ahead, low, high, facecolor=(*band, 0.22), edgecolor="none", label="95 % interval of the prediction")
            line = (curve.overlap[-1], *curve.forecast)
            axes.plot(ahead, line, color=SECOND, linestyle="--", linewidth=2, zorder=1.9, label="forecast")
            axes.plot(curve.forecast_anchors, curve.forecast, color=SECOND, linestyle="none", marker="o", markerfacecolor=PAPER)
            ticks += curve.forecast_anchors
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.07)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
        axes.set_xlabel("anchors (rows encoded by both models)")
        axes.set_ylabel(f"overlap@{plan.k}")
        figure.legend(loc="outside lower center", ncols=2, fontsize=10.5, handlelength=1.8, columnspacing=1.4)
        points = ", ".join(f"{n:,}: {v:.3f}" for n, v in zip(curve.anchors, curve.overlap, strict=True))
        more = ", ".join(
            f"{n:,}: {v:.3f} ({low:.3f} to {high:.3f})"
            for n, v, (low, high) in zip(curve.forecast_anchors, curve.forecast, curve.forecast_ci, strict=True)
        )
        described = f"Overlap of translated documents by anchors: {points}." + (f" Prediction: {more}." if more else "")
        return to_svg(figure, "curve", "Learning curve", described)


def norm_figure(plan: Plan) -> str:
    """Lengths of rows: the source space on its own axis, the target space and the translation on a common one."""
    with drawing(WIDTH, 42 + 82 * len(plan.norms)) as figure:
        rows = figure.subplots(len(plan.norms), 1, squeeze=False)[:, 0]
        first = None
        for axes, norms in zip(rows, plan.norms, strict=True):
            color = SECOND if norms.name.startswith("translation") else FIRST
            _histogram(axes, norms, color)
            axes.set_title(_norm_title(plan, norms), loc="left", fontsize=11.5, color=INK)
            spread = "" if len(norms.counts) == 1 else f", 90 % within {norms.low:.3g} to {norms.high:.3g}"
            axes.set_title(f"median {norms.median:.3g}{spread}", loc="right", fontsize=10.5, color=FAINT)
            if norms.name == "source":
                continue
            if first is None:
                first = axes
            else:
                axes.sharex(first)
        for norms, axes in zip(plan.norms, rows, strict=True):
            group = [norms] if norms.name == "source" else [n for n in plan.norms if n.name != "source"]
            axes.set_xlim(*_limits(group))
            if norms.name not in ("source", plan.norms[-1].name):
                axes.tick_params(labelbottom=False)
        rows[-1].set_xlabel("length of a row")
        lines = [f"{_norm_title(plan, n)}: median {n.median:.4g}, 90 % within {n.low:.4g} to {n.high:.4g}." for n in plan.norms]
        return to_svg(figure, "norms", "Lengths of rows", " ".join(lines))


def _histogram(axes: Axes, norms: NormDistribution, color: str) -> None:
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    if len(norms.counts) == 1:
        axes.plot((norms.median, norms.median), (0, 1), color=color, linewidth=3, solid_capstyle="butt")
        axes.annotate(
            f"all {norms.rows:,} rows", (norms.median, 0.55), xytext=(-7, 0), textcoords="offset points", ha="right", va="center",
            fontsize=10.5, color=INK,
        )  # fmt: skip
        axes.set_ylim(0, 1.1)
        return
    heights = np.array(norms.counts) / max(norms.counts)
    axes.stairs(heights, norms.edges, fill=True, facecolor=(*to_rgb(color), 0.35), edgecolor=color, linewidth=1)
    axes.set_ylim(0, 1.1)


def _limits(group: Sequence[NormDistribution]) -> tuple[float, float]:
    """Limits of an axis; where all lengths are equal they are centered."""
    low, high = min(n.edges[0] for n in group), max(n.edges[-1] for n in group)
    if high - low <= 1e-3 * high or not high:
        return (0.0, 2 * high) if high else (-1.0, 1.0)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _norm_title(plan: Plan, norms: NormDistribution) -> str:
    space = {"source": plan.source, "target": plan.target}.get(norms.name)
    if space is not None:
        return f"{norms.name}, {printable(space.name, 22)}"
    return {"translation": "translation", "translation-unscaled": "translation, unscaled"}.get(norms.name, norms.name)


def label_figure(plan: Plan, shown: Sequence[LabelFigures], strategies: Sequence[CostedScore]) -> str:
    """Labels by strategies: the scores, on the color of their difference to ``keep-old`` for that label."""
    titles = [s.title for s in strategies]
    table = np.array([[row.values[title] for title in titles] for row in shown])
    differences = table - table[:, titles.index("keep-old")][:, None]
    limit = max(float(np.quantile(np.abs(differences), 0.95)), 0.01)
    with drawing(max(190 + 34 * len(titles), 560), 250 + 21 * len(shown)) as figure:
        axes, key = figure.subplots(2, 1, height_ratios=(len(shown), 1.2))
        axes.pcolormesh(_cells(differences, limit), edgecolor="none")
        for (row, column), value in np.ndenumerate(table):
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center_baseline", fontsize=10, in_layout=False)
        axes.set_ylim(len(shown), 0)
        axes.set_yticks(np.arange(len(shown)) + 0.5, [f"{printable(row.label, 24)} ({row.queries:,})" for row in shown])
        for tick, row in zip(axes.get_yticklabels(), shown, strict=True):
            tick.set_color(FAINT if row.queries < _FEW else INK)
        axes.set_xticks(np.arange(len(titles)) + 0.5, titles, rotation=90)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.hlines(range(len(shown) + 1), 0, len(titles), color=GRID, linewidth=0.6)
        steps = np.linspace(-limit, limit, 11)
        key.pcolormesh(np.linspace(0, len(titles) / 2, 12), (0, 1), _cells(steps[None], limit), edgecolor="none")
        ends = (f"\u2212{limit:.2f} or less", "as keep-old", f"+{limit:.2f} or more")
        key.set_xlim(0, len(titles))
        key.set_xticks(np.array([0.5, 5.5, 10.5]) * len(titles) / 22, ends)
        key.set_yticks([])
        key.tick_params(length=0)
        key.spines[:].set_visible(False)
        described = (
            f"{_measure(plan)} of {len(shown)} labels (rows, with their queries) under {len(titles)} strategies (columns). "
            "The color is the difference to keep-old for the same label. The table of labels below has every number."
        )
        return to_svg(figure, "labels", "Labels by strategies", described)


def _cells(differences: np.ndarray, limit: float) -> np.ndarray:
    """Colors of differences: one for positive, one for negative, stronger for larger ones; shape (rows, columns, 4)."""
    colors = np.empty((*differences.shape, 4))
    colors[..., :3] = np.where(differences[..., None] >= 0, to_rgb(FIRST), to_rgb(SECOND))
    colors[..., 3] = np.minimum(np.abs(differences) / limit, 1) * _STRONGEST
    return colors


def _measure(plan: Plan) -> str:
    return f"recall@{plan.k}" if plan.judged else f"overlap@{plan.k}"
