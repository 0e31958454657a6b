"""Data and functions for the tests of the report of a plan."""

import datetime
from dataclasses import replace

import numpy as np

import embridge as eb
from embridge.types import Metric, Space

FIGURES = ("strategies", "curve", "progress", "norms", "labels")
DAY = datetime.date(2026, 3, 4)
HOSTILE = (
    "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>", "]]>--><svg onload=alert(1)>", r"$\frac{$",
    "a\x00b\nc", 'style="fill: #010101"', "&lt;b&gt;", "\u6f22\u5b57\u30ab\u30ca", "long " * 60, "{{ 7 * 7 }}", 42,
)  # fmt: skip


def cosine(anchors, source="planted-source", target="planted-target"):
    """The same rows, of unit length in spaces of cosine: every strategy exists there."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (anchors.x, anchors.y))
    spaces = [Space(name, side.shape[1], Metric.COSINE, True) for name, side in ((source, x), (target, y))]
    return replace(anchors, x=x.astype(np.float32), y=y.astype(np.float32), source=spaces[0], target=spaces[1])


def written(plan, folder):
    eb.write_report(plan, folder / "page.html", date=DAY)
    return folder / "page.html"
