"""The figure of progressive migration."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from embridge.records import CurvePoint, Plan
from embridge.reporting.drawing import FAINT, FIRST, PAPER, SECOND, drawing, to_svg


def progress_figure(plan: Plan, width: float) -> str:
    """Quality by share of rows re-encoded, with its interval, beside lazy re-encoding and the ends.

    Parameters
    ----------
    plan : Plan
        With a `curve`.
    width : float
        In pixels.
    """
    measure = "recall" if plan.judged else "overlap"
    with drawing(width, 330) as figure:
        axes = figure.add_subplot()
        for title, line in (("keep-old", "-"), ("re-encode", "--")):
            axes.axhline(getattr(plan[title], measure), color=FAINT, linewidth=1, linestyle=line, label=title)
        for points, color, label in (
            (plan.curve, FIRST, "progressive, both encoders"),
            (plan.curve_projected, SECOND, "progressive, old encoder gone"),
        ):
            if points:
                x, (values, low, high) = [point.percent for point in points], _values(points, measure)
                axes.fill_between(x, low, high, facecolor=(*to_rgb(color), 0.18), edgecolor="none")
                axes.plot(x, values, color=color, marker="o", markersize=5, linewidth=2, label=label)
        for name, marker in (("lazy-re-encode", "s"), ("lazy-re-encode-blend", "^")):
            lazy = [one for one in plan.lazy_depths if one.strategy == name]
            if lazy:
                x = [100 * one.encodes / plan.corpus for one in lazy]
                axes.plot(
                    x, [getattr(one, measure) for one in lazy], color=FAINT, linestyle=":", marker=marker, markersize=5,
                    markerfacecolor=PAPER, label=name,
                )  # fmt: skip
        axes.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
        axes.set_xlim(-0.2, 101)
        ticks = [0, 1, 5, 10, 20, 35, 50, 75, 100]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
        axes.set_xlabel("rows re-encoded, % (square root scale)")
        axes.set_ylabel(f"{measure}@{plan.k}")
        figure.legend(loc="outside lower center", ncols=2, fontsize=10.5, handlelength=1.8, columnspacing=1.4)
        numbers = ", ".join(f"{point.percent:.3g} %: {getattr(point, measure):.3f}" for point in plan.curve)
        described = f"{measure}@{plan.k} by rows re-encoded, with both encoders: {numbers}. The table below has every number."
        return to_svg(figure, "progress", "Progressive migration", described)


def _values(points: tuple[CurvePoint, ...], measure: str) -> tuple[list[float], list[float], list[float]]:
    intervals = [getattr(point, f"{measure}_ci") for point in points]
    return [getattr(point, measure) for point in points], [low for low, _ in intervals], [high for _, high in intervals]
