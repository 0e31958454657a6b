"""`write_report`: the page of a plan, from the template beside this file."""

from __future__ import annotations

import datetime
import importlib
import math
import os
from pathlib import Path
from typing import Any

from embridge import __version__
from embridge.errors import MissingDependencyError
from embridge.outputs import Output, replacing
from embridge.records import Plan

LABELS = 40  # the largest, in the heat map and its table
_NEEDS = ("jinja2", "matplotlib")


def check_installed() -> None:
    """Check that a report can be drawn, before any work for it.

    Raises
    ------
    MissingDependencyError
        Jinja2 or matplotlib is not installed.
    """
    for package in _NEEDS:
        try:
            importlib.import_module(package)
        except ImportError as e:
            raise MissingDependencyError.of(package, "A report", "report") from e


def write_report(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    all_strategies: bool = False,
    overwrite: bool = False,
    date: datetime.date | None = None,
) -> None:
    """Write a plan as one HTML page without scripts, network access or fonts; its figures are inline SVG.

    Parameters
    ----------
    plan : Plan
        With its `labels` the page has a heat map of the 40 largest.
    path : str or path-like
    all_strategies : bool, default False
        Strategies of the heat map. Default: only the most relevant (`Plan.deciding`).
    overwrite : bool, default False
    date : datetime.date, optional
        The date on the page. Default: today. The same plan and day give the same bytes.

    Raises
    ------
    MissingDependencyError
        Jinja2 or matplotlib is not installed (``pip install 'embridge[report]'``).
    OutputExistsError
        The file exists and `overwrite` is False.
    """
    check_installed()
    with replacing(Output(path), overwrite=overwrite) as [temporary]:
        temporary.write_bytes(report_page(plan, date, all_strategies=all_strategies))


def report_page(plan: Plan, date: datetime.date | None = None, *, all_strategies: bool = False) -> bytes:
    """The page that `write_report` writes."""
    return render(plan, date or datetime.datetime.now(datetime.UTC).date(), all_strategies=all_strategies).encode(
        "utf-8", "replace"
    )


def render(plan: Plan, date: datetime.date, *, all_strategies: bool = False) -> str:
    """The page as text."""
    import jinja2
    import markupsafe

    from embridge.reporting import figures
    from embridge.reporting.progress import progress_figure

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "figure": _figure,
        "share": _share,
        "signed": _signed,
        "span": _span,
        "time": _time,
        "money": _money,
    }
    shown, strategies = plan.labels[:LABELS], plan.strategies if all_strategies else plan.deciding
    drawn = {
        "strategies": figures.strategy_figure(plan),
        "curve": figures.curve_figure(plan),
        "progress": progress_figure(plan, figures.WIDTH) if plan.curve else None,
        "norms": figures.norm_figure(plan) if plan.norms else None,
        "labels": figures.label_figure(plan, shown, strategies) if shown else None,
    }
    facts: dict[str, Any] = {
        "plan": plan,
        "judged": plan.judged > 0,
        "measure": f"recall@{plan.k}" if plan.judged else f"overlap@{plan.k}",
        "recommended": {r.strategy for r in plan.recommendations.values()},
        "found": {s.title: s for s in plan.strategies},
        "dearest": max((s.cost for s in plan.strategies if s.cost is not None), default=None),
        "labels": shown,
        "shown_strategies": strategies,
        "figures": {name: svg and markupsafe.Markup(svg) for name, svg in drawn.items()},  # noqa: S704 (XML that we wrote)
        "version": __version__,
        "date": date.isoformat(),
    }
    return environment.get_template("report.html").render(facts)


def _count(value: int) -> str:
    return f"{value:,}"


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", "\u00a0%").replace("-", "\u2212")


def _span(interval: tuple[float, float], *, signed: bool = False) -> str:
    show = _signed if signed else _figure
    return f"[{show(interval[0])}, {show(interval[1])}]"


def _time(seconds: float) -> str:
    for least, unit, name in ((172_800, 86_400, "days"), (5_400, 3_600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:,.1f}\u00a0{name}"
    return f"{seconds:.1f}\u00a0s" if seconds else "0"


def _money(value: float, dearest: float) -> str:
    """With two decimals, or more where the largest value needs them for three digits."""
    places = 2 if dearest >= 1 else 2 - math.floor(math.log10(dearest))
    return f"{value:,.{places}f}" if value else "0"
